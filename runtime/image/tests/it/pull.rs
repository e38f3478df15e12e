//! Pulling from a real registry.

use std::sync::Arc;

use berth_image::{ErrorKind, Image, ImageStore, Reference, RegistryConfig, StoreConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, image};
use crate::registry::Registry;
use crate::tarball::Tarball;

pub(crate) async fn store() -> (TempDir, Arc<ImageStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.unwrap();
    (dir, store)
}

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &str,
) -> Result<Arc<Image>, berth_image::Error> {
    let reference = Reference::parse(reference).unwrap();
    let id = store.pull(&reference, None, &RegistryConfig::default()).await?;
    Ok(store.find(id.as_str()).expect("a pulled image is listed"))
}

/// Only what a fresh store has, once the background work is done.
pub(crate) async fn assert_nothing_left(dir: &TempDir, store: &ImageStore) {
    let root = dir.path().join("image");
    let left = || -> Vec<_> {
        let dirs = ["images", "layers", "rw", "staging", "trash"];
        let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap());
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| *path != root.join("layers/empty")).collect()
    };
    // An unpacking that was cut short ends on its own thread.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        store.settle().await.unwrap();
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "left: {left:?}");
        tokio::task::yield_now().await;
    }
}

fn base() -> Vec<u8> {
    Tarball::new()
        .dir("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")
        .finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dialect_and_compression_is_pulled_and_read() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let cases = [
        (Dialect::Oci, Compression::Plain),
        (Dialect::Oci, Compression::Gzip),
        (Dialect::Oci, Compression::MultiGzip),
        (Dialect::Oci, Compression::Zstd),
        (Dialect::Docker, Compression::Gzip),
        (Dialect::Docker, Compression::Zstd),
    ];
    for (n, (dialect, compression)) in cases.into_iter().enumerate() {
        let content = format!("case {n}");
        let top = Tarball::new().dir("etc/", 0o755).file("etc/motd", 0o600, content.as_bytes());
        let settings = json!({"User": "1000:1000", "Env": ["A=b"], "Labels": {"l": "v"}});
        let image = image(&[base(), top.finish()], dialect, compression, settings);
        registry.push("some/app", &format!("v{n}"), &image);
        let name = format!("{}/some/app:v{n}", registry.address);
        let pulled = pull(&store, &name).await.unwrap();
        assert_eq!(pulled.id, image.id());
        assert_eq!(pulled.repo_tags, std::slice::from_ref(&name));
        let digest = format!("{}/some/app@{}", registry.address, image.manifest.digest());
        assert_eq!(pulled.repo_digests, [digest]);
        let blobs = image.layers.iter().chain([&image.config]);
        assert_eq!(pulled.size, blobs.map(|b| b.bytes.len() as u64).sum::<u64>());
        let motd = store.read_file(&pulled, "/etc/motd", 100).await.unwrap().unwrap();
        assert_eq!(motd, content.as_bytes());
        assert!(store.read_file(&pulled, "/etc/passwd", 100).await.unwrap().is_some());
        assert!(store.read_file(&pulled, "/etc/none", 100).await.unwrap().is_none());
    }
    assert_eq!(store.list().len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let name = format!("{}/no/such:tag", registry.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert!(error.report().contains(&name), "{}", error.report());
}
