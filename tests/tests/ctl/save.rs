//! Archives that are saved, root filesystems that are imported.

use std::path::Path;

use berth_tests::image::Built;
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, archive};
use serde_json::Value;

use crate::ctl::{
    at, docker_archive, file, nothing_left, oci_archive, ok, own_image, push, run, run_with,
};

/// What tells images apart, of everything that `inspect` says.
async fn digests(node: &Node, name: &str) -> Result<Vec<Value>> {
    let found = ok(node, &["--output", "json", "image", "inspect", name]).await?.document()?;
    let layers = at(&found, "/0/layers").as_array().context("its layers")?;
    let mut all: Vec<Value> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    all.extend([at(&found, "/0/id").clone(), at(&found, "/0/manifestDigest").clone()]);
    Ok(all)
}

#[tokio::test]
async fn what_is_saved_and_loaded_has_the_same_digests() -> Result<()> {
    let node = Node::start().await?;
    let (one, two) = (own_image("saved-one")?, own_image("saved-two")?);
    run_with(&node, &["image", "load"], &oci_archive(&[(&one.build(), "x.test/one:1")])).await?;
    let tar = docker_archive(&[(&two, &["x.test/two:1", "x.test/two:2"])]);
    run_with(&node, &["image", "load"], &tar).await?;
    let names = ["x.test/one:1", "x.test/two:1", "x.test/two:2"];
    let mut before = Vec::new();
    for name in names {
        before.push(digests(&node, name).await?);
    }
    let path = node.dir().join("saved.tar");
    let path = path.to_str().context("a path")?;
    let mut args = vec!["image", "save", "-o", path];
    args.extend(names);
    let saved = ok(&node, &args).await?;
    assert_eq!((saved.text().as_str(), saved.err.contains("archive: saving")), ("", true));
    // To standard output, and as tar itself reads it.
    let streamed =
        ok(&node, &["image", "save", "x.test/one:1", "x.test/two:1", "x.test/two:2"]).await?.out;
    assert_eq!(streamed, std::fs::read(path)?);
    let listed = berth_tests::host::run("tar", &["-tf", path])?;
    for member in ["oci-layout", "index.json", "manifest.json", "blobs/sha256/"] {
        assert!(listed.lines().any(|line| line == member), "{member} is not in {listed}");
    }
    ok(&node, &["image", "remove", "x.test/one:1", "x.test/two:1"]).await?;
    nothing_left(&node).await?;
    ok(&node, &["image", "load", path]).await?;
    for (name, before) in names.iter().zip(before) {
        assert_eq!(digests(&node, name).await?, before, "{name}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_loaded_image_is_pushed_and_pulled_back() -> Result<()> {
    let node = Node::start().await?;
    let address = node.proxy().address();
    let hosts = format!(
        "server = \"http://{address}\"\n[host.\"http://{address}\"]\n\
         capabilities = [\"pull\", \"resolve\", \"push\"]\n"
    );
    node.write_hosts("push.test", &hosts)?;
    let tar = docker_archive(&[(&own_image("pushed")?, &["local/pushed:1"])]);
    run_with(&node, &["image", "load"], &tar).await?;
    let before = digests(&node, "local/pushed:1").await?;
    let args = ["--output", "json", "image", "push", "local/pushed:1", "push.test/there:1"];
    let done = ok(&node, &args).await?.document()?;
    assert_eq!(done["digest"], *before.last().context("the manifest's digest")?, "{done}");
    assert_eq!(done["sent"], 3, "{done}");
    ok(&node, &["image", "remove", "local/pushed:1"]).await?;
    ok(&node, &["image", "pull", "push.test/there:1"]).await?;
    assert_eq!(digests(&node, "push.test/there:1").await?, before);
    let missing = run(&node, &["image", "push", "nothing:1"]).await?;
    assert!(missing.code == Some(3) && missing.err.contains("nothing:1"), "{missing:?}");
    node.finish().await
}

fn blobs(node: &Node) -> usize {
    std::fs::read_dir(node.root().join("image/blobs/sha256")).map_or(0, Iterator::count)
}

fn blob_sizes(built: &Built) -> usize {
    built.blobs.iter().map(|blob| blob.bytes.len()).sum()
}

#[tokio::test]
async fn a_pulled_image_is_saved_with_blobs_from_its_registry() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("pulled-saved")?.build();
    let reference = push(&node, "pulled-saved:1", &built)?;
    ok(&node, &["image", "pull", &reference]).await?;
    let before = digests(&node, &reference).await?;
    assert_eq!(blobs(&node), 0, "a pull keeps no blobs");
    let path = node.dir().join("saved.tar");
    let path = path.to_str().context("a path")?;

    // Without the registry it cannot be had, and no half of a file is left.
    node.proxy().cut_after(1000);
    let failed = run(&node, &["image", "save", "-o", path, &reference]).await?;
    assert!(failed.code == Some(1) && failed.err.contains("not kept here"), "{failed:?}");
    let left = std::fs::read_dir(node.dir())?.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("saved")).collect();
    assert!(left.is_empty(), "{left:?}");
    node.proxy().mend();

    let saved = ok(&node, &["--output", "json", "image", "save", "-o", path, &reference]).await?;
    let done = saved.document()?;
    assert!(done["size"].as_u64() > Some(blob_sizes(&built) as u64), "{done}");
    assert_eq!(blobs(&node), 0, "what was fetched for the archive goes with it");
    ok(&node, &["image", "remove", &reference]).await?;
    ok(&node, &["image", "load", path]).await?;
    assert_eq!(digests(&node, &reference).await?, before);
    assert_eq!(blobs(&node), built.blobs.len() - 1, "all but the configuration");
    node.finish().await
}

