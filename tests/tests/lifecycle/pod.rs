//! Sandboxes: run, status, list, stop, remove.

use std::time::Duration;

use berth_tests::prelude::*;

#[tokio::test]
async fn version_and_status_say_who_answers() -> Result<()> {
    let node = Node::start().await?;
    let version = node.cri().version(VersionRequest::default()).await?;
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty());

    let status = node.cri().status(StatusRequest { verbose: true }).await?;
    let conditions = status.status.context("a status")?.conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let found = conditions.iter().find(|condition| condition.r#type == wanted);
        assert!(found.is_some_and(|condition| condition.status), "{wanted}: {conditions:?}");
    }
    assert!(status.info.contains_key("config"), "{:?}", status.info.keys());
    if node.is_berth() {
        let names: Vec<&str> = status.runtime_handlers.iter().map(|h| h.name.as_str()).collect();
        assert!(names.contains(&""), "{names:?}");
        let config = node.cri().runtime_config(RuntimeConfigRequest {}).await?;
        let driver = config.linux.context("a Linux configuration")?.cgroup_driver();
        assert_eq!(driver, CgroupDriver::Cgroupfs);
    }
    node.finish().await
}

#[tokio::test]
async fn a_pod_runs_is_listed_stops_and_goes() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("one")?;
    config.annotations.insert("note".into(), "kept".into());
    let pod = node.run_pod(config).await?;
    assert_eq!(pod.id.len(), 64);

    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert!(status.created_at > 0);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    let ip = status.network.context("a network")?.ip;
    assert!(ip.starts_with("10.88.0."), "{ip}");

    node.stop_pod(&pod.id).await?;
    node.stop_pod(&pod.id).await?;
    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);

    node.remove_pod(&pod.id).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    node.cri().remove_pod_sandbox(request).await?;
    assert!(node.pods().await?.is_empty());
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: false };
    let error = node.cri().pod_sandbox_status(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    node.finish().await
}

#[tokio::test]
async fn filters_of_pods_are_joined_by_and() -> Result<()> {
    let node = Node::start().await?;
    let one = node.pod("one").await?.id;
    let two = node.pod("two").await?.id;
    node.stop_pod(&two).await?;
    let label = |name: &str| [("app".to_owned(), name.to_owned())].into();
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let short = one.get(..13).context("a long id")?.to_owned();
    let cases = [
        ("none", PodSandboxFilter::default(), vec![&one, &two]),
        ("id", PodSandboxFilter { id: one.clone(), ..Default::default() }, vec![&one]),
        ("short id", PodSandboxFilter { id: short, ..Default::default() }, vec![&one]),
        ("absent id", PodSandboxFilter { id: "f00d".into(), ..Default::default() }, vec![]),
        (
            "ready",
            PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() },
            vec![&one],
        ),
        (
            "label",
            PodSandboxFilter { label_selector: label("two"), ..Default::default() },
            vec![&two],
        ),
        (
            "id and another's label",
            PodSandboxFilter {
                id: one.clone(),
                label_selector: label("two"),
                ..Default::default()
            },
            vec![],
        ),
    ];
    for (name, filter, wanted) in cases {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let mut found: Vec<String> =
            node.cri().list_pod_sandbox(request).await?.items.into_iter().map(|p| p.id).collect();
        let mut wanted: Vec<String> = wanted.into_iter().cloned().collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{name}");
    }
    node.finish().await
}

#[tokio::test]
async fn absent_pods_are_not_found_and_stop_and_go_silently() -> Result<()> {
    let node = Node::start().await?;
    let id = "0".repeat(64);
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let error = node.cri().pod_sandbox_status(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    if node.is_berth() {
        node.stop_pod(&id).await?;
    }
    let request = RemovePodSandboxRequest { pod_sandbox_id: id };
    node.cri().remove_pod_sandbox(request).await?;
    node.finish().await
}

#[tokio::test]
async fn equal_requests_under_way_get_one_pod() -> Result<()> {
    let node = Node::start().await?;
    let config = node.pod_config("joined")?;
    if node.is_berth() {
        let (a, b, c) = tokio::join!(
            node.run_pod(config.clone()),
            node.run_pod(config.clone()),
            node.run_pod(config.clone())
        );
        let (a, b, c) = (a?.id, b?.id, c?.id);
        assert!(a == b && b == c, "{a} {b} {c}");
    }
    // A caller that goes away does not end the work; its retry joins or finds the result.
    let config = node.pod_config("dropped")?;
    let first = tokio::time::timeout(Duration::from_millis(3), node.run_pod(config.clone())).await;
    if node.is_berth() {
        let pod = node.run_pod(config.clone()).await?;
        assert!(!matches!(&first, Ok(Ok(early)) if early.id != pod.id));
        let named = |pod: &&PodSandbox| pod.labels.get("app").is_some_and(|app| app == "dropped");
        assert_eq!(node.pods().await?.iter().filter(named).count(), 1);
    }
    node.finish().await
}

#[tokio::test]
async fn a_new_attempt_is_another_pod() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("again")?;
    let first = node.run_pod(config.clone()).await?;
    node.stop_pod(&first.id).await?;
    config.metadata.as_mut().context("metadata")?.attempt = 1;
    let second = node.run_pod(config).await?;
    assert_ne!(first.id, second.id);
    assert_eq!(node.pods().await?.len(), 2);
    node.finish().await
}

