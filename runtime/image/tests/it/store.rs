//! What the store keeps, finds, removes, and makes of what a crash left.

use std::path::Path;
use std::sync::Arc;

use berth_image::{ErrorKind, Image, ImageStore, ImageUser, StoreConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, TestImage, image, oci_archive};
use crate::mounted::Mounted;
use crate::pull::{assert_nothing_left, store};
use crate::tarball::Tarball;

const NAME: &str = "io.containerd.image.name";

fn layer(file: &str, content: &[u8]) -> Vec<u8> {
    Tarball::new().dir("d/", 0o755).file(&format!("d/{file}"), 0o644, content).finish()
}

fn of(tars: &[Vec<u8>], settings: serde_json::Value) -> TestImage {
    image(tars, Dialect::Oci, Compression::Gzip, settings)
}

pub(crate) async fn import(
    dir: &TempDir,
    store: &ImageStore,
    image: &TestImage,
    name: &str,
) -> Arc<Image> {
    let path = dir.path().join("archive.tar");
    std::fs::write(&path, oci_archive(&[(image, &[(NAME, name)])])).unwrap();
    let ids = store.import_oci_archive(&path).await;
    let ids = ids.unwrap_or_else(|e| panic!("{}", e.report()));
    store.find(ids[0].as_str()).unwrap()
}

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_each_of_its_names() {
    let (dir, store) = store().await;
    let made = of(&[layer("f", b"1")], json!({"User": "1000:50"}));
    let image = import(&dir, &store, &made, "busybox:1").await;
    import(&dir, &store, &made, "other.test/bb:2").await;
    assert_eq!(store.list().len(), 1);
    let hex = image.id.hex();
    let digest = made.manifest.digest();
    for name in [
        image.id.as_str(),
        hex,
        &hex[..12],
        &format!("sha256:{}", &hex[..12]),
        "busybox:1",
        "library/busybox:1",
        "docker.io/library/busybox:1",
        "other.test/bb:2",
        &format!("busybox@{digest}"),
        &format!("busybox:ignored@{digest}"),
    ] {
        assert_eq!(store.find(name).map(|i| i.id.clone()), Some(image.id.clone()), "{name}");
    }
    for name in ["busybox", "busybox:2", "bb:2", "", "sha256:", "UPPER", &hex[1..]] {
        assert!(store.find(name).is_none(), "{name}");
    }
    assert_eq!(image.user(), ImageUser::Uid(1000));
    let tags = &store.list()[0].repo_tags;
    assert_eq!(tags, &["docker.io/library/busybox:1", "other.test/bb:2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_the_old_image_keeps_its_digest() {
    let (dir, store) = store().await;
    let (old, new) = (of(&[layer("f", b"1")], json!({})), of(&[layer("f", b"2")], json!({})));
    import(&dir, &store, &old, "x.test/a:t").await;
    import(&dir, &store, &new, "x.test/a:t").await;
    assert_eq!(store.find("x.test/a:t").unwrap().id, new.id());
    let left = store.find(old.id().as_str()).unwrap();
    assert!(left.repo_tags.is_empty());
    assert_eq!(left.repo_digests, [format!("x.test/a@{}", old.manifest.digest())]);
    // The same after a restart.
    let store = reopen(&dir, store).await;
    assert_eq!(store.find("x.test/a:t").unwrap().id, new.id());
    assert!(store.find(old.id().as_str()).unwrap().repo_tags.is_empty());
}

async fn reopen(dir: &TempDir, store: Arc<ImageStore>) -> Arc<ImageStore> {
    store.settle().await.unwrap();
    open_again(dir, store).await
}

/// As after a kill: what was to be done in the background was not.
async fn open_again(dir: &TempDir, store: Arc<ImageStore>) -> Arc<ImageStore> {
    let config = StoreConfig::new(dir.path().join("image"));
    open_with(config, store).await
}

/// Ends the store and opens it anew, with this configuration.
pub(crate) async fn open_with(config: StoreConfig, store: Arc<ImageStore>) -> Arc<ImageStore> {
    drop(store);
    // The lock goes with the background task, which ends at its next await.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match ImageStore::open(config.clone()).await {
            Ok(store) => return store,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{}", error.report()),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_by_any_name_removes_all_and_only_what_nothing_needs() {
    let (dir, store) = store().await;
    let shared = layer("shared", b"s");
    let one = of(&[shared.clone(), layer("f", b"1")], json!({}));
    let two = of(&[shared, layer("f", b"2")], json!({}));
    import(&dir, &store, &one, "x.test/a:1").await;
    import(&dir, &store, &one, "y.test/b:1").await;
    let kept = import(&dir, &store, &two, "x.test/a:2").await;
    let layers = dir.path().join("image/layers");
    assert_eq!(count(&layers), 3 + 1);
    let before = store.fs_usage();
    let removals = (0..8).map(|_| store.remove("y.test/b:1"));
    for removed in futures_util::future::join_all(removals).await {
        removed.unwrap();
    }
    assert!(store.find("x.test/a:1").is_none() && store.find(one.id().as_str()).is_none());
    store.settle().await.unwrap();
    assert_eq!(count(&layers), 2 + 1);
    let after = store.fs_usage();
    assert!(after.bytes < before.bytes && after.inodes < before.inodes && after.bytes > 0);
    assert_eq!(store.read_file(&kept, "d/shared", 10).await.unwrap().unwrap(), b"s");
    store.remove("no.such/image:x").await.unwrap();
    store.remove("x.test/a:2").await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_layers() {
    let (dir, store) = store().await;
    let made = of(&[layer("f", b"content")], json!({}));
    let image = import(&dir, &store, &made, "x.test/a:1").await;
    let snapshot = store.prepare("ctr-1", &image).await.unwrap();
    assert_eq!(store.prepare("ctr-1", &image).await.unwrap(), snapshot);
    assert_eq!(store.snapshots(), ["ctr-1"]);
    store.remove("x.test/a:1").await.unwrap();
    let store = reopen(&dir, store).await;
    assert!(store.list().is_empty());
    let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
    assert_eq!(std::fs::read(mounted.root.join("d/f")).unwrap(), b"content");
    std::fs::write(mounted.root.join("d/new"), b"x").unwrap();
    drop(mounted);
    // With the image gone, no new container can be made from it.
    let error = store.prepare("ctr-2", &image).await;
    assert!(error.is_ok(), "its layers are all there");
    store.release("ctr-2").await.unwrap();
    store.release("ctr-1").await.unwrap();
    store.release("ctr-1").await.unwrap();
    let error = store.prepare("ctr-3", &image).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_id_must_be_plain_and_stays_with_its_image() {
    let (dir, store) = store().await;
    let one = import(&dir, &store, &of(&[layer("f", b"1")], json!({})), "x.test/a:1").await;
    let two = import(&dir, &store, &of(&[layer("f", b"2")], json!({})), "x.test/a:2").await;
    for bad in ["", ".", "..", ".hidden", "a/b", "../x", "a b", &"x".repeat(200)] {
        let error = store.prepare(bad, &one).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        assert_eq!(store.release(bad).await.unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
    store.prepare("ctr", &one).await.unwrap();
    assert_eq!(store.prepare("ctr", &two).await.unwrap_err().kind(), ErrorKind::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_no_layers_of_equal_layers_and_of_120_mount() {
    let (dir, store) = store().await;
    let twice = layer("f", b"same");
    let many: Vec<_> = (0..120).map(|n| layer(&format!("f{n}"), b"x")).collect();
    for (tars, files) in
        [(vec![], 0), (vec![twice.clone(), layer("g", b"other"), twice], 2), (many, 120)]
    {
        let image = import(&dir, &store, &of(&tars, json!({})), "x.test/a:1").await;
        assert_eq!(image.layer_count(), tars.len());
        let snapshot = store.prepare("ctr", &image).await.unwrap();
        let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
        let found = std::fs::read_dir(mounted.root.join("d")).map_or(0, Iterator::count);
        assert_eq!(found, files);
        drop(mounted);
        store.release("ctr").await.unwrap();
        store.remove("x.test/a:1").await.unwrap();
        store.remove(image.id.as_str()).await.unwrap();
    }
    assert_nothing_left(&dir, &store).await;
}

/// Rewrites a record's boot id, as if the machine had gone down since, keeping its checksum.
fn other_boot(record: &Path) {
    let bytes = std::fs::read(record).unwrap();
    let at = bytes.iter().position(|&b| b == b'\n').unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&bytes[at + 1..]).unwrap();
    value["boot_id"] = json!("11111111-2222-3333-4444-555555555555");
    let json = serde_json::to_vec(&value).unwrap();
    let head = format!("berth-record {}\n", berth_image::Digest::of(&json));
    std::fs::write(record, [head.as_bytes(), &json].concat()).unwrap();
}

fn layer_dirs(dir: &TempDir) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir.path().join("image/layers")).unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| !path.ends_with("empty")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_another_boot_only_layers_known_to_be_on_disk_are_trusted() {
    let (dir, store) = store().await;
    let kept = of(&[layer("f", b"kept")], json!({}));
    let lost = of(&[layer("f", b"kept"), layer("g", b"lost")], json!({}));
    import(&dir, &store, &kept, "x.test/kept:1").await;
    import(&dir, &store, &lost, "x.test/lost:1").await;
    let image = store.find("x.test/lost:1").unwrap();
    store.prepare("ctr", &image).await.unwrap();
    store.settle().await.unwrap();
    let dirs = layer_dirs(&dir);
    for layer in &dirs {
        assert!(layer.join("durable").exists(), "{layer:?}");
        other_boot(&layer.join("layer.json"));
    }
    let store = open_again(&dir, store).await;
    assert_eq!(store.list().len(), 2, "all were durable");
    // One without a marker is looked at before it is served again.
    let unmarked = dirs.iter().find(|layer| layer.join("fs/d/g").exists()).unwrap();
    std::fs::remove_file(unmarked.join("durable")).unwrap();
    let store = open_again(&dir, store).await;
    assert!(store.find("x.test/kept:1").is_some());
    assert!(store.ready("x.test/lost:1").await.unwrap().is_some());
    assert!(unmarked.join("durable").exists(), "it is known to be sound now");
    // A damaged one is made anew from the kept blob.
    std::fs::remove_file(unmarked.join("durable")).unwrap();
    std::fs::write(unmarked.join("fs/d/g"), b"LOST").unwrap();
    let store = open_again(&dir, store).await;
    let image = store.ready("x.test/lost:1").await.unwrap().unwrap();
    assert_eq!(store.read_file(&image, "/d/g", 9).await.unwrap().unwrap(), b"lost");
    // Without that there is nothing to make it of.
    store.settle().await.unwrap();
    std::fs::remove_dir_all(dir.path().join("image/blobs")).unwrap();
    let dirs = layer_dirs(&dir);
    let unmarked = dirs.iter().find(|layer| layer.join("fs/d/g").exists()).unwrap();
    other_boot(&unmarked.join("layer.json"));
    std::fs::remove_file(unmarked.join("durable")).unwrap();
    std::fs::write(unmarked.join("fs/d/g"), b"LOST").unwrap();
    let store = open_again(&dir, store).await;
    assert!(store.find("x.test/kept:1").is_some());
    let error = store.ready("x.test/lost:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(error.report().contains("is being repaired"), "{}", error.report());
    assert!(store.find("x.test/lost:1").is_none() && store.list().len() == 1);
    assert_eq!(store.snapshots(), ["ctr"]);
    store.release("ctr").await.unwrap();
    let again = import(&dir, &store, &lost, "x.test/lost:1").await;
    assert_eq!(store.read_file(&again, "/d/g", 9).await.unwrap().unwrap(), b"lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn torn_records_and_leftovers_are_no_reason_not_to_start() {
    let (dir, store) = store().await;
    let good = of(&[layer("f", b"good")], json!({}));
    let torn = of(&[layer("f", b"torn")], json!({}));
    import(&dir, &store, &good, "x.test/good:1").await;
    import(&dir, &store, &torn, "x.test/torn:1").await;
    store.settle().await.unwrap();
    let root = dir.path().join("image");
    let record = root.join("images").join(format!("{}.json", torn.id().hex()));
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    std::fs::create_dir_all(root.join("staging/7/fs/d")).unwrap();
    std::fs::create_dir_all(root.join("layers/0123456789abcdef0123/fs")).unwrap();
    std::fs::create_dir_all(root.join("rw/lost-lease/fs")).unwrap();
    std::fs::create_dir_all(root.join("trash/3/x")).unwrap();
    std::fs::write(root.join("images/junk.json"), b"junk").unwrap();
    let store = open_again(&dir, store).await;
    assert!(store.find("x.test/good:1").is_some() && store.find("x.test/torn:1").is_none());
    assert_eq!(store.snapshots(), ["lost-lease"]);
    store.release("lost-lease").await.unwrap();
    store.remove("x.test/good:1").await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_opened_by_one_at_a_time() {
    let (dir, _store) = store().await;
    let error = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.err().unwrap();
    assert!(error.report().contains("in use"), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_are_none_are_refused() {
    let (dir, store) = store().await;
    let path = dir.path().join("archive.tar");
    let made = of(&[layer("f", b"1")], json!({}));
    let blob = format!("blobs/{}", made.layers[0].digest().as_str().replace(':', "/"));
    let damaged = |name: &str| -> Vec<u8> {
        let mut bytes = oci_archive(&[(&made, &[(NAME, "x.test/a:1")])]);
        let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        bytes[at + 512 + 12] ^= 1;
        bytes
    };
    for (bytes, words) in [
        (b"junk".to_vec(), ""),
        (Tarball::new().finish(), "index.json"),
        (Tarball::new().file("index.json", 0o644, b"{}").finish(), "index"),
        (damaged(&blob), "layer sha256:"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = store.import_oci_archive(&path).await.unwrap_err();
        let report = error.report();
        assert!(report.contains(words) && report.contains("archive.tar"), "{report}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{report}");
    }
    assert_nothing_left(&dir, &store).await;
}

/// A file system of its own, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(path: &Path, options: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status();
        assert!(status.unwrap().success());
        Self(path.to_owned())
    }

    fn remount(&self, options: &str) {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let status = umount.arg("-l").arg(&self.0).status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_read_only_disk_is_said_and_nothing_half_made_stays() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(&dir.path().join("image"), "size=1m,nr_inodes=100");
    let store = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.unwrap();
    let large = of(&[layer("small", b"1"), layer("large", &vec![b'x'; 4 << 20])], json!({}));
    let many = (0..200).fold(Tarball::new(), |tar, n| tar.file(&format!("f{n}"), 0o644, b""));
    let many = of(&[many.finish()], json!({}));
    let path = dir.path().join("archive.tar");
    let import = async |image: &TestImage| {
        std::fs::write(&path, oci_archive(&[(image, &[(NAME, "x.test/a:1")])])).unwrap();
        store.import_oci_archive(&path).await
    };
    for image in [&large, &many] {
        let error = import(image).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{}", error.report());
        assert!(error.report().contains("No space left"), "{}", error.report());
        assert!(error.report().contains("layer sha256:"), "{}", error.report());
        assert_nothing_left(&dir, &store).await;
    }
    let good = of(&[layer("small", b"1")], json!({}));
    import(&good).await.unwrap();
    disk.remount("ro");
    let image = store.find("x.test/a:1").unwrap();
    let error = store.prepare("ctr", &image).await.unwrap_err();
    assert!(error.report().contains("Read-only"), "{}", error.report());
    let error = import(&large).await.unwrap_err();
    assert!(error.report().contains("Read-only"), "{}", error.report());
    assert_eq!(store.list().len(), 1);
    assert!(store.fs_usage().bytes > 0);
    disk.remount("rw");
    store.prepare("ctr", &image).await.unwrap();
    store.release("ctr").await.unwrap();
    store.remove("x.test/a:1").await.unwrap();
    assert_nothing_left(&dir, &store).await;
}
