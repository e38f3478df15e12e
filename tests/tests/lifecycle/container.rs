//! Containers: create, start, status, list, remove; how they end.

use berth_tests::prelude::*;

#[tokio::test]
async fn a_container_goes_the_way_of_kubelet() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("flow").await?;
    let image_id = node.pull("busybox:1").await?;
    let mut config = shell("main", "echo hello; sleep 1000");
    config.labels.insert("tier".into(), "front".into());
    config.annotations.insert("note".into(), "kept".into());
    let id = node.create(&pod, config.clone()).await?;
    assert_eq!(id.len(), 64);

    let created = node.container(&id).await?;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.created_at > 0);
    assert_eq!((created.started_at, created.finished_at), (0, 0));

    node.start_container(&id).await?;
    let running = node.container(&id).await?;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at);
    assert_eq!(running.metadata, config.metadata);
    assert_eq!(running.labels, config.labels);
    assert_eq!(running.annotations, config.annotations);
    assert_eq!(running.log_path, node.log_file(&pod, "main.log").display().to_string());
    assert_eq!(running.image.context("an image")?.image, node.image("busybox:1").image);
    assert!(running.image_ref.contains("sha256:"), "{}", running.image_ref);
    if node.is_berth() {
        assert_eq!(running.image_id, image_id);
        assert!(
            running.image_ref.contains("registry.test/busybox@sha256:"),
            "{}",
            running.image_ref
        );
    }
    node.logged(&pod, "main.log", "hello").await?;

    node.stop_container(&id, 1).await?;
    node.stop_container(&id, 1).await?;
    let exited = node.container(&id).await?;
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert!(exited.finished_at >= exited.started_at);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (137, "Error"));

    node.remove_container(&id).await?;
    node.remove_container(&id).await?;
    assert!(node.log_file(&pod, "main.log").exists(), "the log is kubelet's");
    assert!(node.containers().await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn the_end_of_a_container_is_told_right() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("ends").await?;
    for (name, script, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("three", "exit 3", 3, "Error"),
        ("max", "exit 255", 255, "Error"),
        ("not-a-command", "/nothing", 127, "Error"),
        ("child-signal", "sh -c 'kill -9 $$'; exit $?", 137, "Error"),
    ] {
        let (status, _) = node.run_to_end(&pod, shell(name, script)).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}");
        assert!(status.started_at > 0 && status.finished_at > 0, "{name}");
        assert!(status.finished_at >= status.started_at || !node.is_berth(), "{name}");
    }
    node.finish().await
}

#[tokio::test]
async fn too_much_memory_is_oomkilled() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("oom").await?;
    let mut config = shell("main", "x=12345678; while true; do x=$x$x; done");
    config.resources().memory_limit_in_bytes = 24 << 20;
    let (status, _) = node.run_to_end(&pod, config).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.finish().await
}

#[tokio::test]
async fn absent_containers_are_not_found_and_stop_and_go_silently() -> Result<()> {
    let node = Node::start().await?;
    let id = "0".repeat(64);
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
    let error = node.cri().container_status(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let request = StartContainerRequest { container_id: id.clone() };
    let error = node.cri().start_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let request =
        ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 0 };
    let error = node.cri().exec_sync(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    if node.is_berth() {
        node.stop_container(&id, 1).await?;
    }
    node.remove_container(&id).await?;
    node.finish().await
}

#[tokio::test]
async fn a_command_that_is_not_there_fails_the_start() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("startless").await?;
    let config = container("main", "busybox:1", &["/no/such/program"]);
    let id = node.create(&pod, config).await?;
    let request = StartContainerRequest { container_id: id.clone() };
    let error = node.cri().start_container(request).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    let status = node.container(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("no such file"), "{}", status.message);
    assert!(status.finished_at > 0);
    node.remove_container(&id).await?;
    node.finish().await
}