#[tokio::test]
async fn containers_of_a_pod_share_its_names_and_memory() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("shared")?;
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(config).await?;
    let ip = node.pod_status(&pod.id).await?.network.context("a network")?.ip;
    let writer = node.run(&pod, shell("writer", "echo hi > /dev/shm/x; sleep 1000")).await?;
    let reader = node.run(&pod, shell("reader", "sleep 1000")).await?;
    eventually("the writer's file", SOON, async || {
        Ok((node.sh(&writer, "cat /dev/shm/x").await? == "hi\n").then_some(()))
    })
    .await?;
    assert_eq!(node.sh(&reader, "cat /dev/shm/x").await?, "hi\n");
    assert_eq!(node.sh(&reader, "hostname; cat /etc/hostname").await?, "shared\nshared\n");
    let resolv = node.sh(&reader, "cat /etc/resolv.conf").await?;
    for line in ["nameserver 10.0.0.10", "search a.example b.example", "options ndots:5"] {
        assert!(resolv.lines().any(|found| found == line), "{line} not in {resolv}");
    }
    let addresses = node.sh(&reader, "ip -o addr").await?;
    assert!(addresses.contains(&ip) && addresses.contains("127.0.0.1"), "{addresses}");
    for namespace in ["net", "ipc", "uts"] {
        let script = format!("readlink /proc/self/ns/{namespace}");
        let (a, b) = (node.sh(&writer, &script).await?, node.sh(&reader, &script).await?);
        assert_eq!(a, b, "{namespace}");
        let host = std::fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        assert_ne!(a.trim(), host.to_string_lossy(), "{namespace}");
    }
    let pids = "readlink /proc/self/ns/pid";
    assert_ne!(node.sh(&writer, pids).await?, node.sh(&reader, pids).await?);
    if node.is_berth() {
        let hosts = node.sh(&reader, "cat /etc/hosts").await?;
        assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_host_network_pod_uses_the_hosts_network() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("host")?;
    config.hostname = String::new();
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.network.unwrap_or_default().ip, "");
    let mut container = shell("main", "sleep 1000");
    let options = container.security().namespace_options.get_or_insert_default();
    options.network = NamespaceMode::Node.into();
    let id = node.run(&pod, container).await?;
    let host = std::fs::read_link(format!("/proc/{}/ns/net", node.host().pid()))?;
    let found = node.sh(&id, "readlink /proc/self/ns/net").await?;
    assert_eq!(found.trim(), host.to_string_lossy());
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(node.sh(&id, "hostname").await?, name);
    node.finish().await
}

#[tokio::test]
async fn containers_of_a_shared_pid_pod_see_each_other() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("pids")?;
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = node.run_pod(config).await?;
    let with_shared = |name: &str, script: &str| {
        let mut container = shell(name, script);
        container.security().namespace_options.get_or_insert_default().pid =
            NamespaceMode::Pod.into();
        container
    };
    let one = node.run(&pod, with_shared("one", "sleep 4711 & wait")).await?;
    let two = node.run(&pod, with_shared("two", "sleep 4712")).await?;
    let seen = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; done";
    true_within("one's processes in two", SOON, async || {
        Ok(node.sh(&two, seen).await?.contains("sleep 4711"))
    })
    .await?;
    // No PID namespace ends with the container: its processes must be found by their cgroup.
    node.stop_container(&one, 0).await?;
    assert_eq!(node.exited(&one).await?.exit_code, 137);
    let gone = async || Ok(!node.sh(&two, seen).await?.contains("sleep 4711"));
    true_within("one's processes gone", SOON, gone).await?;
    node.finish().await
}

#[tokio::test]
async fn sysctls_hold_in_the_pods_namespaces() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("sysctls")?;
    let wanted = [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shm_rmid_forced", "1")];
    config.linux().sysctls = wanted.map(|(name, value)| (name.into(), value.into())).into();
    let pod = node.run_pod(config).await?;
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
                  /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(node.output(&pod, shell("main", script)).await?, "80\n1\n");
    node.finish().await
}

#[tokio::test]
async fn removing_a_pod_ends_its_containers() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("busy").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
    node.cri().remove_pod_sandbox(request).await?;
    let request = ContainerStatusRequest { container_id: id, verbose: false };
    let error = node.cri().container_status(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    node.settled().await?;
    node.finish().await
}

#[tokio::test]
async fn stopping_a_pod_ends_its_containers_with_a_code() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("busy").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    node.stop_pod(&pod.id).await?;
    let status = node.container(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);
    let request = node.create_request(&pod, shell("late", "true"));
    if node.is_berth() {
        let error = node.cri().create_container(request).await.unwrap_err();
        assert!(error.message().contains(&pod.id), "{error}");
    }
    node.finish().await
}
