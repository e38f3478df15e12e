//! Limits of writable layers.
//!
//! `BERTH_TEST_QUOTA_DIR` names directories on file systems with project quota in force (with `:`
//! between them): `cargo xtask vm-test quota`.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{ErrorKind, FsUsage, Image, ImageStore, Snapshot, StoreConfig, WritableQuota};
use berth_sys::quota::{self, Amount};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, image};
use crate::mounted::Mounted;
use crate::store::{import, open_with};
use crate::tarball::Tarball;

const MIB: u64 = 1 << 20;
const LIMIT: WritableQuota = WritableQuota { mib: Some(4), inodes: Some(60) };
/// Where ids of writable layers begin.
const FIRST: u32 = 1 << 20;

fn places() -> Vec<PathBuf> {
    let dirs = std::env::var_os("BERTH_TEST_QUOTA_DIR").unwrap_or_default();
    let dirs: Vec<_> = std::env::split_paths(&dirs).filter(|dir| dir.is_absolute()).collect();
    if dirs.is_empty() {
        println!("skipped: BERTH_TEST_QUOTA_DIR names no directory with project quota");
    }
    dirs
}

/// A store whose writable layers lie in a directory of their own on the limited file system.
struct Limited {
    dir: TempDir,
    store: Arc<ImageStore>,
    image: Arc<Image>,
}

impl Limited {
    async fn new(place: &Path) -> Self {
        let dir = tempfile::tempdir_in(place).unwrap();
        let store = ImageStore::open(Self::config(&dir, LIMIT)).await.unwrap();
        let tar = Tarball::new().dir("d/", 0o755).file("d/low", 0o644, b"x").finish();
        let made = image(&[tar], Dialect::Oci, Compression::Gzip, json!({}));
        let image = import(&dir, &store, &made, "x.test/a:1").await;
        Self { dir, store, image }
    }

    fn config(dir: &TempDir, writable_quota: WritableQuota) -> StoreConfig {
        StoreConfig { writable_quota, ..StoreConfig::new(dir.path().join("image")) }
    }

    async fn reopen(mut self, writable_quota: WritableQuota) -> Self {
        self.store = open_with(Self::config(&self.dir, writable_quota), self.store).await;
        self.image = self.store.find("x.test/a:1").unwrap();
        self
    }

    async fn prepare(&self, container: &str) -> Snapshot {
        let made = self.store.prepare(container, &self.image).await;
        made.unwrap_or_else(|error| panic!("{}", error.report()))
    }

    fn project(&self, snapshot: &Snapshot) -> u32 {
        let of = |path: &Path| quota::project(std::fs::File::open(path).unwrap().as_fd()).unwrap();
        let id = of(&snapshot.upper);
        assert_eq!(of(&snapshot.work), id);
        assert_eq!(of(snapshot.upper.parent().unwrap()), id);
        id
    }

    fn quota(&self, id: u32) -> quota::Project {
        quota::get(std::fs::File::open(self.dir.path()).unwrap().as_fd(), id).unwrap()
    }

    /// XFS counts what was removed for some moments more.
    async fn wait_until_free(&self, id: u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.quota(id) != quota::Project::default() {
            assert!(Instant::now() < deadline, "{:?}", self.quota(id));
            tokio::task::yield_now().await;
        }
    }

    async fn usage(&self, container: &str) -> FsUsage {
        self.store.snapshot_usage(container).await.unwrap()
    }
}

/// Writes as much of `mib` as there is room for, as root without CAP_SYS_RESOURCE, to which ext4
/// holds no limit. Returns what dd says.
fn fill(path: &Path, mib: u64) -> String {
    let output = Command::new("setpriv")
        .arg("--bounding-set=-sys_resource")
        .args(["dd", "if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", path.display()))
        .arg(format!("count={}", mib * 16))
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), !said.contains("error writing"), "{said}");
    said
}

