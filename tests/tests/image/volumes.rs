//! Images that are mounted into containers of other images.

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Image, Layer};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, Kind};
use serde_json::json;

use crate::{file_layer, list, push, remove, spec, try_pull};

fn volume(image: &str, at: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: at.to_owned(),
        readonly: true,
        image: Some(spec(image)),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

/// An image that is no system: files, links, and a whiteout in its upper layer.
fn data() -> Result<Image> {
    let below = Layer::new(&[
        Entry::dir("d"),
        Entry::dir("d/sub"),
        Entry::file("d/sub/file", "below\n"),
        Entry::file("d/gone", "x"),
        Entry::file("run", "#!/bin/sh\necho ran\n").mode(0o755),
        Entry::new("absolute", Kind::Symlink("/d/sub".into())),
        Entry::new("out", Kind::Symlink("../../../../etc".into())),
        Entry::new("fifo", Kind::Fifo),
    ])?;
    let above = Layer::new(&[Entry::dir("d"), Entry::file("d/.wh.gone", "")])?;
    Ok(Image::new(vec![below, above]))
}

fn with(volumes: &[Mount], script: &str) -> ContainerConfig {
    ContainerConfig { mounts: volumes.to_vec(), ..shell("main", script) }
}

/// What is mounted of overlays in the daemon's namespace.
fn overlays(node: &Node) -> Result<usize> {
    let table = node.host().run("cat", &["/proc/self/mountinfo"])?;
    Ok(table.lines().filter(|line| line.contains(" - overlay ")).count())
}

#[tokio::test]
async fn an_image_is_a_read_only_volume() -> Result<()> {
    let node = Node::start().await?;
    let before = overlays(&node)?;
    let reference = push(&node, "data", "1", &data()?.build())?;
    let image_id = try_pull(&node, &reference).await?;
    let single = push(&node, "single", "1", &Image::new(vec![file_layer("f", "one\n")?]).build())?;
    try_pull(&node, &single).await?;
    let pod = node.pod("volumes").await?;
    let script = "cat /v/d/sub/file /s/file /f /one/f; ls /v/d; \
                  touch /v/x 2>&1 | grep -o 'Read-only file system'; /v/run 2>&1 | grep -o denied; \
                  grep -c ' /v overlay ro,' /proc/mounts";
    let volumes = [
        volume(&reference, "/v", ""),
        volume(&image_id, "/s", "d/sub"),
        volume(&reference, "/f", "d/sub/file"),
        volume(&single, "/one", ""),
    ];
    let text = "below\nbelow\nbelow\none\nsub\nRead-only file system\ndenied\n1\n";
    assert_eq!(node.output(&pod, with(&volumes, script)).await?, text);
    let stays = ContainerConfig { mounts: volumes.into(), ..shell("stays", "sleep 1000") };
    let id = node.run(&pod, stays).await?;
    assert_eq!(overlays(&node)?, before, "the host has no mount of a volume");

    let status = node.container(&id).await?;
    let told = status.mounts.first().context("a mount")?;
    let image = told.image.as_ref().context("its image")?;
    assert_eq!((image.image.as_str(), image.image_ref.as_str()), (reference.as_str(), &*image_id));
    assert_eq!(status.mounts.get(1).context("a second")?.image_sub_path, "d/sub");

    // The volume's layers stay as long as the container.
    remove(&node, &reference).await?;
    assert_eq!(node.sh(&id, "cat /v/d/sub/file").await?, "below\n");
    node.remove_container(&id).await?;
    assert!(list(&node).await?.iter().all(|image| image.id != image_id));
    node.remove_pod(&pod.id).await?;
    node.finish().await
}

#[tokio::test]
async fn links_of_a_volume_lead_nowhere_but_into_it() -> Result<()> {
    let node = Node::start().await?;
    let reference = push(&node, "links", "1", &data()?.build())?;
    try_pull(&node, &reference).await?;
    let pod = node.pod("links").await?;
    // An absolute link is absolute within the image.
    let volumes = [volume(&reference, "/v", "absolute")];
    let first = ContainerConfig { mounts: volumes.into(), ..shell("first", "cat /v/file") };
    assert_eq!(node.output(&pod, first).await?, "below\n");
    for (sub_path, why) in [
        ("out", "No such file"),
        ("out/passwd", "No such file"),
        ("none", "No such file"),
        ("d/sub/file/x", "Not a directory"),
        ("fifo", "neither a directory nor a file"),
    ] {
        let before = node.footprint()?;
        let config = with(&[volume(&reference, "/v", sub_path)], "true");
        let request = node.create_request(&pod, config);
        let error = node.cri().create_container(request).await.expect_err(sub_path);
        assert_eq!(error.code(), tonic::Code::Unknown);
        let message = error.message();
        assert!(message.starts_with("ImageVolumeMountFailed: "), "{message}");
        for part in ["mounts[0].image", &format!("{sub_path:?}"), why] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        assert_eq!(node.footprint()?.difference(&before).next(), None, "{sub_path}");
    }
    node.finish().await
}

#[tokio::test]
async fn volumes_that_make_no_sense_are_refused() -> Result<()> {
    let node = Node::start().await?;
    let image = Image::new(vec![busybox_layer()?]).config(json!({})).build();
    let reference = push(&node, "plain", "1", &image)?;
    try_pull(&node, &reference).await?;
    node.pull("busybox:1").await?;
    let pod = node.pod("refused").await?;
    let good = volume(&reference, "/v", "");
    let cases = [
        ("readonly", Mount { readonly: false, ..good.clone() }),
        ("host_path", Mount { host_path: "/tmp".into(), ..good.clone() }),
        ("image_sub_path", Mount { image_sub_path: "../x".into(), ..good.clone() }),
        ("image_sub_path", Mount { image_sub_path: "/x".into(), ..good.clone() }),
        ("image_sub_path", Mount { image: None, image_sub_path: "x".into(), ..good.clone() }),
    ];
    for (field, mount) in cases {
        let request = node.create_request(&pod, with(&[mount], "true"));
        let error = node.cri().create_container(request).await.expect_err(field);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains(&format!("config.mounts[0].{field}")), "{error:?}");
    }
    let absent = node.create_request(&pod, with(&[volume("no.such/image:1", "/v", "")], "true"));
    let error = node.cri().create_container(absent).await.expect_err("an image that is not there");
    assert!(error.message().starts_with("ImageVolumeMountFailed: "), "{error:?}");
    assert!(error.message().contains("no.such/image:1"), "{error:?}");
    node.finish().await
}
