//! Requests that are wrong: refused by code, field and value, and nothing is left of them.
#![forbid(unsafe_code)]

use berth_tests::prelude::*;
use tonic::Status;

/// INVALID_ARGUMENT, with these words in the message.
fn refused(what: &str, error: &Status, words: &[&str]) {
    assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
    for word in words {
        assert!(error.message().contains(word), "{what}: {word:?} not in {:?}", error.message());
    }
}

type PodCase = (&'static [&'static str], fn(&mut RunPodSandboxRequest));

fn config(request: &mut RunPodSandboxRequest) -> &mut PodSandboxConfig {
    request.config.get_or_insert_default()
}

fn metadata(request: &mut RunPodSandboxRequest) -> &mut PodSandboxMetadata {
    config(request).metadata.get_or_insert_default()
}

fn port(request: &mut RunPodSandboxRequest, mapping: PortMapping) {
    config(request).port_mappings = vec![mapping];
}

const PORT: PortMapping =
    PortMapping { protocol: 0, container_port: 80, host_port: 18080, host_ip: String::new() };

const PODS: &[PodCase] = &[
    (&["config"], |r| r.config = None),
    (&["metadata"], |r| config(r).metadata = None),
    (&["metadata.name"], |r| metadata(r).name.clear()),
    (&["metadata.namespace"], |r| metadata(r).namespace.clear()),
    (&["metadata.uid"], |r| metadata(r).uid.clear()),
    (&["metadata.name", "a;b"], |r| metadata(r).name = "a;b".into()),
    (&["metadata.namespace", "a b"], |r| metadata(r).namespace = "a b".into()),
    (&["hostname", "no spaces"], |r| config(r).hostname = "no spaces".into()),
    (&["hostname"], |r| config(r).hostname = "h".repeat(65)),
    (&["log_directory", "relative/logs"], |r| config(r).log_directory = "relative/logs".into()),
    (&["log_directory", ".."], |r| config(r).log_directory = "/tmp/../etc".into()),
    (&["runtime_handler", "kata"], |r| r.runtime_handler = "kata".into()),
    (&["dns_config.servers[0]", "dns.example"], |r| {
        config(r).dns_config.get_or_insert_default().servers = vec!["dns.example".into()];
    }),
    (&["dns_config.searches[1]"], |r| {
        config(r).dns_config.get_or_insert_default().searches =
            vec!["ok.example".into(), "evil\nnameserver 6.6.6.6".into()];
    }),
    (&["port_mappings[0].container_port", "70000"], |r| {
        port(r, PortMapping { container_port: 70_000, ..PORT });
    }),
    (&["port_mappings[0].host_port", "-1"], |r| port(r, PortMapping { host_port: -1, ..PORT })),
    (&["port_mappings[0].protocol", "9"], |r| port(r, PortMapping { protocol: 9, ..PORT })),
    (&["port_mappings[0].host_ip", "here"], |r| {
        port(r, PortMapping { host_ip: "here".into(), ..PORT });
    }),
    (&["cgroup_parent", "relative"], |r| config(r).linux().cgroup_parent = "relative".into()),
    (&["cgroup_parent", ".."], |r| config(r).linux().cgroup_parent = "/a/../../b".into()),
    (&["cgroup_parent", "pod.slice"], |r| config(r).linux().cgroup_parent = "pod.slice".into()),
    (&["sysctls", "nodots"], |r| {
        config(r).linux().sysctls = [("nodots".into(), "1".into())].into();
    }),
    (&["sysctls", "net/../../kernel"], |r| {
        config(r).linux().sysctls = [("net/../../kernel".into(), "1".into())].into();
    }),
    (&["sysctls", "kernel.panic"], |r| {
        // Not of a namespace: it would be the host's.
        config(r).linux().sysctls = [("kernel.panic".into(), "1".into())].into();
    }),
    (&["namespace_options.network", "42"], |r| config(r).namespaces().network = 42),
    (&["namespace_options.network"], |r| {
        config(r).namespaces().network = NamespaceMode::Container.into();
    }),
    (&["namespace_options.pid"], |r| config(r).namespaces().pid = NamespaceMode::Target.into()),
    (&["run_as_group"], |r| {
        let security = config(r).linux().security_context.get_or_insert_default();
        security.run_as_group = Some(Int64Value { value: 1 });
    }),
    (&["run_as_user", "-1"], |r| {
        let security = config(r).linux().security_context.get_or_insert_default();
        security.run_as_user = Some(Int64Value { value: -1 });
    }),
    (&["windows"], |r| config(r).windows = Some(WindowsPodSandboxConfig::default())),
];

