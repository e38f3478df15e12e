//! What the store uses of its file systems.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::layer::LayerKey;
use super::{ImageId, Store};

/// What the layers, or the writable layers, use of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The directory on it where they lie.
    pub mountpoint: PathBuf,
    /// Disk space, in whole blocks.
    pub bytes: u64,
    /// Files, directories and all other nodes.
    pub inodes: u64,
}

/// Who uses how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    /// One entry per image, ordered by id.
    pub images: Vec<ImageDisk>,
    /// One entry per layer, the largest first.
    pub layers: Vec<LayerDisk>,
    /// What each container has written, by its id.
    pub containers: Vec<(String, FsUsage)>,
    /// Kept and half received blobs.
    pub blobs: FsUsage,
    /// Replaced layers that containers still run on.
    pub retired: FsUsage,
    /// What waits to be removed.
    pub trash: FsUsage,
}

/// What an image uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDisk {
    /// The image.
    pub id: ImageId,
    /// Its tags; may be empty.
    pub tags: Vec<String>,
    /// Disk space of all its layers.
    pub bytes: u64,
    /// As far as no other image shares them.
    pub unique_bytes: u64,
}

/// What a layer uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDisk {
    /// Its key.
    pub key: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Disk space, in whole blocks.
    pub bytes: u64,
    /// Files, directories and all other nodes.
    pub inodes: u64,
    /// How many images have it.
    pub images: usize,
    /// How many containers stand on it.
    pub containers: usize,
}

/// Disk space and nodes of a directory tree. What vanishes or cannot be read meanwhile is passed
/// over; other file systems mounted within are not entered.
pub(super) fn measured(path: &Path) -> (u64, u64) {
    let Ok(top) = path.symlink_metadata() else { return (0, 0) };
    let mut sum = (top.blocks().saturating_mul(512), 1_u64);
    let mut dirs = if top.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            sum.0 = sum.0.saturating_add(meta.blocks().saturating_mul(512));
            sum.1 = sum.1.saturating_add(1);
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    sum
}

fn usage(mountpoint: PathBuf, paths: impl IntoIterator<Item = PathBuf>) -> FsUsage {
    sum(mountpoint, paths.into_iter().map(|path| measured(&path)))
}

fn sum(mountpoint: PathBuf, parts: impl IntoIterator<Item = (u64, u64)>) -> FsUsage {
    let mut usage = FsUsage { mountpoint, bytes: 0, inodes: 0 };
    for (bytes, inodes) in parts {
        usage.bytes = usage.bytes.saturating_add(bytes);
        usage.inodes = usage.inodes.saturating_add(inodes);
    }
    usage
}

impl Store {
    /// The unpacked layers, from records: without touching the disk.
    pub(crate) fn usage(&self) -> FsUsage {
        let state = self.read();
        let records = || state.layers.values().map(|slot| &slot.record);
        FsUsage {
            mountpoint: self.layout.root().to_owned(),
            bytes: records().map(|r| r.bytes).fold(0, u64::saturating_add),
            inodes: records().map(|r| r.inodes).fold(0, u64::saturating_add),
        }
    }

    /// Layers and blobs: blobs are few files, looked at each time. Blocks.
    pub(crate) fn image_usage(&self) -> FsUsage {
        let mut sum = self.usage();
        let blobs = usage(PathBuf::new(), self.layout.blob_dirs());
        sum.bytes = sum.bytes.saturating_add(blobs.bytes);
        sum.inodes = sum.inodes.saturating_add(blobs.inodes);
        sum
    }

    /// What containers have written, from the quota or by walking it; of one container, or of all.
    /// Blocks.
    pub(crate) fn writable_usage(&self, container: Option<&str>) -> FsUsage {
        let all = || self.snapshots();
        let containers = container.map_or_else(all, |one| vec![one.to_owned()]);
        let one = |container: &String| {
            let walk = || measured(&self.layout.snapshot(container).join("fs"));
            self.counted(container).unwrap_or_else(walk)
        };
        sum(self.layout.writable_root().to_owned(), containers.iter().map(one))
    }

    /// Who uses how much. Blocks.
    pub(crate) fn du(&self) -> DiskUsage {
        let root = || self.layout.root().to_owned();
        let containers = self.snapshots().into_iter();
        DiskUsage {
            images: self.images_du(),
            layers: self.layers_du(),
            containers: containers.map(|id| (id.clone(), self.writable_usage(Some(&id)))).collect(),
            blobs: usage(root(), self.layout.blob_dirs()),
            retired: usage(root(), [self.layout.retired()]),
            trash: usage(root(), self.layout.all_trash()),
        }
    }

    fn images_du(&self) -> Vec<ImageDisk> {
        let state = self.read();
        let bytes = |key: &LayerKey| state.layers.get(key).map_or(0, |slot| slot.record.bytes);
        let users = |key: &LayerKey| {
            state.images.values().filter(|i| i.record.layers.contains(key)).count()
        };
        let one = |image: &std::sync::Arc<super::Image>| {
            let mut keys: Vec<_> = image.record.layers.iter().collect();
            keys.sort();
            keys.dedup();
            let own = keys.iter().filter(|key| users(key) == 1);
            ImageDisk {
                id: image.id.clone(),
                tags: image.repo_tags.clone(),
                bytes: keys.iter().map(|key| bytes(key)).fold(0, u64::saturating_add),
                unique_bytes: own.map(|key| bytes(key)).fold(0, u64::saturating_add),
            }
        };
        state.images.values().map(one).collect()
    }

    fn layers_du(&self) -> Vec<LayerDisk> {
        let state = self.read();
        let one = |slot: &super::Slot| {
            let key = &slot.record.key;
            LayerDisk {
                key: key.to_string(),
                path: self.layout.layer(&key.short()),
                bytes: slot.record.bytes,
                inodes: slot.record.inodes,
                images: state.images.values().filter(|i| i.record.layers.contains(key)).count(),
                containers: state.snapshots.values().filter(|l| l.layers.contains(key)).count(),
            }
        };
        let mut layers: Vec<_> = state.layers.values().map(one).collect();
        layers.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.key.cmp(&b.key)));
        layers
    }
}