#[tokio::test]
async fn a_root_filesystem_becomes_an_image_that_runs() -> Result<()> {
    let node = Node::start().await?;
    let busybox = berth_tests::fixtures::busybox_layer()?;
    let rootfs = file(&node, "rootfs.tar.gz", &busybox.blob.bytes)?;
    let rootfs = rootfs.to_str().context("a path")?;
    let change = "CMD [\"cat\", \"/etc/group\"]";
    let args = [
        "image",
        "import",
        rootfs,
        "local/made:1",
        "-c",
        change,
        "-c",
        "ENV PATH=/bin",
        "-m",
        "by hand",
    ];
    let id = ok(&node, &args).await?.text();
    let pod = node.pod("imported").await?;
    let mut config = shell("main", "");
    (config.command, config.args) = (Vec::new(), Vec::new());
    config.image = Some(ImageSpec { image: "local/made:1".to_owned(), ..Default::default() });
    assert!(node.output(&pod, config).await?.contains("more:x:2001"));
    node.remove_pod(&pod.id).await?;
    let found =
        ok(&node, &["--output", "json", "image", "inspect", "local/made:1"]).await?.document()?;
    assert_eq!(format!("{}\n", at(&found, "/0/id").as_str().context("its id")?), id);
    assert_eq!(*at(&found, "/0/history/0/comment"), "by hand");
    assert_eq!(*at(&found, "/0/layers/0/diffId"), busybox.diff_id.as_str());

    let escape = archive(&[Entry::file("../../etc/evil", "x")]);
    for (bytes, more, words) in [
        (&b""[..], "CMD x", "is empty"),
        (&b"no tar at all"[..], "CMD x", "tar"),
        (escape.as_slice(), "CMD x", "../../etc/evil"),
        (busybox.blob.bytes.as_slice(), "RUN make", "\"RUN make\" is none of"),
    ] {
        let ran = run_with(&node, &["image", "import", "-", "bad:1", "-c", more], bytes).await?;
        assert_eq!(ran.code, Some(1), "{words}: {ran:?}");
        assert!(ran.err.contains(words), "{words:?} is not in {}", ran.err);
    }
    assert!(!Path::new("/etc/evil").exists());
    ok(&node, &["image", "remove", "local/made:1"]).await?;
    nothing_left(&node).await?;
    node.finish().await
}
