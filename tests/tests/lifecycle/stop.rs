//! Stopping: signals, grace, and calls that overtake each other.

use std::time::Instant;

use berth_tests::image::Image;
use berth_tests::prelude::*;
use serde_json::json;

/// Names the signal that ends it. `wait` lets the trap run at once.
const TRAP: &str = "for s in TERM INT USR1 QUIT; do trap \"echo got $s; exit 9\" $s; done; \
                    echo ready; while :; do sleep 1000 & wait $!; done";
const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 1000; done";

#[tokio::test]
async fn sigterm_comes_first() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("term").await?;
    let id = node.run(&pod, shell("main", TRAP)).await?;
    node.logged(&pod, "main.log", "ready").await?;
    node.stop_container(&id, 30).await?;
    node.logged(&pod, "main.log", "got TERM").await?;
    let status = node.container(&id).await?;
    assert_eq!((status.exit_code, status.state()), (9, ContainerState::ContainerExited));
    node.finish().await
}

#[tokio::test]
async fn the_images_stop_signal_and_then_the_requests_come_first() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("signals").await?;
    let image = Image::new(vec![berth_tests::fixtures::busybox_layer()?])
        .config(json!({"StopSignal": "SIGUSR1", "Env": ["PATH=/bin"]}));
    node.registry().push("usr1", "1", &image.build())?;
    let mut config = container("image", "usr1:1", &["/bin/sh", "-c", TRAP]);
    let id = node.run(&pod, config.clone()).await?;
    node.logged(&pod, "image.log", "ready").await?;
    node.stop_container(&id, 30).await?;
    node.logged(&pod, "image.log", "got USR1").await?;
    if node.is_berth() {
        config.metadata = Some(ContainerMetadata { name: "request".into(), attempt: 0 });
        config.log_path = "request.log".into();
        config.stop_signal = Signal::Sigquit.into();
        let id = node.run(&pod, config).await?;
        node.logged(&pod, "request.log", "ready").await?;
        assert_eq!(node.container(&id).await?.stop_signal(), Signal::Sigquit);
        node.stop_container(&id, 30).await?;
        node.logged(&pod, "request.log", "got QUIT").await?;
    }
    node.finish().await
}

#[tokio::test]
async fn the_grace_passes_before_the_kill() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("grace").await?;
    let id = node.run(&pod, shell("main", DEAF)).await?;
    node.logged(&pod, "main.log", "ready").await?;
    let begin = Instant::now();
    node.stop_container(&id, 1).await?;
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!(node.container(&id).await?.exit_code, 137);
    node.finish().await
}

#[tokio::test]
async fn without_grace_the_kill_is_at_once() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("now").await?;
    let id = node.run(&pod, shell("main", TRAP)).await?;
    node.logged(&pod, "main.log", "ready").await?;
    node.stop_container(&id, 0).await?;
    assert_eq!(node.container(&id).await?.exit_code, 137);
    let log = node.log(&pod, "main.log")?;
    assert_eq!(log.len(), 1, "{log:?}");
    node.finish().await
}

#[tokio::test]
async fn a_later_shorter_stop_cuts_the_first_short() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("cut").await?;
    let id = node.run(&pod, shell("main", DEAF)).await?;
    node.logged(&pod, "main.log", "ready").await?;
    let begin = Instant::now();
    let cri = node.cri().clone();
    let request = StopContainerRequest { container_id: id.clone(), timeout: 45 };
    let long = tokio::spawn(async move { cri.stop_container(request).await });
    // No answer tells that the long one is under way: give it a moment. Either order must do.
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.stop_container(&id, 1).await?;
    long.await??;
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert_eq!(node.container(&id).await?.exit_code, 137);
    node.finish().await
}

#[tokio::test]
async fn a_created_container_stops_and_goes() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("unstarted").await?;
    let id = node.create(&pod, shell("main", "true")).await?;
    node.stop_container(&id, 1).await?;
    node.remove_container(&id).await?;
    assert!(node.containers().await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn children_end_with_the_first_process() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("orphans").await?;
    let script = "setsid sh -c \"trap '' TERM; sleep 1000\" & echo up; sleep 0.2; exit 4";
    let (status, _) = node.run_to_end(&pod, shell("main", script)).await?;
    assert_eq!(status.exit_code, 4);
    node.finish().await
}
