//! Archives that are none, or lie: a clear error, and nothing is left.

use berth_tests::image::{Image, Packing};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, Kind, archive};

use crate::ctl::{
    docker_archive, file_layer, names, nothing_left, oci_archive, own_image, run_with,
};

/// The bytes after the header of a member.
fn content_of(tar: &[u8], name: &str) -> Result<usize> {
    let at = tar.windows(name.len()).position(|bytes| bytes == name.as_bytes());
    Ok(at.with_context(|| format!("{name} in the archive"))? + 512)
}

#[tokio::test]
async fn bad_archives_are_refused_with_a_reason() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("bad")?.build();
    let good = oci_archive(&[(&built, "docker.io/load/bad:1")]);
    let blob = &built.blobs.first().context("a layer")?.digest;
    let name = format!("blobs/{}", blob.replacen(':', "/", 1));
    let mut flipped = good.clone();
    let at = content_of(&good, &name)? + 100;
    *flipped.get_mut(at).context("a byte of the layer")? ^= 1;
    let truncated = good.get(..at).context("its beginning")?.to_vec();
    let named = |name: &str| archive(&[Entry::file(name, "x")]);
    let mut missing = built.clone();
    missing.blobs.remove(0);
    // What the layer holds is not what the configuration says.
    let mut lying = Image::new(vec![file_layer("f", "said")?]);
    let said = lying.layers.first().context("a layer")?.diff_id.clone();
    lying.layers = vec![file_layer("f", "held")?];
    lying.layers.iter_mut().for_each(|layer| layer.diff_id.clone_from(&said));
    let climbing = Entry::new("l/layer.tar", Kind::Symlink("../../../etc/passwd".into()));
    let gzip = berth_tests::image::Layer::packed(&good, Packing::Gzip)?.blob.bytes;
    for (what, bytes, words) in [
        ("nothing", Vec::new(), "is empty"),
        ("no archive", b"#!/bin/sh\necho not an archive\n".repeat(100), "is no tar"),
        ("another tar", named("hello"), "neither index.json nor manifest.json"),
        ("truncated", truncated, "ends within an entry"),
        ("truncated gzip", gzip.get(..5000).context("gzip")?.to_vec(), "read the tar stream"),
        ("traversal", named("../../../tmp/evil"), "\"../../../tmp/evil\" outside of itself"),
        ("absolute", named("/tmp/evil"), "\"/tmp/evil\" outside of itself"),
        ("link", archive(&[climbing]), "\"../../../etc/passwd\", outside of itself"),
        ("wrong digest", flipped, &format!("{name} holds sha256:")),
        ("missing layer", oci_archive(&[(&missing, "x.test/a:1")]), &format!("has no {name}")),
        (
            "wrong diff-id",
            docker_archive(&[(&lying, &["x:1"])]),
            &format!("not the diff-id {said}"),
        ),
        ("bad name", docker_archive(&[(&own_image("n")?, &["BAD:1"])]), "\"BAD:1\""),
    ] {
        let ran = run_with(&node, &["image", "load"], &bytes).await?;
        assert_eq!((ran.code, ran.text().as_str()), (Some(1), ""), "{what}: {ran:?}");
        assert!(ran.err.contains(words), "{what}: {words:?} is not in {}", ran.err);
        nothing_left(&node).await?;
    }
    assert!(names(&node).await?.is_empty());
    assert!(!std::path::Path::new("/tmp/evil").exists());
    node.finish().await
}