#[tokio::test]
async fn wrong_pods_are_refused_and_leave_nothing() -> Result<()> {
    let node = Node::start().await?;
    for (index, (words, spoil)) in PODS.iter().enumerate() {
        let mut request = RunPodSandboxRequest {
            config: Some(node.pod_config(&format!("bad{index}"))?),
            runtime_handler: String::new(),
        };
        spoil(&mut request);
        let outcome = node.cri().run_pod_sandbox(request).await;
        refused(&format!("{words:?}"), &outcome.expect_err(&format!("{words:?}")), words);
    }
    assert!(node.pods().await?.is_empty());
    node.settled().await?;
    node.finish().await
}

type ContainerCase = (&'static [&'static str], fn(&mut CreateContainerRequest));

fn inner(request: &mut CreateContainerRequest) -> &mut ContainerConfig {
    request.config.get_or_insert_default()
}

fn env(key: &str, value: &[u8]) -> Vec<KeyValue> {
    vec![KeyValue { key: key.into(), value: value.to_vec() }]
}

fn mount(host: &str, container: &str) -> Vec<Mount> {
    vec![bind(std::path::Path::new(host), container)]
}

fn device(host: &str, container: &str, permissions: &str) -> Vec<Device> {
    vec![Device {
        host_path: host.into(),
        container_path: container.into(),
        permissions: permissions.into(),
    }]
}

const CONTAINERS: &[ContainerCase] = &[
    (&["config"], |r| r.config = None),
    (&["pod_sandbox_id"], |r| r.pod_sandbox_id.clear()),
    (&["metadata"], |r| inner(r).metadata = None),
    (&["metadata.name"], |r| inner(r).metadata.get_or_insert_default().name.clear()),
    (&["config.image"], |r| inner(r).image = None),
    (&["config.image"], |r| inner(r).image = Some(ImageSpec::default())),
    (&["log_path", "/absolute"], |r| inner(r).log_path = "/absolute".into()),
    (&["log_path", ".."], |r| inner(r).log_path = "../up.log".into()),
    (&["working_dir", "relative"], |r| inner(r).working_dir = "relative".into()),
    (&["command[1]"], |r| inner(r).command = vec!["sh".into(), "a\0b".into()]),
    (&["args[0]"], |r| inner(r).args = vec!["a\0b".into()]),
    (&["envs[0].key"], |r| inner(r).envs = env("", b"x")),
    (&["envs[0].key", "A=B"], |r| inner(r).envs = env("A=B", b"x")),
    (&["envs[0].value", "NUL_IN"], |r| inner(r).envs = env("NUL_IN", b"a\0b")),
    (&["mounts[0].container_path", "relative"], |r| inner(r).mounts = mount("/tmp", "relative")),
    (&["mounts[0].container_path"], |r| inner(r).mounts = mount("/tmp", "")),
    (&["mounts[0].container_path", ".."], |r| inner(r).mounts = mount("/tmp", "/a/../../b")),
    (&["mounts[0].host_path", "relative"], |r| inner(r).mounts = mount("relative", "/vol")),
    (&["mounts[0].host_path"], |r| inner(r).mounts = mount("", "/vol")),
    (&["mounts[0].propagation", "7"], |r| {
        inner(r).mounts = vec![Mount { propagation: 7, ..bind("/tmp".as_ref(), "/vol") }];
    }),
    (&["mounts[0].recursive_read_only"], |r| {
        inner(r).mounts =
            vec![Mount { recursive_read_only: true, ..bind("/tmp".as_ref(), "/vol") }];
    }),
    (&["devices[0].host_path"], |r| inner(r).devices = device("", "/dev/x", "rwm")),
    (&["devices[0].permissions", "rwx"], |r| {
        inner(r).devices = device("/dev/null", "/dev/x", "rwx")
    }),
    (&["stop_signal", "99"], |r| inner(r).stop_signal = 99),
    (&["cpuset_cpus", "one-two"], |r| inner(r).resources().cpuset_cpus = "one-two".into()),
    (&["memory_limit_in_bytes", "-5"], |r| inner(r).resources().memory_limit_in_bytes = -5),
    (&["cpu_shares", "-1"], |r| inner(r).resources().cpu_shares = -1),
    (&["oom_score_adj", "1001"], |r| inner(r).resources().oom_score_adj = 1001),
    (&["run_as_user", "-7"], |r| inner(r).security().run_as_user = Some(Int64Value { value: -7 })),
    (&["run_as_group"], |r| inner(r).security().run_as_group = Some(Int64Value { value: 7 })),
    (&["supplemental_groups[1]", "-3"], |r| inner(r).security().supplemental_groups = vec![1, -3]),
    (&["masked_paths[0]", "proc"], |r| inner(r).security().masked_paths = vec!["proc".into()]),
    (&["add_capabilities[0]", "not a cap"], |r| {
        let capabilities = inner(r).security().capabilities.get_or_insert_default();
        capabilities.add_capabilities = vec!["not a cap".into()];
    }),
    (&["namespace_options.pid", "42"], |r| {
        inner(r).security().namespace_options.get_or_insert_default().pid = 42;
    }),
    (&["windows"], |r| inner(r).windows = Some(WindowsContainerConfig::default())),
];

