//! Pulls of images that the store lacks, from a registry on this machine, and their removal.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use berth_tests::image::Built;
use tokio::task::JoinSet;

use super::{Clock, Scale, Target, memory};
use crate::floor;
use crate::pods::timed;
use crate::samples::{Metric, Samples};
use crate::trees::Tree;

/// What one image's pulls give.
pub(crate) struct Pull {
    tree: Tree,
    wall: Metric,
    cpu: Metric,
    peak: Metric,
}

/// What the same costs with nothing around it: see [`floor`].
pub(crate) async fn floor(
    pull: &'static Pull,
    image: &Built,
    dir: &Path,
    scale: Scale,
) -> Result<Samples> {
    let mut samples = Samples::default();
    // The last blob is the configuration.
    let layers = image.blobs.split_last().map_or(&[][..], |(_, layers)| layers);
    for _ in 0..scale.repeats {
        berth_tests::host::run("sync", &[])?;
        let (layers, dir) = (layers.to_vec(), dir.to_owned());
        let measure = move || {
            let layers: Vec<&[u8]> = layers.iter().map(|blob| blob.bytes.as_slice()).collect();
            floor::measure(&layers, &dir)
        };
        let floor = tokio::task::spawn_blocking(measure).await??;
        samples.push(pull.wall, floor.wall.as_secs_f64());
        samples.push(pull.cpu, floor.cpu.as_secs_f64());
    }
    Ok(samples)
}

impl Pull {
    /// Which image it is.
    pub(crate) fn tree(&self) -> Tree {
        self.tree
    }
}

/// Four layers of gzip, 867 MB of files.
pub(crate) const GZIP: Pull = Pull {
    tree: Tree::Gzip,
    wall: Metric::cost("pull, 4 gzip layers: time", "s"),
    cpu: Metric::cost("pull, 4 gzip layers: CPU", "s"),
    peak: Metric::cost("pull, 4 gzip layers: daemon's peak", "MiB"),
};

/// The same files, Zstandard.
pub(crate) const ZSTD: Pull = Pull {
    tree: Tree::Zstd,
    wall: Metric::cost("pull, 4 zstd layers: time", "s"),
    cpu: Metric::cost("pull, 4 zstd layers: CPU", "s"),
    peak: Metric::cost("pull, 4 zstd layers: daemon's peak", "MiB"),
};

/// One layer of gzip, 204 MB of files.
pub(crate) const FAT: Pull = Pull {
    tree: Tree::Fat,
    wall: Metric::cost("pull, 1 gzip layer: time", "s"),
    cpu: Metric::cost("pull, 1 gzip layer: CPU", "s"),
    peak: Metric::cost("pull, 1 gzip layer: daemon's peak", "MiB"),
};

/// 50,000 small files in one layer.
pub(crate) const FILES: Pull = Pull {
    tree: Tree::Files,
    wall: Metric::cost("pull, 50,000 files: time", "s"),
    cpu: Metric::cost("pull, 50,000 files: CPU", "s"),
    peak: Metric::cost("pull, 50,000 files: daemon's peak", "MiB"),
};

const REMOVE: Metric = Metric::cost("removal of the 4-layer image: time", "ms");
const TEN_WALL: Metric = Metric::cost("ten equal pulls over one: time", "ratio");
const TEN_CPU: Metric = Metric::cost("ten equal pulls over one: CPU", "ratio");

/// Pulls, measures and removes, again and again.
pub(super) async fn measure(target: &Target, pull: &Pull, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let Some(image) = target.pulls.get(pull.tree) else { return Ok(samples) };
    target.node.remove_image(image).await?;
    for _ in 0..scale.repeats {
        quiet(target).await?;
        forget_peak(target)?;
        let cost = once(target, image, 1).await?;
        samples.push(pull.wall, cost.wall);
        if let Some(cpu) = cost.cpu {
            samples.push(pull.cpu, cpu);
        }
        if let Some(peak) = peak(target)? {
            samples.push(pull.peak, memory::mebibytes(peak));
        }
        let ((), time) = timed(target.node.remove_image(image)).await?;
        if pull.tree == Tree::Gzip {
            samples.push(REMOVE, super::millis(time));
        }
    }
    Ok(samples)
}

/// What ten callers cost that want the same at once, beside what one costs.
pub(super) async fn ten(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let Some(image) = target.pulls.get(Tree::Gzip) else { return Ok(samples) };
    target.node.remove_image(image).await?;
    for _ in 0..scale.repeats {
        quiet(target).await?;
        let one = once(target, image, 1).await?;
        target.node.remove_image(image).await?;
        quiet(target).await?;
        let ten = once(target, image, 10).await?;
        target.node.remove_image(image).await?;
        samples.push(TEN_WALL, ten.wall / one.wall);
        if let (Some(ten), Some(one)) = (ten.cpu, one.cpu) {
            samples.push(TEN_CPU, ten / one);
        }
    }
    Ok(samples)
}

/// Seconds.
struct Cost {
    wall: f64,
    cpu: Option<f64>,
}

async fn once(target: &Target, image: &str, callers: u32) -> Result<Cost> {
    let clock = Clock::start(target).await?;
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for _ in 0..callers {
        let (node, image) = (target.node.clone(), image.to_owned());
        pulls.spawn(async move { node.pull(&image).await });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled??;
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = clock.used().await?.map(|cpu| cpu.as_secs_f64());
    Ok(Cost { wall, cpu })
}

/// Waits until the runtime has done what it does behind its answers, such as unlinking, and the
/// disk has what was written: the next pull shall pay for itself alone.
async fn quiet(target: &Target) -> Result<()> {
    tokio::task::spawn_blocking(|| berth_tests::host::run("sync", &[])).await??;
    let Some(account) = &target.account else { return Ok(()) };
    let end = Instant::now() + Duration::from_secs(30);
    let mut before = account.cpu()?;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = account.cpu()?;
        if now.saturating_sub(before) < Duration::from_millis(5) {
            return Ok(());
        }
        before = now;
    }
    anyhow::bail!("the runtime does not come to rest")
}

/// proc(5): 5 written to clear_refs sets the peak to what is resident now.
fn forget_peak(target: &Target) -> Result<()> {
    let Some(daemon) = target.daemon else { return Ok(()) };
    let path = format!("/proc/{daemon}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}

/// The most memory that the daemon had resident since, in bytes.
fn peak(target: &Target) -> Result<Option<u64>> {
    let Some(daemon) = target.daemon else { return Ok(None) };
    let status = fs::read_to_string(format!("/proc/{daemon}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.context("status lacks VmHWM")?.trim().trim_end_matches(" kB");
    Ok(Some(kibibytes.parse::<u64>()? * 1024))
}
