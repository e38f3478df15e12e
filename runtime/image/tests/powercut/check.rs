//! What must hold of a store after any cut.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use berth_image::{FsckOptions, GcOptions, ImageStore, StoreConfig};

use crate::catalog::Entry;

/// What is pulled, and under which ids.
pub(crate) struct Pushed {
    pub(crate) catalog: Vec<Entry>,
    pub(crate) ids: Vec<String>,
}

/// Opens the store; an earlier one in this process may take a moment to let go of it.
pub(crate) async fn open(root: &Path, boot: &str) -> Arc<ImageStore> {
    let config = StoreConfig { boot_id: Some(boot.to_owned()), ..StoreConfig::new(root) };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match ImageStore::open(config.clone()).await {
            Ok(store) => return store,
            Err(error) if !error.report().contains("in use") => panic!("{}", error.report()),
            Err(error) => {
                assert!(tokio::time::Instant::now() < deadline, "{}", error.report());
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Every file of every listed image is read and compared. Answers what differs.
pub(crate) async fn wrong_files(store: &ImageStore, pushed: &Pushed) -> Vec<String> {
    let mut wrong = Vec::new();
    for image in store.list() {
        let n = pushed.ids.iter().position(|id| *id == image.id.as_str());
        let Some(n) = n else {
            wrong.push(format!("image {} was never pushed", image.id));
            continue;
        };
        for (path, content) in &pushed.catalog[n].files {
            let read = store.read_file(&image, path, 1 << 20).await;
            match read {
                Ok(Some(bytes)) if bytes == *content => {}
                Ok(Some(bytes)) => wrong.push(format!(
                    "v{n} {path}: {} bytes, not the {} pushed",
                    bytes.len(),
                    content.len()
                )),
                Ok(None) => wrong.push(format!("v{n} {path}: missing")),
                Err(error) => wrong.push(format!("v{n} {path}: {}", error.report())),
            }
        }
    }
    wrong
}

/// What is listed at once; then what is listed when all is verified and repaired.
pub(crate) async fn all(
    root: &Path,
    boot: &str,
    pushed: &Pushed,
    must: &BTreeSet<usize>,
) -> Vec<String> {
    let store = open(root, boot).await;
    let mut wrong = wrong_files(&store, pushed).await;
    for &n in must {
        match store.ready(&pushed.ids[n]).await {
            Ok(Some(_)) => {}
            Ok(None) => wrong.push(format!("v{n} was on disk and is gone")),
            Err(error) => wrong.push(format!("v{n} was on disk: {}", error.report())),
        }
    }
    wrong.extend(wrong_files(&store, pushed).await);
    if wrong.is_empty() {
        wrong.extend(unclean(&store).await);
    }
    wrong
}

async fn unclean(store: &ImageStore) -> Vec<String> {
    let mut wrong = Vec::new();
    for image in store.list() {
        if let Err(error) = store.ready(image.id.as_str()).await {
            wrong.push(error.report());
        }
    }
    store.verified().await;
    for container in store.snapshots() {
        store.release(&container).await.unwrap();
    }
    store.settle().await.unwrap();
    let garbage = store.gc(GcOptions { dry_run: true }).await.unwrap();
    wrong.extend(garbage.removed.iter().map(|one| format!("left: {one:?}")));
    let listed: BTreeSet<_> = store.list().iter().map(|image| image.id.clone()).collect();
    let found = store.fsck(FsckOptions::default()).await.unwrap();
    for check in found.layers {
        // Layers of images that could not be fetched again stay damaged, and unlisted.
        if check.images.iter().any(|id| listed.contains(id))
            && check.health != berth_image::LayerHealth::Sound
        {
            wrong.push(format!("{check:?}"));
        }
    }
    wrong
}