#[tokio::test]
async fn wrong_containers_are_refused_and_leave_nothing() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("host").await?;
    node.pull("busybox:1").await?;
    let before = node.footprint()?;
    for (words, spoil) in CONTAINERS {
        let mut request = node.create_request(&pod, shell("main", "true"));
        spoil(&mut request);
        let outcome = node.cri().create_container(request).await;
        refused(&format!("{words:?}"), &outcome.expect_err(&format!("{words:?}")), words);
    }
    assert!(node.containers().await?.is_empty());
    let left: Vec<String> = node.footprint()?.difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
    node.finish().await
}

#[tokio::test]
async fn wrong_ids_images_and_times_are_refused() -> Result<()> {
    let node = Node::start().await?;
    let cri = node.cri();
    let image = |name: &str| Some(ImageSpec { image: name.into(), ..Default::default() });
    for name in [
        "",
        "UPPER:1",
        "upper/CASE:1",
        "a b",
        "registry.test/x@sha256:short",
        "registry.test/x:bad tag",
    ] {
        let request = PullImageRequest { image: image(name), ..Default::default() };
        let error = cri.pull_image(request).await.expect_err(name);
        refused(name, &error, &["image", name]);
    }
    refused(
        "no image",
        &cri.pull_image(PullImageRequest::default()).await.expect_err("no image"),
        &["image"],
    );
    refused(
        "no id",
        &cri.stop_pod_sandbox(StopPodSandboxRequest::default()).await.expect_err("no id"),
        &["pod_sandbox_id"],
    );
    refused(
        "no id",
        &cri.container_status(ContainerStatusRequest::default()).await.expect_err("no id"),
        &["container_id"],
    );
    let pod = node.pod("host").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    let request = StopContainerRequest { container_id: id.clone(), timeout: -1 };
    refused(
        "timeout",
        &cri.stop_container(request).await.expect_err("timeout"),
        &["timeout", "-1"],
    );
    let request = ExecSyncRequest { container_id: id.clone(), cmd: vec![], timeout: 1 };
    refused("cmd", &cri.exec_sync(request).await.expect_err("cmd"), &["cmd"]);
    let cmd = vec!["true".to_owned()];
    let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: -1 };
    refused("timeout", &cri.exec_sync(request).await.expect_err("timeout"), &["timeout", "-1"]);
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn what_is_not_built_says_so() -> Result<()> {
    let node = Node::start().await?;
    let mut runtime = node.cri().runtime();
    let code = runtime
        .checkpoint_container(CheckpointContainerRequest::default())
        .await
        .expect_err("checkpoint")
        .code();
    assert_eq!(code, Code::Unimplemented);
    node.finish().await
}

#[tokio::test]
async fn isolation_that_is_not_built_is_refused_with_its_field() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("host").await?;
    node.pull("busybox:1").await?;
    let profile = |kind: security_profile::ProfileType, reference: &str| SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.into(),
    };
    let mut config = shell("seccomp", "true");
    config.security().seccomp =
        Some(profile(security_profile::ProfileType::Localhost, "/profiles/strict.json"));
    let error = node.cri().create_container(node.create_request(&pod, config)).await;
    let error = error.expect_err("a seccomp profile");
    assert!(error.message().contains("seccomp"), "{error}");
    let mut config = shell("apparmor", "true");
    config.security().apparmor = Some(profile(security_profile::ProfileType::Localhost, "strict"));
    let error = node.cri().create_container(node.create_request(&pod, config)).await;
    assert!(error.expect_err("an AppArmor profile").message().contains("apparmor"));
    assert!(node.containers().await?.is_empty());
    node.finish().await
}
