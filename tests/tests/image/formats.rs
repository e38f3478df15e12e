//! Every form that images come in.

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Format, Image, Layer, Packing, index};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, archive};
use serde_json::json;

use crate::{file_layer, find, noise, output, own_image, push, try_pull};

#[tokio::test]
async fn every_format_and_packing_runs() -> Result<()> {
    let node = Node::start().await?;
    for (name, format, packing) in [
        ("oci-plain", Format::Oci, Packing::Plain),
        ("oci-gzip", Format::Oci, Packing::Gzip),
        ("oci-zstd", Format::Oci, Packing::Zstd),
        ("docker-gzip", Format::Docker, Packing::Gzip),
        ("docker-plain", Format::Docker, Packing::Plain),
    ] {
        let mark = Layer::packed(&archive(&[Entry::file("mark", name)]), packing)?;
        let image = Image::new(vec![busybox_layer()?, mark]).format(format);
        let image = image.config(json!({"Env": ["PATH=/bin"]})).build();
        let reference = push(&node, name, "1", &image)?;
        assert_eq!(output(&node, &reference, "cat /mark").await?, name);
    }
    node.finish().await
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_platform() -> Result<()> {
    let node = Node::start().await?;
    for (name, format) in [("oci-index", Format::Oci), ("docker-list", Format::Docker)] {
        let own = own_image(name)?.format(format);
        let foreign = own_image("foreign")?.format(format).architecture("s390x");
        let built = index(&[foreign.clone(), own.clone()], &own);
        let reference = push(&node, name, "1", &built)?;
        assert_eq!(try_pull(&node, &reference).await?, own.build().config.digest);
        let found = find(&node, &reference).await?.context("the image")?;
        let digest = format!("{}@{}", reference.trim_end_matches(":1"), built.manifest.digest);
        assert_eq!(found.repo_digests, [digest]);
        assert_eq!(output(&node, &reference, "cat /mark").await?, name);

        let built = index(std::slice::from_ref(&foreign), &foreign);
        let reference = push(&node, &format!("{name}-foreign"), "1", &built)?;
        let error = try_pull(&node, &reference).await.unwrap_err();
        assert!(!error.message().is_empty());
        assert!(find(&node, &reference).await?.is_none());
    }
    node.finish().await
}

#[tokio::test]
async fn images_of_1_20_and_120_layers_run() -> Result<()> {
    let node = Node::start().await?;
    for count in [1, 20, 120] {
        let mut layers = vec![busybox_layer()?];
        for number in 1..count {
            let text = format!("{number}\n");
            layers.push(Layer::new(&[
                Entry::dir("layers"),
                Entry::file(&format!("layers/{number}"), &text),
                Entry::file("layers/top", &text),
            ])?);
        }
        let image = Image::new(layers).config(json!({"Env": ["PATH=/bin"]})).build();
        let reference = push(&node, &format!("deep{count}"), "1", &image)?;
        let text = output(
            &node,
            &reference,
            "ls /layers 2>/dev/null | wc -l; cat /layers/top 2>/dev/null; true",
        )
        .await?;
        let wanted = if count == 1 { "0\n".into() } else { format!("{count}\n{}\n", count - 1) };
        assert_eq!(text, wanted, "{count} layers");
    }
    node.finish().await
}

#[tokio::test]
async fn shared_layers_are_fetched_once() -> Result<()> {
    let node = Node::start().await?;
    let big = Layer::packed(&archive(&[Entry::file("big", &noise(3 << 20))]), Packing::Plain)?;
    for (index, name) in ["share-a", "share-b"].into_iter().enumerate() {
        let layers = vec![busybox_layer()?, big.clone(), file_layer("mark", name)?];
        let reference = push(&node, name, "1", &Image::new(layers).build())?;
        let before = node.proxy().passed();
        try_pull(&node, &reference).await?;
        let passed = node.proxy().passed() - before;
        assert_eq!(passed > 3 << 20, index == 0, "{name}: {passed} bytes");
    }
    node.finish().await
}

#[tokio::test]
async fn equal_pulls_at_once_all_get_the_image() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::packed(&archive(&[Entry::file("big", &noise(4 << 20))]), Packing::Plain)?;
    let image = Image::new(vec![layer]).build();
    let reference = push(&node, "at-once", "1", &image)?;
    let before = node.proxy().passed();
    let pulls = (0..5).map(|_| async { Ok(try_pull(&node, &reference).await?) });
    let ids = berth_tests::eventually::all(pulls).await?;
    assert!(ids.iter().all(|id| *id == image.config.digest), "{ids:?}");
    let passed = node.proxy().passed() - before;
    assert!(!node.is_berth() || passed < 6 << 20, "fetched once, not {passed} bytes");
    node.finish().await
}
