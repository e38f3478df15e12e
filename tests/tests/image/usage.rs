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
async fn a_tag_that_moves_leaves_its_containers() -> Result<()> {
    let node = Node::start().await?;
    let old = push(&node, "moving", "1", &own_image("old")?.build())?;
    let old_id = try_pull(&node, &old).await?;
    let pod = node.pod("mover").await?;
    let mut config = shell("main", "sleep 1000");
    config.image = Some(spec(&old));
    let id = node.run(&pod, config).await?;
    push(&node, "moving", "1", &own_image("new")?.build())?;
    let new_id = try_pull(&node, &old).await?;
    assert_ne!(old_id, new_id);
    // Nothing but the container needs the old layers any more.
    remove(&node, &old_id).await?;
    assert_eq!(node.sh(&id, "cat /mark").await?, "old");
    assert_eq!(node.container(&id).await?.image_id, old_id);
    assert_eq!(find(&node, &old).await?.context("the new image")?.id, new_id);
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
