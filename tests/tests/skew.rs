//! The whole way once more through a client of an older API level, made from others' words.
#![forbid(unsafe_code)]

use berth_old_cri::cri::image_service_client::ImageServiceClient;
use berth_old_cri::cri::runtime_service_client::RuntimeServiceClient;
use berth_old_cri::cri::*;
use berth_tests::Node;
use berth_tests::eventually::eventually;
use berth_tests::prelude::{Context, Result, SOON};
use tonic::transport::{Channel, Endpoint};

async fn connect(node: &Node) -> Result<Channel> {
    let socket = node.dir().join("cri.sock");
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    Ok(endpoint.connect().await?)
}

fn pod_config(node: &Node) -> Result<PodSandboxConfig> {
    let log_directory = node.dir().join("logs");
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "old".into(),
            uid: format!("{}-old", node.instance()),
            namespace: "tests".into(),
            attempt: 0,
        }),
        hostname: "old".into(),
        log_directory: log_directory.display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}/pod-old", node.instance()),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn container_config(image: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        command: ["sh", "-c", "echo old; sleep 1000"].map(str::to_owned).to_vec(),
        log_path: "main.log".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_older_kubelet_is_served() -> Result<()> {
    let node = Node::start().await?;
    let channel = connect(&node).await?;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut images = ImageServiceClient::new(channel);

    let version = runtime.version(VersionRequest { version: "0.1.0".into() }).await?.into_inner();
    assert_eq!(version.runtime_api_version, "v1");
    let name = node.image("busybox:1").image;
    let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
    let pull = PullImageRequest { image: image.clone(), ..Default::default() };
    let id = images.pull_image(pull).await?.into_inner().image_ref;
    let status = ImageStatusRequest { image: image.clone(), verbose: false };
    assert_eq!(images.image_status(status).await?.into_inner().image.context("it")?.id, id);

    let config = pod_config(&node)?;
    let run = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let pod = runtime.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
    let create = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container_config(&name)),
        sandbox_config: Some(config),
    };
    let container = runtime.create_container(create).await?.into_inner().container_id;
    let start = StartContainerRequest { container_id: container.clone() };
    runtime.start_container(start).await?;

    let status = ContainerStatusRequest { container_id: container.clone(), verbose: false };
    let told = runtime.container_status(status.clone()).await?.into_inner().status;
    assert_eq!(told.context("a status")?.state(), ContainerState::ContainerRunning);
    let list = runtime.list_containers(ListContainersRequest::default()).await?.into_inner();
    let listed: Vec<&str> = list.containers.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(listed, [container.as_str()]);
    let exec = ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["hostname".into()],
        timeout: 10,
    };
    assert_eq!(runtime.exec_sync(exec).await?.into_inner().stdout, b"old\n");
    let log = node.dir().join("logs/main.log");
    eventually("a log line", SOON, async || {
        Ok(std::fs::read_to_string(&log)?.contains(" stdout F old").then_some(()))
    })
    .await?;

    let stop = StopContainerRequest { container_id: container.clone(), timeout: 0 };
    runtime.stop_container(stop).await?;
    let told = runtime.container_status(status).await?.into_inner().status.context("a status")?;
    assert_eq!((told.state(), told.exit_code), (ContainerState::ContainerExited, 137));
    runtime.remove_container(RemoveContainerRequest { container_id: container }).await?;
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod }).await?;
    let remove = RemoveImageRequest { image: image.clone() };
    images.remove_image(remove).await?;
    let status = ImageStatusRequest { image, verbose: false };
    assert!(images.image_status(status).await?.into_inner().image.is_none());
    node.finish().await
}
