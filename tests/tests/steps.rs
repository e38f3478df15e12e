//! Every named step of an operation fails, and the daemon dies at every one: before and after
//! its work. What is left must be what was before, or the operation's whole result.
//!
//! Needs the daemon built with the feature `failpoints` (`BERTH_DIST_FAILPOINTS`).
#![forbid(unsafe_code)]

use std::process::Command;

use berth_tests::footprint::Footprint;
use berth_tests::node::binaries;
use berth_tests::prelude::*;

/// The points of one operation, before and after each of its steps.
fn points(operation: &str) -> Result<Vec<String>> {
    let berthd = binaries(true).join("berthd");
    let output = Command::new(&berthd)
        .arg("failpoints")
        .output()
        .with_context(|| format!("{} (`cargo xtask test` builds it)", berthd.display()))?;
    ensure!(output.status.success(), "berthd failpoints: {output:?}");
    let names = String::from_utf8(output.stdout)?;
    let of_operation = names.lines().filter(|name| name.starts_with(&format!("{operation}.")));
    let points: Vec<String> =
        of_operation.flat_map(|name| [name.to_owned(), format!("{name}+")]).collect();
    ensure!(points.len() >= 4, "points of {operation}: {names}");
    Ok(points)
}

/// What a stop may leave for later.
const LEFT_OVER: [&str; 2] = ["stop.network", "stop.namespaces"];

/// A node that has run a pod and a container once: what stays for ever is there already.
async fn node() -> Result<Node> {
    let node = Node::builder().failpoints("").start().await?;
    node.pull("busybox:1").await?;
    Ok(node)
}

/// The daemon anew, with this point armed.
async fn arm(node: &mut Node, point: &str) -> Result<()> {
    node.arm(point);
    if node.daemon_pid().is_some() {
        node.terminate().await?;
    }
    node.launch().await
}

/// Waits until the machine looks as before.
async fn as_before(node: &Node, point: &str, before: &Footprint) -> Result<()> {
    eventually(&format!("nothing left after {point}"), SOON, async || {
        let now = node.footprint()?;
        let left: Vec<&String> =
            now.difference(before).filter(|line| !line.contains("-shims")).collect();
        if left.is_empty() { Ok(Some(())) } else { bail!("left: {left:#?}") }
    })
    .await
}

fn named(point: &str, error: &anyhow::Error) {
    let step = point.trim_end_matches('+');
    let text = format!("{error:#}");
    assert!(text.contains(step), "{step} is not named by {text}");
}

/// A container of this pod runs and ends: the pod is whole.
async fn works(node: &Node, pod: &Pod) -> Result<()> {
    let mut config = shell("probe", "exit 7");
    config.log_path = "probe.log".into();
    let id = node.run(pod, config).await?;
    assert_eq!(node.exited(&id).await?.exit_code, 7);
    node.remove_container(&id).await
}

#[tokio::test]
async fn run_fails_at_every_step() -> Result<()> {
    let mut node = node().await?;
    for point in points("run")? {
        arm(&mut node, &format!("{point}=error*1")).await?;
        let before = node.footprint()?;
        let config = node.pod_config("failing")?;
        let error = node.run_pod(config.clone()).await.expect_err(&point);
        named(&point, &error);
        as_before(&node, &point, &before).await?;
        assert!(node.pods().await?.is_empty(), "{point}");
        // kubelet tries again.
        let pod = node.run_pod(config).await.with_context(|| point.clone())?;
        works(&node, &pod).await.with_context(|| point.clone())?;
        node.remove_pod(&pod.id).await?;
        as_before(&node, &point, &before).await?;
    }
    node.finish().await
}

/// A container that takes every step of its create: one with an image volume.
fn of_all_steps(node: &Node) -> ContainerConfig {
    let volume = Mount {
        container_path: "/volume".into(),
        readonly: true,
        image: Some(node.image("busybox:1")),
        ..Default::default()
    };
    ContainerConfig { mounts: vec![volume], ..shell("main", "exit 7") }
}

#[tokio::test]
async fn create_fails_at_every_step() -> Result<()> {
    let mut node = node().await?;
    let pod = node.pod("host").await?;
    for point in points("create")? {
        arm(&mut node, &format!("{point}=error*1")).await?;
        let before = node.footprint()?;
        let error = node.create(&pod, of_all_steps(&node)).await.expect_err(&point);
        named(&point, &error);
        as_before(&node, &point, &before).await?;
        assert!(node.containers().await?.is_empty(), "{point}");
        works(&node, &pod).await.with_context(|| point.clone())?;
    }
    node.finish().await
}

#[tokio::test]
async fn start_fails_at_every_step() -> Result<()> {
    let mut node = node().await?;
    let pod = node.pod("host").await?;
    for point in points("start")? {
        arm(&mut node, &format!("{point}=error*1")).await?;
        let before = node.footprint()?;
        let id = node.create(&pod, shell("main", "sleep 1000")).await?;
        let error = node.start_container(&id).await.expect_err(&point);
        named(&point, &error);
        let status = node.container(&id).await?;
        assert_eq!(status.state(), ContainerState::ContainerExited, "{point}: {status:?}");
        assert!(!status.reason.is_empty() && !status.message.is_empty(), "{point}: {status:?}");
        node.remove_container(&id).await?;
        as_before(&node, &point, &before).await?;
        works(&node, &pod).await.with_context(|| point.clone())?;
    }
    node.finish().await
}

