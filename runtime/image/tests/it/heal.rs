//! What a power cut or a failing disk spoils is found, said and fetched again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_image::{
    Error, ErrorKind, FsckOptions, GcOptions, ImageStore, LayerHealth, Reason, StoreConfig,
};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, TestImage, image};
use crate::liar::Liar;
use crate::mounted::Mounted;
use crate::pull::{assert_nothing_left, pull, store};
use crate::tarball::Tarball;

fn two_layers() -> TestImage {
    let bottom = Tarball::new().dir("d/", 0o755).file("d/bottom", 0o644, b"bottom").finish();
    let top = Tarball::new().dir("d/", 0o755).file("d/top", 0o644, b"top").finish();
    image(&[bottom, top], Dialect::Oci, Compression::Gzip, json!({}))
}

/// As after a boot that lost nothing, or with another boot id as after one that may have.
async fn reopen(dir: &TempDir, store: Arc<ImageStore>, boot: Option<&str>) -> Arc<ImageStore> {
    drop(store);
    let boot_id = boot.map(str::to_owned);
    let config = StoreConfig { boot_id, ..StoreConfig::new(dir.path().join("image")) };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match ImageStore::open(config.clone()).await {
            Ok(store) => return store,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{}", error.report()),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn layer_with(dir: &TempDir, file: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir.path().join("image/layers")).unwrap().flatten();
    entries.map(|entry| entry.path()).find(|layer| layer.join("fs").join(file).exists()).unwrap()
}

fn unmark(layer: &Path) {
    std::fs::remove_file(layer.join("durable")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_damaged_layer_is_fetched_again() {
    let registry = Liar::start();
    let made = two_layers();
    registry.honest("t", &made);
    let (dir, store) = store().await;
    let name = registry.name("t");
    pull(&store, &name).await.unwrap();
    store.settle().await.unwrap();
    let (bottom, top) = (layer_with(&dir, "d/bottom"), layer_with(&dir, "d/top"));
    let inode = |layer: &Path| std::fs::metadata(layer).unwrap().ino();
    let (kept, replaced) = (inode(&bottom), inode(&top));
    unmark(&bottom);
    unmark(&top);
    std::fs::write(top.join("fs/d/top"), b"").unwrap();
    let before = registry.count("/blobs/");
    let store = reopen(&dir, store, Some("after the cut")).await;
    let image = store.ready(&name).await.unwrap().expect("it comes back by itself");
    assert_eq!(registry.count("/blobs/"), before + 1, "one layer was fetched");
    assert_eq!(store.read_file(&image, "d/top", 9).await.unwrap().unwrap(), b"top");
    assert_eq!(inode(&bottom), kept);
    assert_ne!(inode(&top), replaced, "never repaired in place");
    store.settle().await.unwrap();
    assert!(bottom.join("durable").exists() && top.join("durable").exists());
    assert!(store.fsck(FsckOptions::default()).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_fetched_is_not_listed_and_a_create_is_told() {
    let registry = Liar::start();
    let made = two_layers();
    registry.honest("t", &made);
    let (dir, store) = store().await;
    let name = registry.name("t");
    pull(&store, &name).await.unwrap();
    store.settle().await.unwrap();
    let top = layer_with(&dir, "d/top");
    unmark(&top);
    std::fs::remove_file(top.join("fs/d/top")).unwrap();
    let (blob, good) = (&made.layers[1], crate::liar::Answer::blob(&made.layers[1].bytes));
    registry.blob(blob, crate::liar::Answer::Cut { announced: 10, bytes: vec![1] });
    let store = reopen(&dir, store, Some("after the cut")).await;
    let error = store.ready(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady, "{}", error.report());
    assert!(error.report().contains("is being repaired"), "{}", error.report());
    assert!(error.report().contains(made.id().as_str()), "{}", error.report());
    assert!(store.list().is_empty() && store.find(&name).is_none());
    // A pull, as kubelet makes where an image is absent, repairs it at once.
    registry.blob(blob, good);
    let image = pull(&store, &name).await.unwrap();
    assert_eq!(store.read_file(&image, "d/top", 9).await.unwrap().unwrap(), b"top");
    assert!(store.ready(&name).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_what_is_wrong_and_a_repair_leaves_running_containers_alone() {
    let registry = Liar::start();
    let made = two_layers();
    registry.honest("t", &made);
    let (dir, store) = store().await;
    let name = registry.name("t");
    let image = pull(&store, &name).await.unwrap();
    store.settle().await.unwrap();
    assert!(store.fsck(FsckOptions::default()).await.unwrap().is_clean());
    let snapshot = store.prepare("ctr", &image).await.unwrap();
    let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
    let top = layer_with(&dir, "d/top");
    // As long as before, and at the same time: only the content tells.
    let file = top.join("fs/d/top");
    let time = std::fs::metadata(&file).unwrap().modified().unwrap();
    std::fs::write(&file, b"TOP").unwrap();
    std::fs::File::open(&file).unwrap().set_modified(time).unwrap();
    let report = store
        .fsck(FsckOptions { only: Some(name.clone()), ..FsckOptions::default() })
        .await
        .unwrap();
    let damaged: Vec<_> = report.layers.iter().filter(|l| l.health != LayerHealth::Sound).collect();
    let [found] = damaged[..] else { panic!("{report:?}") };
    let LayerHealth::Damaged(paths) = &found.health else { panic!("{found:?}") };
    assert_eq!((paths[0].path.as_str(), paths[0].what.as_str()), ("d/top", "content"));
    assert_eq!(found.images, [made.id()]);
    assert!(store.find(&name).is_some(), "a check changes nothing");

    let report = store.repair(FsckOptions::default()).await.unwrap();
    assert_eq!((&report.repaired, &report.failed), (&vec![made.id()], &vec![]));
    let image = store.find(&name).unwrap();
    assert_eq!(store.read_file(&image, "d/top", 9).await.unwrap().unwrap(), b"top");
    store.settle().await.unwrap();
    let seen = std::fs::read(mounted.root.join("d/top")).unwrap();
    assert_eq!(seen, b"TOP", "what runs keeps what it has");
    let retired = dir.path().join("image/retired");
    assert_eq!(std::fs::read_dir(&retired).unwrap().count(), 1);
    let reasons = store.explain(&found.key).unwrap();
    assert!(reasons.contains(&Reason::Retired { containers: vec!["ctr".into()] }), "{reasons:?}");
    let store = reopen(&dir, store, None).await;
    store.settle().await.unwrap();
    assert_eq!(std::fs::read_dir(&retired).unwrap().count(), 1, "also over a restart");
    drop(mounted);
    store.release("ctr").await.unwrap();
    store.settle().await.unwrap();
    assert_eq!(std::fs::read_dir(&retired).unwrap().count(), 0);
    assert!(store.fsck(FsckOptions::default()).await.unwrap().is_clean());
    let error = store
        .fsck(FsckOptions { only: Some("no/such".into()), ..FsckOptions::default() })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_process_left_unmarked_is_synced_and_marked() {
    let registry = Liar::start();
    registry.honest("t", &two_layers());
    let (dir, store) = store().await;
    pull(&store, &registry.name("t")).await.unwrap();
    store.settle().await.unwrap();
    let top = layer_with(&dir, "d/top");
    unmark(&top);
    let store = reopen(&dir, store, None).await;
    assert!(store.find(&registry.name("t")).is_some(), "of this boot: it serves at once");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !top.join("durable").exists() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_collected_and_everything_kept_says_why() {
    let registry = Liar::start();
    let made = two_layers();
    registry.honest("t", &made);
    let (dir, store) = store().await;
    let image = pull(&store, &registry.name("t")).await.unwrap();
    store.prepare("ctr", &image).await.unwrap();
    store.settle().await.unwrap();
    let key = store.du().await.unwrap().layers[0].key.clone();
    let names = vec![registry.name("t"), image.repo_digests[0].clone()];
    let of_image = Reason::Image { id: made.id(), names };
    let of_container = Reason::Container { id: "ctr".into() };
    assert_eq!(store.explain(&key).unwrap(), [of_image, of_container.clone()]);
    assert!(store.explain(&registry.name("t")).unwrap().contains(&of_container));
    assert!(matches!(store.explain("nothing"), Err(Error::Store(_))));
    let root = dir.path().join("image");
    std::fs::create_dir_all(root.join("layers/00000000000000000000/fs")).unwrap();
    std::fs::create_dir_all(root.join("staging/ffff")).unwrap();
    std::fs::write(root.join("retired/x"), b"x").unwrap();
    let dry = store.gc(GcOptions { dry_run: true }).await.unwrap();
    assert_eq!(dry.removed.len(), 3, "{dry:?}");
    assert!(root.join("retired/x").exists(), "it only says");
    assert_eq!(store.gc(GcOptions::default()).await.unwrap().removed.len(), 3);
    assert!(!root.join("retired/x").exists() && !root.join("staging/ffff").exists());
    assert!(store.gc(GcOptions::default()).await.unwrap().removed.is_empty());
    store.remove(image.id.as_str()).await.unwrap();
    assert_eq!(store.explain(&key).unwrap(), [of_container]);
    store.release("ctr").await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_trees_and_many_files_go_without_holding_anything_up() {
    let registry = Liar::start();
    let deep = (0..45).fold(Tarball::new(), |tar, depth| tar.dir(&"d/".repeat(depth + 1), 0o755));
    let many = (0..3000).fold(deep, |tar, n| tar.file(&format!("d/f{n}"), 0o644, b""));
    let made = image(&[many.finish()], Dialect::Oci, Compression::Gzip, json!({}));
    registry.honest("t", &made);
    let (dir, store) = store().await;
    let pulled = pull(&store, &registry.name("t")).await.unwrap();
    let disk = store.du().await.unwrap();
    assert_eq!(disk.layers[0].inodes, 3046, "{disk:?}");
    assert_eq!(
        (disk.images[0].bytes, disk.images[0].unique_bytes),
        (disk.layers[0].bytes, disk.layers[0].bytes)
    );
    store.remove(pulled.id.as_str()).await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

/// Replaces one thing in the store's directories by garbage, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_opens_whatever_lies_in_it() {
    let registry = Liar::start();
    registry.honest("t", &two_layers());
    let (dir, mut store) = store().await;
    let root = dir.path().join("image");
    let name = registry.name("t");
    let pulled = pull(&store, &name).await.unwrap();
    let layer = layer_with(&dir, "d/top").strip_prefix(&root).unwrap().to_owned();
    let record = PathBuf::from(format!("images/{}.json", pulled.id.hex()));
    let mut places: Vec<PathBuf> =
        ["lock", "images", "layers", "rw", "staging", "trash", "retired", "layers/empty", "blobs"]
            .map(PathBuf::from)
            .to_vec();
    places.extend([record, layer.clone(), layer.join("fs"), layer.join("layer.json")]);
    places.extend([
        layer.join("listing"),
        layer.join("durable"),
        PathBuf::from("rw/ctr/lease.json"),
    ]);
    for (n, place) in places.iter().flat_map(|place| (0..4).map(move |n| (n, place))) {
        let image = pull(&store, &name).await.unwrap();
        store.prepare("ctr", &image).await.unwrap();
        store.settle().await.unwrap();
        drop(store);
        let path = root.join(place);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            let _ = std::fs::remove_file(&path);
        }
        match n {
            0 => std::fs::write(&path, b"garbage").unwrap(),
            1 => std::fs::create_dir_all(path.join("garbage")).unwrap(),
            2 => {
                let fifo = std::process::Command::new("mkfifo").arg(&path).status();
                assert!(fifo.unwrap().success());
            }
            _ => std::os::unix::fs::symlink("/nonexistent/garbage", &path).unwrap(),
        }
        let boot = format!("boot {}", place.display());
        store = open_in_time(&dir, &boot).await;
        // What was known to be on disk is trusted: only a check finds what changed since.
        store.repair(FsckOptions::default()).await.unwrap();
        let image = pull(&store, &name).await;
        let image = image.unwrap_or_else(|e| panic!("{place:?} {n}: {}", e.report()));
        assert_eq!(store.read_file(&image, "d/top", 9).await.unwrap().unwrap(), b"top");
        for container in store.snapshots() {
            store.release(&container).await.unwrap();
        }
    }
    store.remove(&name).await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

/// A FIFO that nobody writes to must not hold it up.
async fn open_in_time(dir: &TempDir, boot: &str) -> Arc<ImageStore> {
    let config = StoreConfig {
        boot_id: Some(boot.to_owned()),
        ..StoreConfig::new(dir.path().join("image"))
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let opened = tokio::time::timeout_at(deadline, ImageStore::open(config.clone())).await;
        match opened.unwrap_or_else(|_| panic!("{boot}: not open after 20 s")) {
            Ok(store) => return store,
            Err(error) if error.report().contains("in use") => tokio::task::yield_now().await,
            Err(error) => panic!("{boot}: {}", error.report()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writable_layers_may_lie_on_another_file_system() {
    let registry = Liar::start();
    registry.honest("t", &two_layers());
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        writable: Some(dir.path().join("writable")),
        ..StoreConfig::new(dir.path().join("image"))
    };
    let store = ImageStore::open(config).await.unwrap();
    let image = pull(&store, &registry.name("t")).await.unwrap();
    let snapshot = store.prepare("ctr", &image).await.unwrap();
    assert!(snapshot.upper.starts_with(dir.path().join("writable/rw")), "{snapshot:?}");
    assert!(snapshot.lower[0].starts_with(dir.path().join("image/layers")), "{snapshot:?}");
    let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
    std::fs::write(mounted.root.join("d/new"), vec![1; 100_000]).unwrap();
    drop(mounted);
    assert!(store.has_writable_fs());
    let (images, writable) = (store.image_usage().await, store.writable_usage().await);
    assert!(images.mountpoint.ends_with("image") && images.bytes > 0, "{images:?}");
    assert!(writable.mountpoint.ends_with("writable"), "{writable:?}");
    assert!(writable.bytes >= 100_000, "{writable:?}");
    store.release("ctr").await.unwrap();
    store.remove(image.id.as_str()).await.unwrap();
    assert_nothing_left(&dir, &store).await;
    for part in ["rw", "staging", "trash"] {
        let left = std::fs::read_dir(dir.path().join("writable").join(part)).unwrap().count();
        assert_eq!(left, 0, "{part}");
    }
}
