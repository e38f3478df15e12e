//! Images that containers use, and the room that all of it takes.

use berth_tests::prelude::*;

use crate::{find, own_image, push, remove, spec, try_pull};

#[tokio::test]
async fn removing_an_image_in_use_leaves_its_containers() -> Result<()> {
    let node = Node::start().await?;
    let reference = push(&node, "used", "1", &own_image("used")?.build())?;
    try_pull(&node, &reference).await?;
    let pod = node.pod("user").await?;
    let mut config = shell("main", "sleep 1000");
    config.image = Some(spec(&reference));
    let id = node.run(&pod, config).await?;
    remove(&node, &reference).await?;
    assert_eq!(node.sh(&id, "cat /mark").await?, "used");
    assert!(find(&node, &reference).await?.is_none());
    let status = node.container(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn disk_use_is_told() -> Result<()> {
    let node = Node::start().await?;
    node.pull("busybox:1").await?;
    eventually("a use of the disk", SOON, async || {
        let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
        let usage = info.image_filesystems.first().context("an image filesystem")?.clone();
        let mountpoint = usage.fs_id.context("an id")?.mountpoint;
        ensure!(std::path::Path::new(&mountpoint).exists(), "{mountpoint}");
        let bytes = usage.used_bytes.map_or(0, |bytes| bytes.value);
        let inodes = usage.inodes_used.map_or(0, |inodes| inodes.value);
        Ok((usage.timestamp > 0 && bytes > 1_000_000 && inodes > 50).then_some(()))
    })
    .await?;
    node.finish().await
}
