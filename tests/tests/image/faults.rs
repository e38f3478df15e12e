//! What goes wrong on the way of a pull.

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Built, Image, Layer, Packing};
use berth_tests::node::plain_host;
use berth_tests::prelude::*;
use berth_tests::registry::Registry;
use berth_tests::tar::{Entry, Kind, archive};
use serde_json::json;

use crate::{file_layer, find, noise, output, push, try_pull};

#[tokio::test]
async fn a_pull_cut_at_any_byte_is_an_error_and_the_next_one_is_whole() -> Result<()> {
    let node = Node::start().await?;
    let big = Layer::packed(&archive(&[Entry::file("big", &noise(2 << 20))]), Packing::Gzip)?;
    let image =
        Image::new(vec![busybox_layer()?, big]).config(json!({"Env": ["PATH=/bin"]})).build();
    let reference = push(&node, "cut", "1", &image)?;
    for bytes in [0, 100, 2_000, 300_000, 1_000_000, 1_800_000] {
        node.proxy().cut_after(bytes);
        let outcome = try_pull(&node, &reference).await;
        node.proxy().mend();
        // What came before is kept by peers that resume; then the rest may have sufficed.
        if outcome.is_err() || node.is_berth() {
            outcome.unwrap_err();
            assert!(find(&node, &reference).await?.is_none(), "after {bytes} bytes");
        }
    }
    assert_eq!(try_pull(&node, &reference).await?, image.config.digest);
    let sum = output(&node, &reference, "sha256sum < /big | cut -d' ' -f1").await?;
    let wanted = berth_tests::image::digest(noise(2 << 20).as_bytes());
    assert_eq!(format!("sha256:{}", sum.trim()), wanted);
    node.finish().await
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_pull() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::packed(&archive(&[Entry::file("big", &noise(8 << 20))]), Packing::Plain)?;
    let image = Image::new(vec![layer]).build();
    let reference = push(&node, "left", "1", &image)?;
    let early = tokio::time::timeout(Duration::from_millis(1), try_pull(&node, &reference)).await;
    assert!(early.is_err() || early.is_ok_and(|pulled| pulled.is_ok()));
    assert_eq!(try_pull(&node, &reference).await?, image.config.digest);
    node.finish().await
}

#[tokio::test]
async fn content_that_differs_from_its_digest_is_refused() -> Result<()> {
    let node = Node::start().await?;
    let registry = Registry::http()?;
    let relay = berth_tests::proxy::Proxy::new(node.host().listen()?, registry.address())?;
    node.write_hosts("lying.test", &plain_host(relay.address()))?;
    for what in ["layer", "config", "manifest"] {
        let own = file_layer("mark", &format!("lie-{what}"))?;
        let layer_digest = own.blob.digest.clone();
        let built = Image::new(vec![busybox_layer()?, own]).build();
        registry.push(what, "1", &built)?;
        let (digest, size) = match what {
            "layer" => (layer_digest.as_str(), blob_size(&built, &layer_digest)?),
            "config" => (built.config.digest.as_str(), built.config.bytes.len()),
            _ => (built.manifest.digest.as_str(), built.manifest.bytes.len()),
        };
        let mut bytes = built
            .blobs
            .iter()
            .chain([&built.manifest])
            .find(|b| b.digest == digest)
            .context("the blob")?
            .bytes
            .clone();
        // One bit, where every format still parses: the length stays.
        let at = size / 2;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        registry.corrupt(digest, &bytes)?;
        let name = format!("lying.test/{what}:1");
        let error = try_pull(&node, &name).await.unwrap_err();
        assert!(!error.message().is_empty(), "{what}");
        assert!(find(&node, &name).await?.is_none(), "{what}");
    }
    node.finish().await
}

fn blob_size(built: &Built, digest: &str) -> Result<usize> {
    let blob = built.blobs.iter().find(|blob| blob.digest == digest);
    Ok(blob.context("the blob")?.bytes.len())
}

#[tokio::test]
async fn a_layer_that_differs_from_its_diff_id_is_refused() -> Result<()> {
    let node = Node::start().await?;
    let mut layer = file_layer("mark", "diff-id")?;
    layer.diff_id = format!("sha256:{}", "1".repeat(64));
    let image = Image::new(vec![busybox_layer()?, layer]).build();
    let reference = push(&node, "wrong-diff-id", "1", &image)?;
    try_pull(&node, &reference).await.unwrap_err();
    assert!(find(&node, &reference).await?.is_none());
    node.finish().await
}

#[tokio::test]
async fn entries_that_climb_out_of_a_layer_stay_inside_or_fail() -> Result<()> {
    let node = Node::start().await?;
    let outside = node.dir().join("outside");
    std::fs::create_dir(&outside)?;
    let climb = format!("../../../../../../../../..{}/evil", outside.display());
    let through = Entry::new("leave", Kind::Symlink(outside.display().to_string()));
    for (name, entries) in [
        ("dotdot", vec![Entry::file(&climb, "x")]),
        ("symlink", vec![through, Entry::file("leave/evil", "x")]),
        ("hardlink", vec![Entry::new("passwd", Kind::Hardlink("../../../etc/shadow".into()))]),
    ] {
        let image = Image::new(vec![busybox_layer()?, Layer::new(&entries)?]).build();
        let reference = push(&node, &format!("climb-{name}"), "1", &image)?;
        drop(try_pull(&node, &reference).await);
        assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "{name}");
    }
    node.finish().await
}