#[tokio::test]
async fn only_a_created_container_starts() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("once").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    let request = StartContainerRequest { container_id: id.clone() };
    node.cri().start_container(request.clone()).await.unwrap_err();
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.stop_container(&id, 0).await?;
    node.cri().start_container(request).await.unwrap_err();
    assert_eq!(node.container(&id).await?.exit_code, 137);
    node.finish().await
}

#[tokio::test]
async fn creates_that_cannot_be_leave_nothing() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("refused").await?;
    node.pull("busybox:1").await?;
    let absent = container("main", "no-such-image:1", &["true"]);
    node.cri().create_container(node.create_request(&pod, absent)).await.unwrap_err();
    let mut request = node.create_request(&pod, shell("main", "true"));
    request.pod_sandbox_id = "0".repeat(64);
    node.cri().create_container(request).await.unwrap_err();
    assert!(node.containers().await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn filters_of_containers_are_joined_by_and() -> Result<()> {
    let node = Node::start().await?;
    let (front, back) = (node.pod("front").await?, node.pod("back").await?);
    let labelled = |name: &str| {
        let mut config = shell(name, "sleep 1000");
        config.labels.insert("name".into(), name.into());
        config
    };
    let a = node.run(&front, labelled("a")).await?;
    let b = node.run(&back, labelled("b")).await?;
    let c = node.create(&back, labelled("c")).await?;
    let label = |name: &str| [("name".to_owned(), name.to_owned())].into();
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let base = ContainerFilter::default;
    let short = a.get(..13).context("a long id")?.to_owned();
    let cases = [
        ("none", base(), vec![&a, &b, &c]),
        ("id", ContainerFilter { id: a.clone(), ..base() }, vec![&a]),
        ("short id", ContainerFilter { id: short, ..base() }, vec![&a]),
        ("pod", ContainerFilter { pod_sandbox_id: back.id.clone(), ..base() }, vec![&b, &c]),
        (
            "state",
            ContainerFilter { state: state(ContainerState::ContainerCreated), ..base() },
            vec![&c],
        ),
        ("label", ContainerFilter { label_selector: label("b"), ..base() }, vec![&b]),
        (
            "label in another pod",
            ContainerFilter {
                label_selector: label("b"),
                pod_sandbox_id: front.id.clone(),
                ..base()
            },
            vec![],
        ),
    ];
    for (name, filter, wanted) in cases {
        let request = ListContainersRequest { filter: Some(filter) };
        let list = node.cri().list_containers(request).await?.containers;
        let mut found: Vec<String> = list.into_iter().map(|container| container.id).collect();
        let mut wanted: Vec<String> = wanted.into_iter().cloned().collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{name}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_running_container_can_be_removed_and_its_name_used_again() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("names").await?;
    let first = node.run(&pod, shell("main", "sleep 1000")).await?;
    node.remove_container(&first).await?;
    let second = node.run(&pod, shell("main", "sleep 1000")).await?;
    assert_ne!(first, second);
    assert_eq!(node.containers().await?.len(), 1);
    node.finish().await
}

#[tokio::test]
async fn equal_creates_under_way_get_one_container() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("joined").await?;
    node.pull("busybox:1").await?;
    if node.is_berth() {
        let (a, b) = tokio::join!(
            node.create(&pod, shell("main", "sleep 1000")),
            node.create(&pod, shell("main", "sleep 1000"))
        );
        assert_eq!(a?, b?);
        assert_eq!(node.containers().await?.len(), 1);
    }
    node.finish().await
}

#[tokio::test]
async fn ten_containers_at_once_all_run_and_end() -> Result<()> {
    let node = Node::start().await?;
    node.pull("busybox:1").await?;
    let pod = node.pod("many").await?;
    let ids = berth_tests::eventually::all((0..10).map(|index| {
        let (node, pod) = (&node, &pod);
        async move { node.run(pod, shell(&format!("c{index}"), &format!("exit {index}"))).await }
    }))
    .await?;
    for (index, id) in ids.iter().enumerate() {
        assert_eq!(usize::try_from(node.exited(id).await?.exit_code)?, index);
    }
    node.finish().await
}