/// EDQUOT, for which XFS has ENOSPC.
fn assert_refused(said: &str, path: &Path) {
    let refused = said.contains("Disk quota exceeded") || said.contains("No space left on device");
    assert!(refused, "{said}");
    let written = path.metadata().unwrap().size();
    assert!((3 * MIB..=4 * MIB).contains(&written), "{written} bytes: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_cannot_write_more_than_its_quota() {
    for place in places() {
        let all = Limited::new(&place).await;
        let (one, two) = (all.prepare("one").await, all.prepare("two").await);
        let (first, second) = (all.project(&one), all.project(&two));
        assert!(first >= FIRST && second >= FIRST && first != second, "{first} {second}");
        let limits = Amount { bytes: 4 * MIB, inodes: 60 };
        assert_eq!((all.quota(first).limits, all.quota(second).limits), (limits, limits));

        // As a container does, through the overlay; and straight.
        let mounted = Mounted::new(&all.dir.path().join("merged"), &one);
        let big = mounted.root.join("d/big");
        assert_refused(&fill(&big, 8), &big);
        drop(mounted);
        let big = two.upper.join("big");
        assert!(!fill(&big, 2).contains("error"), "one's writing left two its own room");
        let used = all.usage("two").await;
        assert!((2 * MIB..3 * MIB).contains(&used.bytes), "{used:?}");
        assert!(all.usage("one").await.bytes > 3 * MIB);
        assert_refused(&fill(&big, 8), &big);
        assert!(all.quota(second).used.bytes <= 4 * MIB);

        // Prepared again, it is the same.
        assert_eq!(all.project(&all.prepare("one").await), first);
        all.store.release("one").await.unwrap();
        assert_eq!(all.quota(first).limits, Amount::default());
        assert_eq!(all.quota(second).limits, limits);
        all.store.release("two").await.unwrap();
        all.store.settle().await.unwrap();
        for id in [first, second] {
            all.wait_until_free(id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_files_is_limited_too() {
    for place in places() {
        let all = Limited::new(&place).await;
        let snapshot = all.prepare("ctr").await;
        let mounted = Mounted::new(&all.dir.path().join("merged"), &snapshot);
        let made = |n: &u32| std::fs::write(mounted.root.join(format!("f{n}")), b"").is_ok();
        let files = (0..100).take_while(made).count();
        // overlayfs writes without CAP_SYS_RESOURCE, so that root is held to it, too.
        assert!((45..60).contains(&files), "{files}");
        drop(mounted);
        assert!((50..=60).contains(&all.usage("ctr").await.inodes));
        all.store.release("ctr").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_found_again_and_never_shared() {
    for place in places() {
        let all = Limited::new(&place).await;
        let (one, two) = (all.prepare("one").await, all.prepare("two").await);
        let (first, second) = (all.project(&one), all.project(&two));
        // The next one is somebody else's: its directory is not below the store.
        let other = all.dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        quota::set_project(std::fs::File::open(&other).unwrap().as_fd(), second + 1).unwrap();
        // A lease that was lost.
        std::fs::write(two.upper.with_file_name("lease.json"), b"torn").unwrap();

        let all = all.reopen(LIMIT).await;
        let mut seen = vec![first, second, second + 1];
        for name in ["three", "four"] {
            let id = all.project(&all.prepare(name).await);
            assert!(!seen.contains(&id), "{id} of {seen:?}");
            seen.push(id);
        }
        // Without a quota containers get no project, and old ones keep theirs until the end.
        let all = all.reopen(WritableQuota::default()).await;
        let free = all.prepare("free").await;
        assert_eq!(all.project(&free), 0);
        assert!(!fill(&free.upper.join("big"), 8).contains("error"));
        for (name, id) in ["one", "two", "three", "four"].into_iter().zip([0, 1, 3, 4]) {
            let id = seen[id];
            assert_eq!(all.quota(id).limits.inodes, 60, "{name}");
            all.store.release(name).await.unwrap();
            assert_eq!(all.quota(id).limits, Amount::default(), "{name}");
        }
        all.store.release("free").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_a_killed_process_left_go_at_the_next_start() {
    for place in places() {
        let all = Limited::new(&place).await;
        let snapshot = all.prepare("ctr").await;
        let id = all.project(&snapshot);
        // As if it had been killed while it made, or removed, the container.
        let root = all.dir.path().join("image");
        std::fs::rename(root.join("rw/ctr"), root.join("staging/77")).unwrap();
        let all = all.reopen(LIMIT).await;
        assert_eq!(all.quota(id).limits, Amount::default());
        assert!(all.store.snapshots().is_empty());
    }
}

/// A small tmpfs, which has no project quota on any kernel.
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_project_quota_no_container_is_made_and_the_error_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("image");
    std::fs::create_dir(&root).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&root).status();
    assert!(status.unwrap().success());
    let _tmpfs = Tmpfs(root.clone());
    for (quota, keys) in [
        (WritableQuota { mib: Some(1), inodes: None }, "image.rw_quota_mib:"),
        (WritableQuota { mib: None, inodes: Some(99) }, "image.rw_quota_inodes:"),
        (LIMIT, "image.rw_quota_mib and image.rw_quota_inodes:"),
    ] {
        let store = ImageStore::open(Limited::config(&dir, quota)).await.unwrap();
        let tar = Tarball::new().file("f", 0o644, b"x").finish();
        let made = image(&[tar], Dialect::Oci, Compression::Gzip, json!({}));
        let image = import(&dir, &store, &made, "x.test/a:1").await;
        let error = store.prepare("ctr", &image).await.unwrap_err();
        let report = error.report();
        assert!(report.contains(keys) && report.contains("(tmpfs)"), "{report}");
        assert!(report.contains(root.to_str().unwrap()), "{report}");
        assert_eq!(error.kind(), ErrorKind::NotReady);
        assert!(store.snapshots().is_empty());
        for part in ["rw", "staging"] {
            assert_eq!(std::fs::read_dir(root.join(part)).unwrap().count(), 0, "{part}");
        }
        // What was not there is no error to release.
        store.release("ctr").await.unwrap();
        let store = open_with(Limited::config(&dir, WritableQuota::default()), store).await;
        store.prepare("ctr", &store.find("x.test/a:1").unwrap()).await.unwrap();
        store.release("ctr").await.unwrap();
        store.remove("x.test/a:1").await.unwrap();
        store.settle().await.unwrap();
        drop(store);
        // The next round opens it anew; its background work must have let go.
        wait_for_lock(&root).await;
    }
}

async fn wait_for_lock(root: &Path) {
    let root = root.to_owned();
    let taken = tokio::task::spawn_blocking(move || {
        let lock = std::fs::File::open(root.join("lock")).unwrap();
        lock.lock().unwrap();
    });
    tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap().unwrap();
}
