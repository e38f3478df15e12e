//! Power cuts that lose, tear and reorder writes. The store works on a device that logs every
//! write; then the disk is put together again as it may have been at many instants, and a store
//! opened on it must serve no wrong byte and have every image that was durable.
//!
//! Needs two spare devices and a kernel with dm-log-writes: `cargo xtask vm-test reorder-ext4`.
//! `BERTH_TEST_LOG_WRITES` names the devices, `BERTH_TEST_FS` the file system (ext4, xfs),
//! `BERTH_TEST_POINTS` how many cuts, `BERTH_TEST_SEED` which ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{ImageStore, StoreConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, TestImage, image, oci_archive};
use crate::replay::{Entry, Log};
use crate::tarball::Tarball;

/// Enough for xfs, which makes none below 300 MiB.
const SIZE_MIB: u64 = 330;
const LIMIT: Duration = Duration::from_secs(120);
const ROUNDS: usize = 24;
const IMAGES: usize = 5;
const NAME: &str = "io.containerd.image.name";

/// A sequence of numbers that a seed gives again (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// An image, the archive it comes in, and the files it must hold.
struct Sample {
    name: String,
    archive: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
}

impl Sample {
    fn make(dir: &Path, number: usize) -> Self {
        let mut files = BTreeMap::new();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
        let shared = layer(&mut files, &mut Dice(7), "base", 20);
        let own = layer(&mut files, &mut dice, &format!("own{number}"), 15);
        let made: TestImage = image(&[shared, own], Dialect::Oci, Compression::Plain, json!({}));
        let name = format!("x.test/sample:{number}");
        let archive = dir.join(format!("{number}.tar"));
        std::fs::write(&archive, oci_archive(&[(&made, &[(NAME, &name)])])).unwrap();
        Self { name, archive, files }
    }

    async fn bring(&self, store: &ImageStore) {
        let done = store.import_oci_archive(&self.archive).await;
        done.unwrap_or_else(|error| panic!("{}: {}", self.name, error.report()));
    }

    /// Reads every file.
    async fn assert_whole(&self, store: &ImageStore, what: &str) {
        let image = store.find(&self.name).unwrap();
        for (path, content) in &self.files {
            let read = store.read_file(&image, path, 1 << 20).await;
            let read = read.unwrap_or_else(|e| panic!("{what}: {path}: {}", e.report()));
            assert!(read.as_ref() == Some(content), "{what}: {} has another {path}", self.name);
        }
    }
}

fn layer(
    files: &mut BTreeMap<String, Vec<u8>>,
    dice: &mut Dice,
    dir: &str,
    count: usize,
) -> Vec<u8> {
    let mut tar = Tarball::new().dir(&format!("{dir}/"), 0o755);
    for number in 0..count {
        let path = format!("{dir}/f{number}");
        let length = 1 + dice.below(30_000);
        // Eight bytes over and over that no other file has.
        let mark = (dice.below(usize::MAX) as u64 | 1).to_le_bytes();
        let content: Vec<u8> = mark.into_iter().cycle().take(length).collect();
        tar = tar.file(&path, 0o644, &content);
        files.insert(path, content);
    }
    tar.finish()
}

/// Runs a program that must succeed.
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
}

