//! Archives that are loaded.

use std::io::Write;

use berth_tests::image::{Format, Packing};
use berth_tests::prelude::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::ctl::{docker_archive, file, names, nothing_left, oci_archive, ok, own_image, run_with};

fn packed(tar: &[u8], packing: Packing) -> Result<Vec<u8>> {
    Ok(match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(tar)?;
            encoder.finish()?
        }
        Packing::Zstd => zstd::encode_all(tar, 1)?,
    })
}

/// What a shell script prints in a container of this image.
async fn output(node: &Node, pod: &str, image: &str, script: &str) -> Result<String> {
    let pod = node.pod(pod).await?;
    let mut config = shell("main", script);
    config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
    let text = node.output(&pod, config).await;
    node.remove_pod(&pod.id).await?;
    text
}

#[tokio::test]
async fn several_images_of_an_archive_are_loaded_and_run() -> Result<()> {
    let node = Node::start().await?;
    let (one, two) = (own_image("one")?, own_image("two")?.format(Format::Docker));
    let docker = docker_archive(&[(&one, &["load/one:1", "load/uno:1"]), (&two, &["load/two:1"])]);
    let oci = oci_archive(&[
        (&one.build(), "docker.io/load/one:1"),
        (&one.build(), "docker.io/load/uno:1"),
        (&two.build(), "docker.io/load/two:1"),
    ]);
    for (form, tar) in [("docker", docker), ("oci", oci)] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let bytes = packed(&tar, packing)?;
            let loaded = if packing == Packing::Gzip {
                run_with(&node, &["image", "load", "-"], &bytes).await?
            } else {
                let path = file(&node, &format!("{form}.tar"), &bytes)?;
                ok(&node, &["image", "load", &path.to_string_lossy()]).await?
            };
            let lines = ["one", "uno", "two"].map(|n| format!("loaded docker.io/load/{n}:1\n"));
            assert_eq!((loaded.code, loaded.text()), (Some(0), lines.concat()), "{loaded:?}");
            assert_eq!(
                output(&node, &format!("{form}-{packing:?}-1"), "load/uno:1", "cat /mark").await?,
                "one"
            );
            assert_eq!(
                output(&node, &format!("{form}-{packing:?}-2"), "load/two:1", "cat /mark").await?,
                "two"
            );
            ok(&node, &["image", "remove", "load/one:1", "load/two:1"]).await?;
            nothing_left(&node).await?;
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_load_says_how_far_it_is() -> Result<()> {
    let node = Node::start().await?;
    let image = own_image("progress")?;
    let tar = docker_archive(&[(&image, &["load/progress:1"])]);
    // The end of the archive is held back until the beginning has been seen.
    let mut child = crate::ctl::command(&node, &["--output", "json", "image", "load"])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let mut out = tokio::io::BufReader::new(child.stdout.take().context("its output")?);
    let half = tar.len() / 2;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
    stdin.write_all(tar.get(..half).context("half")?).await?;
    let mut line = String::new();
    let seen = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            line.clear();
            ensure!(out.read_line(&mut line).await? > 0, "it ended");
            let event: serde_json::Value = serde_json::from_str(&line)?;
            if event["state"] == "receiving" && event["received"].as_u64() > Some(0) {
                return Ok(event);
            }
        }
    });
    let seen = seen.await??;
    assert!(seen["received"].as_u64() <= Some(half as u64), "{seen}");
    stdin.write_all(tar.get(half..).context("half")?).await?;
    drop(stdin);
    let mut last = String::new();
    loop {
        line.clear();
        if out.read_line(&mut line).await? == 0 {
            break;
        }
        last.clone_from(&line);
    }
    assert!(child.wait().await?.success());
    let done: serde_json::Value = serde_json::from_str(&last)?;
    let id = image.build().config.digest;
    let want = json!({"event": "done",
        "images": [{"id": id, "tags": ["docker.io/load/progress:1"]}]});
    assert_eq!(done, want);
    node.finish().await
}

#[tokio::test]
async fn a_caller_that_is_killed_half_way_leaves_nothing() -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let node = Node::start().await?;
    let tar = docker_archive(&[(&own_image("killed")?, &["load/killed:1"])]);
    let mut child = crate::ctl::command(&node, &["image", "load"])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    stdin.write_all(tar.get(..tar.len() / 2).context("half")?).await?;
    let staging = node.root().join("image/staging");
    true_within("something is spooled", Duration::from_secs(10), async || {
        Ok(std::fs::read_dir(&staging)?.next().is_some())
    })
    .await?;
    child.kill().await?;
    nothing_left(&node).await?;
    assert!(names(&node).await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn images_without_a_name_get_the_repository_that_is_given() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("nameless")?.build();
    let tar = oci_archive(&[(&built, "")]);
    let loaded = run_with(&node, &["image", "load"], &tar).await?;
    assert_eq!(loaded.text(), format!("loaded {}\n", built.config.digest), "{loaded:?}");
    let args = ["image", "load", "--repository", "given/name"];
    let loaded = run_with(&node, &args, &tar).await?;
    assert_eq!(loaded.text(), "loaded docker.io/given/name:latest\n", "{loaded:?}");
    node.finish().await
}