#[tokio::test]
async fn stop_fails_at_every_step() -> Result<()> {
    let mut node = node().await?;
    for point in points("stop")? {
        arm(&mut node, &format!("{point}=error*1")).await?;
        let before = node.footprint()?;
        let pod = node.pod("stopping").await?;
        node.run(&pod, shell("main", "sleep 1000")).await?;
        match node.stop_pod(&pod.id).await {
            Err(error) => named(&point, &error),
            // What cannot be taken away holds up nobody: it is left over, and tried again.
            Ok(()) => assert!(LEFT_OVER.contains(&point.trim_end_matches('+')), "{point}"),
        }
        node.stop_pod(&pod.id).await.with_context(|| point.clone())?;
        let status = node.pod_status(&pod.id).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxNotready, "{point}");
        node.remove_pod(&pod.id).await?;
        as_before(&node, &point, &before).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn the_daemon_dies_at_every_step_of_run() -> Result<()> {
    let mut node = node().await?;
    for point in points("run")? {
        arm(&mut node, &format!("{point}=abort")).await?;
        let before = node.footprint()?;
        let config = node.pod_config("dying")?;
        node.run_pod(config.clone()).await.expect_err(&point);
        node.ended().await.with_context(|| point.clone())?;
        arm(&mut node, "").await?;
        // Undone or finished: either way kubelet's next try has one whole pod.
        let pod = node.run_pod(config).await.with_context(|| point.clone())?;
        let listed: Vec<String> = node.pods().await?.into_iter().map(|pod| pod.id).collect();
        assert_eq!(listed, std::slice::from_ref(&pod.id), "{point}");
        let status = node.pod_status(&pod.id).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxReady, "{point}");
        assert!(!status.network.unwrap_or_default().ip.is_empty(), "{point}");
        works(&node, &pod).await.with_context(|| point.clone())?;
        node.remove_pod(&pod.id).await?;
        as_before(&node, &point, &before).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn the_daemon_dies_at_every_step_of_create_and_start() -> Result<()> {
    let mut node = node().await?;
    let pod = node.pod("host").await?;
    for point in points("create")?.into_iter().chain(points("start")?) {
        arm(&mut node, &format!("{point}=abort")).await?;
        let before = node.footprint()?;
        let script = "while [ ! -e /tmp/end ]; do usleep 10000; done; exit 9";
        let config =
            ContainerConfig { mounts: of_all_steps(&node).mounts, ..shell("main", script) };
        node.run(&pod, config.clone()).await.expect_err(&point);
        node.ended().await.with_context(|| point.clone())?;
        arm(&mut node, "").await?;
        let ready = node.pod_status(&pod.id).await?.state();
        assert_eq!(ready, PodSandboxState::SandboxReady, "{point}");
        let left = node.containers().await?;
        assert!(left.len() <= 1, "{point}: {left:?}");
        for container in &left {
            settle(&node, container).await.with_context(|| point.clone())?;
            node.remove_container(&container.id).await?;
        }
        as_before(&node, &point, &before).await?;
        works(&node, &pod).await.with_context(|| point.clone())?;
    }
    node.finish().await
}

/// Whatever state it is in, it is one that goes on.
async fn settle(node: &Node, container: &Container) -> Result<()> {
    let id = &container.id;
    match container.state() {
        ContainerState::ContainerCreated => node.start_container(id).await?,
        ContainerState::ContainerRunning => {}
        ContainerState::ContainerExited => {
            let status = node.container(id).await?;
            ensure!(!status.reason.is_empty(), "{status:?}");
            return Ok(());
        }
        ContainerState::ContainerUnknown => bail!("{id} is unknown"),
    }
    node.sh(id, "touch /tmp/end").await?;
    let code = node.exited(id).await?.exit_code;
    ensure!(code == 9, "exit code {code}");
    Ok(())
}

#[tokio::test]
async fn the_daemon_dies_at_every_step_of_stop() -> Result<()> {
    let mut node = node().await?;
    for point in points("stop")? {
        arm(&mut node, &format!("{point}=abort")).await?;
        let before = node.footprint()?;
        let pod = node.pod("stopping").await?;
        let id = node.run(&pod, shell("main", "sleep 1000")).await?;
        node.stop_pod(&pod.id).await.expect_err(&point);
        node.ended().await.with_context(|| point.clone())?;
        arm(&mut node, "").await?;
        node.stop_pod(&pod.id).await.with_context(|| point.clone())?;
        let status = node.pod_status(&pod.id).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxNotready, "{point}");
        let status = node.container(&id).await?;
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerState::ContainerExited, 137),
            "{point}"
        );
        node.remove_pod(&pod.id).await?;
        as_before(&node, &point, &before).await?;
    }
    node.finish().await
}