/// A mount, taken down in the end.
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, device: &Path, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let (device, place) = (device.to_str().unwrap(), at.to_str().unwrap());
        run("mount", &["-t", kind, "-o", options, device, place]);
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A store's last task may still hold a file.
        let deadline = Instant::now() + LIMIT;
        while !Command::new("umount").arg(&self.0).output().is_ok_and(|o| o.status.success()) {
            assert!(Instant::now() < deadline || std::thread::panicking(), "umount");
            if std::thread::panicking() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// The device that logs, taken down in the end.
struct Logged {
    name: String,
}

impl Logged {
    fn new(data: &str, log: &str) -> Self {
        let name = format!("berth-test-{}", std::process::id());
        let table = format!("0 {} log-writes {data} {log}", SIZE_MIB * 2048);
        run("dmsetup", &["create", &name, "--noudevsync", "--table", &table]);
        // Where no udev makes the node.
        run("dmsetup", &["mknodes", "--noudevsync", &name]);
        Self { name }
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    fn mark(&self, text: &str) {
        run("dmsetup", &["message", &self.name, "0", "mark", text]);
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let removed = Command::new("dmsetup")
            .args(["remove", "--noudevsync", "--retry", &self.name])
            .status();
        assert!(removed.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

async fn open(root: &Path, boot: &str) -> Arc<ImageStore> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut config = StoreConfig::new(root.join("image"));
        config.boot_id = Some(boot.to_owned());
        match ImageStore::open(config).await {
            Ok(store) => return store,
            // The lock goes with the last task of the store before.
            Err(error) if Instant::now() > deadline => panic!("{boot}: {}", error.report()),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Brings images, removes them, opens the store anew; and marks in the log what is durable.
async fn work(root: &Path, device: &Logged, samples: &[Sample], dice: &mut Dice) {
    let mut store = open(root, "work").await;
    let mut present: BTreeSet<usize> = BTreeSet::new();
    let mut durable = present.clone();
    for round in 0..ROUNDS {
        let number = dice.below(samples.len());
        if present.remove(&number) {
            durable.remove(&number);
            device.mark(&mark_of(&durable));
            store.remove(&samples[number].name).await.unwrap();
        } else {
            samples[number].bring(&store).await;
            present.insert(number);
        }
        // Now and then nothing waits for the disk.
        if dice.below(3) > 0 {
            store.settle().await.unwrap();
            durable.clone_from(&present);
            device.mark(&mark_of(&durable));
        }
        if round % 6 == 5 {
            drop(store);
            store = open(root, "work").await;
        }
    }
    store.settle().await.unwrap();
}

/// The mark that says which images are durable.
fn mark_of(durable: &BTreeSet<usize>) -> String {
    let numbers: Vec<String> = durable.iter().map(usize::to_string).collect();
    format!("durable:{}", numbers.join(","))
}

/// The images that were durable when entry `until` was written.
fn durable(log: &[Entry], until: usize) -> Vec<usize> {
    let mark = log[..until].iter().rev().find_map(|entry| entry.mark.as_deref());
    let numbers = mark.and_then(|mark| mark.strip_prefix("durable:")).unwrap_or_default();
    numbers.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

/// A store opened on what a cut left.
async fn check(root: &Path, samples: &[Sample], wanted: &[usize], what: &str) {
    let store = open(root, what).await;
    // What is listed is right at any moment.
    assert_listed_are_whole(&store, samples, what).await;
    let deadline = Instant::now() + LIMIT;
    for number in wanted {
        while store.find(&samples[*number].name).is_none() {
            assert!(Instant::now() < deadline, "{what}: durable image {number} is lost");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert_listed_are_whole(&store, samples, what).await;
    // And all goes on.
    let again = &samples[0];
    again.bring(&store).await;
    again.assert_whole(&store, what).await;
    store.settle().await.unwrap();
}

async fn assert_listed_are_whole(store: &ImageStore, samples: &[Sample], what: &str) {
    for sample in samples {
        if store.find(&sample.name).is_some() {
            sample.assert_whole(store, what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_of_writes_spoils_the_store() {
    let Ok(devices) = std::env::var("BERTH_TEST_LOG_WRITES") else {
        println!("skipped: BERTH_TEST_LOG_WRITES names no devices");
        return;
    };
    let (data, log) = devices.split_once(' ').expect("two devices");
    let fs = std::env::var("BERTH_TEST_FS").expect("BERTH_TEST_FS: ext4 or xfs");
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let points = number("BERTH_TEST_POINTS").unwrap_or(20);
    let seed = number("BERTH_TEST_SEED").unwrap_or(u64::from(std::process::id()) | 1);
    println!("{fs}, {points} cuts, BERTH_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let dir = TempDir::new().unwrap();
    let samples: Vec<Sample> = (0..IMAGES).map(|n| Sample::make(dir.path(), n)).collect();
    // In memory: each cut is a copy.
    let memory = dir.path().join("memory");
    let _memory = Mount::new("tmpfs", Path::new("tmpfs"), &memory, "size=2G");
    let base = memory.join("base");
    make_fs(&fs, Path::new(data), &base);
    let device = Logged::new(data, log);
    {
        let mount = Mount::new(&fs, &device.path(), &dir.path().join("work"), "noatime");
        work(&mount.0, &device, &samples, &mut dice).await;
    }
    drop(device);
    let log = Log::read(File::open(log).unwrap()).unwrap();
    println!("{} entries were logged", log.entries.len());
    let mut cuts: Vec<usize> = (0..points).map(|_| 1 + dice.below(log.entries.len())).collect();
    cuts.sort_unstable();
    let disk = File::options().write(true).open(&base).unwrap();
    let mut settled = 0;
    for (at, cut) in cuts.into_iter().enumerate() {
        let until = log.settled(settled, cut);
        log.entries[settled..until].iter().for_each(|entry| log.apply(entry, &disk).unwrap());
        settled = until;
        let luck = dice.below(4);
        let lost = log.unsettled(settled, cut, |entry| match luck {
            0 => 0,
            1 => entry.length(),
            _ => dice_length(&mut dice, entry),
        });
        let wanted = durable(&log.entries, cut);
        let what = format!("{fs}, seed {seed}, cut {at} at entry {cut}");
        let image = memory.join("cut");
        run("cp", &["--sparse=always", base.to_str().unwrap(), image.to_str().unwrap()]);
        let copy = File::options().write(true).open(&image).unwrap();
        lost.iter().for_each(|entry| log.apply(entry, &copy).unwrap());
        drop(copy);
        let mount = Mount::new(&fs, &image, &dir.path().join("cut"), "loop,noatime");
        check(&mount.0, &samples, &wanted, &what).await;
        drop(mount);
        println!("{what}: {} durable images are whole", wanted.len());
    }
}

/// Half of the writes are lost, a quarter torn.
fn dice_length(dice: &mut Dice, entry: &Entry) -> u64 {
    match dice.below(4) {
        0 | 1 => 0,
        2 => entry.length(),
        _ => dice.below(usize::try_from(entry.length()).unwrap() + 1) as u64,
    }
}

/// On the device, and as a file with the same content, to which the log is applied later.
fn make_fs(fs: &str, device: &Path, base: &Path) {
    let file = File::create(base).unwrap();
    file.set_len(SIZE_MIB << 20).unwrap();
    drop(file);
    let path = base.to_str().unwrap();
    match fs {
        "ext4" => run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0", path]),
        "xfs" => run("mkfs.xfs", &["-q", "-f", path]),
        other => panic!("BERTH_TEST_FS={other}: ext4 or xfs"),
    }
    let (size, device) = (format!("{SIZE_MIB}MiB"), device.to_str().unwrap());
    run("blkdiscard", &["--force", "--zeroout", "--length", &size, device]);
    let (from, to) = (format!("if={path}"), format!("of={device}"));
    run("dd", &[&from, &to, "bs=1M", "conv=fsync,notrunc,sparse"]);
}
