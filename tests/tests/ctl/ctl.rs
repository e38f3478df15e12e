//! Running berthctl, and archives for it.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Built, Image, Layer};
use berth_tests::node::binaries;
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, Kind, archive};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The JSON documents of its output, one per line.
    pub(crate) fn documents(&self) -> Result<Vec<Value>> {
        self.text().lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The last document of its output.
    pub(crate) fn document(&self) -> Result<Value> {
        self.documents()?.pop().context("some output")
    }
}

/// What a document has at this JSON pointer; null where it has nothing.
pub(crate) fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

pub(crate) fn command(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(binaries(false).join("berthctl"));
    command.env("BERTHCTL_ADDRESS", node.dir().join("cri.sock")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("BERTHCTL_CREDS").kill_on_drop(true);
    command
}

/// Runs it to its end.
pub(crate) async fn run(node: &Node, args: &[&str]) -> Result<Ran> {
    ended(command(node, args).output().await?)
}

/// Runs it with this on its standard input.
pub(crate) async fn run_with(node: &Node, args: &[&str], input: &[u8]) -> Result<Ran> {
    let mut child = command(node, args).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let write = async {
        // It may have ended before it read all.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    ended(output?)
}

fn ended(output: Output) -> Result<Ran> {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Ran { code: output.status.code(), out: output.stdout, err })
}

/// Runs it and wants it to succeed.
pub(crate) async fn ok(node: &Node, args: &[&str]) -> Result<Ran> {
    let ran = run(node, args).await?;
    ensure!(ran.code == Some(0), "{args:?}: {ran:?}");
    Ok(ran)
}

/// busybox with a file that makes it this test's own.
pub(crate) fn own_image(mark: &str) -> Result<Image> {
    let image = Image::new(vec![busybox_layer()?, file_layer("mark", mark)?]);
    Ok(image.config(json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]})))
}

/// A layer with one file.
pub(crate) fn file_layer(path: &str, text: &str) -> Result<Layer> {
    Layer::new(&[Entry::file(path, text)])
}

/// Puts it into the registry and answers its name.
pub(crate) fn push(node: &Node, name: &str, image: &Built) -> Result<String> {
    let (repository, tag) = name.split_once(':').context("a tagged name")?;
    node.registry().push(repository, tag, image)?;
    Ok(node.image(name).image)
}

fn member(name: &str, bytes: &[u8]) -> Entry {
    Entry::new(name, Kind::File(bytes.to_vec()))
}

/// A docker-archive, as `docker save` wrote it before version 25.
pub(crate) fn docker_archive(images: &[(&Image, &[&str])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut items = Vec::new();
    for (image, tags) in images {
        let built = image.build();
        let hex = built.config.digest.trim_start_matches("sha256:");
        let mut layers = Vec::new();
        for layer in &image.layers {
            let name = format!("{}/layer.tar", layer.diff_id.trim_start_matches("sha256:"));
            if !layers.contains(&name) {
                entries.push(member(&name, &layer.blob.bytes));
            }
            layers.push(name);
        }
        entries.push(member(&format!("{hex}.json"), &built.config.bytes));
        items.push(json!({"Config": format!("{hex}.json"), "RepoTags": tags, "Layers": layers}));
    }
    entries.push(member("manifest.json", Value::from(items).to_string().as_bytes()));
    archive(&entries)
}

/// A tar of an OCI layout.
pub(crate) fn oci_archive(images: &[(&Built, &str)]) -> Vec<u8> {
    let mut entries = vec![member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)];
    let mut manifests = Vec::new();
    for (built, name) in images {
        for blob in built.blobs.iter().chain(&built.children).chain([&built.manifest]) {
            let name = format!("blobs/{}", blob.digest.replacen(':', "/", 1));
            entries.push(member(&name, &blob.bytes));
        }
        manifests.push(json!({
            "mediaType": built.media_type, "digest": built.manifest.digest,
            "size": built.manifest.bytes.len(),
            "annotations": {"io.containerd.image.name": name},
        }));
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    entries.push(member("index.json", index.to_string().as_bytes()));
    archive(&entries)
}

/// A file of the node's directory with these bytes.
pub(crate) fn file(node: &Node, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = node.dir().join(name);
    std::fs::write(&path, bytes)?;
    Ok(path)
}

/// The names of all images, sorted.
pub(crate) async fn names(node: &Node) -> Result<Vec<String>> {
    let listed = ok(node, &["--output", "json", "image", "list"]).await?.document()?;
    let images = listed.as_array().context("a list")?;
    let tags = images.iter().filter_map(|image| image["tags"].as_array()).flatten();
    let mut names: Vec<String> = tags.filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// Nothing of images is left in the store, once it has tidied up.
pub(crate) async fn nothing_left(node: &Node) -> Result<()> {
    let root = node.root().join("image");
    eventually("nothing left of the image", Duration::from_secs(10), async || {
        for dir in ["images", "layers", "staging", "trash", "blobs/sha256", "partial"] {
            for entry in std::fs::read_dir(root.join(dir)).into_iter().flatten().flatten() {
                if entry.file_name() != "empty" {
                    bail!("left: {}", entry.path().display());
                }
            }
        }
        Ok(Some(()))
    })
    .await
}
