//! fsck, gc and du.

use berth_tests::prelude::*;
use serde_json::Value;

use crate::ctl::{at, ok, own_image, push, run};

/// The directory of an image's layer that has the file `mark`.
async fn marked(node: &Node, name: &str) -> Result<std::path::PathBuf> {
    let found = ok(node, &["--output", "json", "image", "inspect", name]).await?.document()?;
    let path = at(&found, "/0/layers/1/path").as_str().context("a layer's directory")?.to_owned();
    Ok(std::path::Path::new(&path).join("fs/mark"))
}

#[tokio::test]
async fn damage_is_found_told_and_repaired() -> Result<()> {
    let node = Node::start().await?;
    let reference = push(&node, "damaged:1", &own_image("damaged")?.build())?;
    ok(&node, &["image", "pull", &reference]).await?;
    let sound = ok(&node, &["fsck"]).await?.text();
    assert_eq!(sound, "2 of 2 layers are sound\n");

    let mark = marked(&node, &reference).await?;
    std::fs::write(&mark, "another")?;
    let found = run(&node, &["fsck", &reference]).await?;
    assert_eq!(found.code, Some(5), "{found:?}");
    for words in ["damaged: ", "mark", "1 of 2 layers are sound"] {
        assert!(found.text().contains(words), "{words} is not in {}", found.text());
    }
    let found = run(&node, &["--output", "json", "fsck"]).await?.document()?;
    assert_eq!(found["clean"], false);
    let bad = found["layers"].as_array().context("layers")?;
    let bad = bad.iter().find(|layer| layer["health"] == "damaged").context("a damaged one")?;
    assert!(at(bad, "/damage/0/path").as_str().is_some_and(|path| path.contains("mark")), "{bad}");

    let repaired = ok(&node, &["fsck", "--repair"]).await?.text();
    assert!(repaired.contains("repaired: image sha256:"), "{repaired}");
    assert_eq!(std::fs::read_to_string(marked(&node, &reference).await?)?, "damaged");
    assert_eq!(ok(&node, &["fsck"]).await?.text(), sound);
    let unknown = run(&node, &["fsck", "nothing:1"]).await?;
    assert!(unknown.code == Some(3) && unknown.err.contains("nothing:1"), "{unknown:?}");
    node.finish().await
}

#[tokio::test]
async fn what_nothing_needs_is_told_and_removed() -> Result<()> {
    let node = Node::start().await?;
    let reference = push(&node, "needed:1", &own_image("needed")?.build())?;
    ok(&node, &["image", "pull", &reference]).await?;
    let orphan = node.root().join("image/layers/0123456789abcdef0123");
    std::fs::create_dir_all(orphan.join("fs"))?;
    std::fs::write(orphan.join("fs/file"), vec![b'x'; 100_000])?;
    let path = orphan.to_str().context("a path")?;

    let told = ok(&node, &["gc", "--dry-run"]).await?.text();
    assert!(told.contains(&format!("would remove {path}")), "{told}");
    assert!(orphan.exists());
    let done = ok(&node, &["--output", "json", "gc"]).await?.document()?;
    let removed = done["removed"].as_array().context("what was removed")?;
    assert!(removed.iter().any(|one| one["path"] == path), "{done}");
    assert!(done["bytes"].as_u64() >= Some(100_000), "{done}");
    assert!(!orphan.exists());
    assert_eq!(ok(&node, &["gc"]).await?.text(), "removed 0 things, 0 B\n");

    let why = ok(&node, &["gc", "--explain", &reference]).await?.text();
    assert!(why.contains(&format!("kept: the image has the name {reference}")), "{why}");
    let layer = marked(&node, &reference).await?;
    let name = layer.ancestors().nth(2).and_then(|dir| dir.file_name()).context("a layer")?;
    let why = ok(&node, &["gc", "--explain", &name.to_string_lossy()]).await?.text();
    assert!(why.contains("kept: it is a layer of image sha256:"), "{why}");
    node.finish().await
}

#[tokio::test]
async fn the_disk_is_accounted_for() -> Result<()> {
    let node = Node::start().await?;
    let one = push(&node, "used-one:1", &own_image("used-one")?.build())?;
    let two = push(&node, "used-two:1", &own_image("used-two")?.build())?;
    ok(&node, &["image", "pull", &one]).await?;
    ok(&node, &["image", "pull", &two]).await?;
    let text = ok(&node, &["du", "--all"]).await?.text();
    for words in ["IMAGE", &one, &two, "LAYER", "CONTAINER", "TOTAL", "blobs", "trash"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    let found = ok(&node, &["--output", "json", "du"]).await?.document()?;
    let images = found["images"].as_array().context("the images")?;
    let of = |image: &Value, key: &str| image[key].as_u64().unwrap_or(0);
    // busybox is in both, so that each one's own part is small.
    assert_eq!(images.len(), 2);
    for image in images {
        assert!(of(image, "bytes") > 100_000 && of(image, "uniqueBytes") < 100_000, "{image}");
    }
    assert_eq!(found["layers"].as_array().map(Vec::len), Some(3));
    node.finish().await
}
