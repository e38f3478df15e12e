//! Disks that are full, out of inodes, read-only or failing.
//!
//! The device mapper is not in every kernel, so a failing disk is a loop device on a sparse file
//! whose own filesystem is full: what it cannot place, the kernel answers with EIO.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use berth_tests::host::run;
use berth_tests::image::{Image, Layer, Packing};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, archive};

/// A filesystem of its own; unmounted with its value.
struct Disk {
    path: PathBuf,
    /// What it lies on; unmounted after it.
    _below: Option<Box<Self>>,
}

impl Disk {
    /// A tmpfs with these options.
    fn tmpfs(options: &str) -> Result<Self> {
        let path = berth_tests::node::fresh_dir("disk")?;
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(&path)?])?;
        Ok(Self { path, _below: None })
    }

    /// An ext4 of 64 MiB of which only `mib` can be placed.
    fn thin(mib: u32) -> Result<Self> {
        let backing = Self::tmpfs(&format!("size={mib}m"))?;
        let path = berth_tests::node::fresh_dir("disk")?;
        let file = backing.path.join("image");
        fs::File::create(&file)?.set_len(64 << 20)?;
        run("mkfs.ext4", &["-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", text(&file)?])?;
        run("mount", &["-o", "loop,errors=continue", text(&file)?, text(&path)?])?;
        Ok(Self { path, _below: Some(Box::new(backing)) })
    }

    fn remount(&self, options: &str) -> Result<()> {
        run("mount", &["-o", &format!("remount,{options}"), text(&self.path)?]).map(drop)
    }

    /// Takes all the room there is, but for so many KiB.
    fn fill(&self, but: u64) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.path)?;
        let free = stat.blocks_available() * stat.fragment_size();
        let blocks = free.saturating_sub(but << 10) >> 10;
        let (file, count) = (self.path.join("ballast"), blocks.to_string());
        let to = format!("of={}", file.display());
        run("dd", &["if=/dev/zero", &to, "bs=1k", &format!("count={count}")]).map(drop)
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join("ballast"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failed test may have left something in there.
        let _ = run("umount", &["-l", &self.path.to_string_lossy()]);
        let _ = fs::remove_dir(&self.path);
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn no_space(error: &anyhow::Error) {
    let text = format!("{error:#}");
    assert!(text.contains("No space left") || text.contains("no space left"), "{text}");
}

async fn image_is_absent(node: &Node, name: &str) -> Result<()> {
    let request = ImageStatusRequest { image: Some(node.image(name)), verbose: false };
    ensure!(node.cri().image_status(request).await?.image.is_none(), "{name} is there");
    Ok(())
}

async fn runs(node: &Node, name: &str) -> Result<()> {
    let pod = node.pod(name).await?;
    let (status, log) = node.run_to_end(&pod, shell("main", "echo fine; exit 3")).await?;
    assert_eq!((status.exit_code, stream_text(&log, "stdout").as_str()), (3, "fine\n"));
    node.remove_pod(&pod.id).await
}

#[tokio::test]
async fn a_pull_on_a_full_disk_says_so_and_leaves_nothing_trusted() -> Result<()> {
    for options in ["size=1m", "size=64m,nr_inodes=60"] {
        let disk = Disk::tmpfs(options)?;
        let node = Node::builder().root(&disk.path.join("root")).start().await?;
        for _ in 0..2 {
            no_space(&node.pull("busybox:1").await.expect_err(options));
            image_is_absent(&node, "busybox:1").await?;
        }
        disk.remount("size=128m,nr_inodes=10000")?;
        runs(&node, "after").await.with_context(|| options.to_owned())?;
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pull_that_fills_the_disk_half_way_gives_the_room_back() -> Result<()> {
    let disk = Disk::tmpfs("size=16m")?;
    let node = Node::builder().root(&disk.path.join("root")).start().await?;
    let free = || -> Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&disk.path)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    };
    let before = free()?;
    let big = "x".repeat(24 << 20);
    let layer = Layer::packed(&archive(&[Entry::file("big", &big)]), Packing::Gzip)?;
    node.registry().push("too-big", "1", &Image::new(vec![layer]).build())?;
    no_space(&node.pull("too-big:1").await.expect_err("a layer larger than the disk"));
    image_is_absent(&node, "too-big:1").await?;
    true_within("the room given back", SOON, async || Ok(free()? + (256 << 10) >= before)).await?;
    runs(&node, "after").await?;
    node.finish().await
}

#[tokio::test]
async fn records_that_cannot_be_written_fail_the_call() -> Result<()> {
    let disk = Disk::tmpfs("size=32m")?;
    let node = Node::builder().root(&disk.path.join("root")).start().await?;
    node.pull("busybox:1").await?;
    disk.fill(0)?;
    no_space(&node.pod("full").await.expect_err("a pod without a record"));
    assert!(node.pods().await?.is_empty());
    disk.empty()?;
    let pod = node.pod("room").await?;
    disk.fill(0)?;
    no_space(&node.create(&pod, shell("main", "true")).await.expect_err("no record"));
    assert!(node.containers().await?.is_empty());
    // What runs can be stopped and removed without room.
    node.stop_pod(&pod.id).await?;
    node.remove_pod(&pod.id).await?;
    disk.empty()?;
    node.settled().await?;
    runs(&node, "after").await?;
    node.finish().await
}

#[tokio::test]
async fn a_full_state_directory_fails_the_pod_and_leaves_nothing() -> Result<()> {
    let disk = Disk::tmpfs("size=2m")?;
    let node = Node::builder().state(&disk.path.join("state")).start().await?;
    node.pull("busybox:1").await?;
    disk.fill(0)?;
    no_space(&node.pod("full").await.expect_err("a pod without state"));
    assert!(node.pods().await?.is_empty());
    disk.empty()?;
    node.settled().await?;
    runs(&node, "after").await?;
    node.finish().await
}

#[tokio::test]
async fn the_exit_code_survives_a_full_state_directory() -> Result<()> {
    let disk = Disk::tmpfs("size=2m")?;
    let node = Node::builder().state(&disk.path.join("state")).start().await?;
    let pod = node.pod("full").await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let mut config = shell("main", "while [ ! -e /vol/end ]; do usleep 10000; done; exit 7");
    config.mounts = vec![bind(&dir, "/vol")];
    let id = node.run(&pod, config).await?;
    disk.fill(0)?;
    fs::write(dir.join("end"), "")?;
    assert_eq!(node.exited(&id).await?.exit_code, 7);
    node.remove_pod(&pod.id).await?;
    disk.empty()?;
    node.finish().await
}

#[tokio::test]
async fn a_full_log_never_blocks_the_container_and_its_loss_is_told() -> Result<()> {
    let disk = Disk::tmpfs("size=256k")?;
    let node = Node::start().await?;
    let mut config = node.pod_config("logging")?;
    config.log_directory = disk.path.display().to_string();
    let pod = node.run_pod(config).await?;
    let script = "head -c 4000000 /dev/zero | tr '\\0' x | fold -w 99; exit 5";
    let script = script.replace("| fold -w 99", "| sed 's/.\\{99\\}/&\\n/g'");
    let id = node.run(&pod, shell("main", &script)).await?;
    let status = node.exited(&id).await?;
    assert_eq!(status.exit_code, 5);
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = node.cri().container_status(request).await?.info;
    let told =
        info.values().any(|text| text.contains("log_bytes_lost") || text.contains("logBytesLost"));
    assert!(told || status.message.contains("log"), "{info:?} {status:?}");
    // What is there is whole lines, the last one perhaps cut by the disk.
    let written = fs::read_to_string(node.log_file(&pod, "main.log"))?;
    for line in written.lines().rev().skip(1) {
        LogLine::parse(line)?;
    }
    node.remove_pod(&pod.id).await?;
    node.finish().await
}

#[tokio::test]
async fn a_log_goes_on_when_there_is_room_again() -> Result<()> {
    let disk = Disk::tmpfs("size=256k")?;
    let node = Node::start().await?;
    let mut config = node.pod_config("logging")?;
    config.log_directory = disk.path.display().to_string();
    let pod = node.run_pod(config).await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let mut config = shell("main", "while [ ! -e /vol/end ]; do usleep 5000; done; echo later");
    config.mounts = vec![bind(&dir, "/vol")];
    disk.fill(0)?;
    let id = node.run(&pod, config).await?;
    disk.empty()?;
    fs::write(dir.join("end"), "")?;
    node.exited(&id).await?;
    let log = node.log(&pod, "main.log")?;
    assert!(log.iter().any(|line| line.text == "later"), "{log:?}");
    node.remove_pod(&pod.id).await?;
    node.finish().await
}

#[tokio::test]
async fn a_readonly_root_fails_the_calls_and_not_the_daemon() -> Result<()> {
    let disk = Disk::tmpfs("size=64m")?;
    let mut node = Node::builder().root(&disk.path.join("root")).start().await?;
    let pod = node.pod("before").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    node.kill()?;
    disk.remount("ro")?;
    if let Err(refused) = node.launch().await {
        // It may refuse to start on such a disk, in clear words; the pods run on meanwhile.
        let text = format!("{refused:#}");
        assert!(text.contains("Read-only file system"), "{text}");
    } else {
        let error = node.pod("during").await.expect_err("a pod on a read-only disk");
        assert!(format!("{error:#}").contains("ead-only file system"), "{error:#}");
        node.kill()?;
    }
    disk.remount("rw")?;
    node.launch().await?;
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.remove_pod(&pod.id).await?;
    runs(&node, "after").await?;
    node.finish().await
}

#[tokio::test]
async fn what_a_failing_disk_lost_is_not_trusted() -> Result<()> {
    let disk = Disk::thin(16)?;
    let mut node = Node::builder().root(&disk.path.join("root")).start().await?;
    let big = "berth ".repeat(6 << 20);
    let layer = Layer::packed(&archive(&[Entry::file("big", &big)]), Packing::Gzip)?;
    node.registry().push("lost", "1", &Image::new(vec![layer]).build())?;
    let outcome = node.pull("lost:1").await;
    // The kernel may tell at the write, at the sync after the answer, or at the next read.
    if let Err(error) = &outcome {
        let text = format!("{error:#}").to_lowercase();
        assert!(text.contains("input/output") || text.contains("no space"), "{text}");
    }
    // Nothing of it counts as durable: the disk could not take 36 MiB.
    let marked = outcome.is_ok();
    node.kill()?;
    node.launch().await?;
    if marked {
        node.cri().list_images(ListImagesRequest::default()).await?;
    } else {
        image_is_absent(&node, "lost:1").await?;
    }
    node.finish().await
}
