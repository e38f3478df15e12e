//! What pods and containers use, as the CRI tells it.

use berth_tests::prelude::*;

async fn stats(node: &Node, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    node.cri().container_stats(request).await?.stats.context("stats")
}

async fn listed(node: &Node, filter: Option<ContainerStatsFilter>) -> Result<Vec<String>> {
    let answer = node.cri().list_container_stats(ListContainerStatsRequest { filter }).await?;
    let id = |stats: ContainerStats| Some(stats.attributes?.id);
    let mut ids: Vec<String> = answer.stats.into_iter().filter_map(id).collect();
    ids.sort();
    Ok(ids)
}

fn value(number: Option<UInt64Value>) -> u64 {
    number.map_or(0, |number| number.value)
}

#[tokio::test]
async fn a_container_tells_its_cpu_memory_and_writes() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("figures").await?;
    let script = "head -c 3000000 /dev/zero > /file; mkdir /d; while :; do :; done";
    let mut config = shell("main", script);
    config.labels.insert("l".into(), "v".into());
    let id = node.run(&pod, config).await?;
    let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
    let mountpoint = info.container_filesystems.first().and_then(|fs| fs.fs_id.clone());
    eventually("figures of a busy container", SOON, async || {
        let stats = stats(&node, &id).await?;
        let attributes = stats.attributes.context("attributes")?;
        ensure!(attributes.id == id && attributes.labels.contains_key("l"), "{attributes:?}");
        let (cpu, memory) = (stats.cpu.context("cpu")?, stats.memory.context("memory")?);
        ensure!(cpu.timestamp > 0 && memory.timestamp > 0);
        let layer = stats.writable_layer.context("a writable layer")?;
        ensure!(layer.fs_id == mountpoint, "{layer:?}");
        let used = value(layer.used_bytes);
        // The first look knows no rate, and a layer is measured every ten seconds.
        let busy = value(cpu.usage_core_nano_seconds) > 50_000_000
            && value(cpu.usage_nano_cores) > 50_000_000;
        let sane = value(memory.working_set_bytes) > 0
            && value(memory.working_set_bytes) <= value(memory.usage_bytes);
        let wrote = (3_000_000..4_000_000).contains(&used) && value(layer.inodes_used) >= 3;
        Ok((busy && sane && wrote).then_some(()))
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn a_limit_says_what_is_left_of_it() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("limited").await?;
    let mut config = shell("main", "sleep 1000");
    config.resources().memory_limit_in_bytes = 64 << 20;
    let id = node.run(&pod, config).await?;
    let memory = stats(&node, &id).await?.memory.context("memory")?;
    assert_eq!(value(memory.available_bytes) + value(memory.working_set_bytes), 64 << 20);
    node.finish().await
}

#[tokio::test]
async fn lists_have_what_lives_and_what_was_asked_for() -> Result<()> {
    let node = Node::start().await?;
    let (one, other) = (node.pod("one").await?, node.pod("other").await?);
    let mut config = shell("created", "sleep 1000");
    config.labels.insert("l".into(), "v".into());
    let created = node.create(&one, config).await?;
    let running = node.run(&one, shell("running", "sleep 1000")).await?;
    let elsewhere = node.run(&other, shell("elsewhere", "sleep 1000")).await?;
    let ended = node.run(&one, shell("ended", "echo > /written")).await?;
    node.exited(&ended).await?;
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(listed(&node, None).await?, sorted(&[&created, &running, &elsewhere]));
    let by = ContainerStatsFilter::default;
    let of_pod = ContainerStatsFilter { pod_sandbox_id: one.id.clone(), ..by() };
    assert_eq!(listed(&node, Some(of_pod)).await?, sorted(&[&created, &running]));
    let of_id = ContainerStatsFilter { id: running.get(..12).context("an id")?.into(), ..by() };
    assert_eq!(listed(&node, Some(of_id)).await?, sorted(&[&running]));
    let label = [("l".to_owned(), "v".to_owned())].into();
    let labelled = ContainerStatsFilter { label_selector: label, ..by() };
    assert_eq!(listed(&node, Some(labelled)).await?, sorted(&[&created]));

    // One that has ended has no cgroup, but what it wrote is there.
    let stats = stats(&node, &ended).await?;
    assert!(stats.cpu.is_none() && stats.memory.is_none(), "{stats:?}");
    let layer = stats.writable_layer.context("a writable layer")?;
    assert!(value(layer.inodes_used) >= 2, "{layer:?}");
    let none = ContainerStatsRequest { container_id: "ab".repeat(32) };
    let error = node.cri().container_stats(none).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    node.finish().await
}

#[tokio::test]
async fn containers_that_go_meanwhile_break_no_list() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("churn").await?;
    let stays = node.run(&pod, shell("stays", "sleep 1000")).await?;
    let churn = async {
        for number in 0..12 {
            let config = shell(&format!("short{number}"), "true");
            let id = node.run(&pod, config).await?;
            node.remove_container(&id).await?;
        }
        anyhow::Ok(())
    };
    let lists = async {
        for _ in 0..200 {
            ensure!(listed(&node, None).await?.contains(&stays));
        }
        Ok(())
    };
    let (churned, all_listed) = tokio::join!(churn, lists);
    churned?;
    all_listed?;
    node.finish().await
}

#[tokio::test]
async fn a_pod_tells_its_processes_and_interfaces() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("whole").await?;
    let id = node.run(&pod, shell("main", "sleep 1000 & sleep 1000; true")).await?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    eventually("both processes", SOON, async || {
        let stats = node.cri().pod_sandbox_stats(request.clone()).await?.stats;
        let stats = stats.context("stats")?;
        ensure!(stats.attributes.context("attributes")?.id == pod.id);
        let linux = stats.linux.context("figures")?;
        ensure!(value(linux.memory.context("memory")?.usage_bytes) > 0);
        let network = linux.network.context("a network")?;
        let eth0 = network.default_interface.context("an interface")?;
        ensure!(eth0.name == "eth0" && network.interfaces.len() == 1, "{eth0:?}");
        let [container] = linux.containers.as_slice() else { bail!("{:?}", linux.containers) };
        ensure!(container.attributes.as_ref().is_some_and(|one| one.id == id));
        // The shell and its two children.
        let processes = value(linux.process.context("processes")?.process_count);
        Ok((processes == 3).then_some(()))
    })
    .await?;
    let all = node.cri().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None });
    assert_eq!(all.await?.stats.len(), 1);
    node.stop_pod(&pod.id).await?;
    let all = node.cri().list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None });
    assert!(all.await?.stats.is_empty());
    node.finish().await
}
