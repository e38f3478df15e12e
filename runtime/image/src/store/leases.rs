//! Containers' claims on layers, and what all of it uses.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use super::layer::LayerRecord;
use super::{Error, Image, Store};
use crate::snapshot::Lease;

/// What the layers, or the writable layers, use of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// Disk space, in whole blocks.
    pub bytes: u64,
    /// Files, directories and all other nodes.
    pub inodes: u64,
}

/// Adds up a directory tree. What vanishes or cannot be read meanwhile is passed over.
fn measure(path: &Path, usage: &mut FsUsage) {
    let Ok(meta) = path.symlink_metadata() else { return };
    usage.inodes = usage.inodes.saturating_add(1);
    usage.bytes = usage.bytes.saturating_add(meta.blocks().saturating_mul(512));
    if !meta.is_dir() {
        return;
    }
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        measure(&entry.path(), usage);
    }
}

impl Store {
    /// Lets nothing of the image go while its lease is being written.
    pub(crate) fn claim_layers(&self, image: &Image) -> Result<MutexGuard<'_, ()>, Error> {
        let writer = self.writer();
        self.layer_records(image)?;
        Ok(writer)
    }

    pub(crate) fn lease(&self, container: &str) -> Option<Arc<Lease>> {
        self.read().snapshots.get(container).cloned()
    }

    pub(crate) fn add_lease(&self, container: &str, lease: Lease) {
        self.write().snapshots.insert(container.to_owned(), Arc::new(lease));
    }

    pub(crate) fn snapshots(&self) -> Vec<String> {
        self.read().snapshots.keys().cloned().collect()
    }

    pub(crate) fn remove_snapshot(&self, container: &str) -> Result<(), Error> {
        let _writer = self.writer();
        let home = self.layout.snapshot(container);
        let place = self.layout.trash().join(self.unique());
        match std::fs::rename(&home, &place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("move to the trash", &home)(error));
            }
            _ => {}
        }
        self.write().snapshots.remove(container);
        self.collect_unneeded();
        self.untidy.notify_one();
        Ok(())
    }

    /// The image's layers, bottom first; an error if one is not there any more.
    pub(crate) fn layer_records(&self, image: &Image) -> Result<Vec<Arc<LayerRecord>>, Error> {
        let state = self.read();
        let slots = image.record.layers.iter().map(|key| state.layers.get(key));
        slots
            .map(|slot| slot.map(|slot| slot.record.clone()))
            .collect::<Option<_>>()
            .ok_or_else(|| Error::Gone { id: image.id.clone() })
    }

    /// From records, without touching the disk.
    pub(crate) fn usage(&self) -> FsUsage {
        let state = self.read();
        let records = || state.layers.values().map(|slot| &slot.record);
        FsUsage {
            mountpoint: self.layout.root().to_owned(),
            bytes: records().map(|r| r.bytes).fold(0, u64::saturating_add),
            inodes: records().map(|r| r.inodes).fold(0, u64::saturating_add),
        }
    }

    /// What containers have written, by walking it; of one container, or of all. Blocks.
    pub(crate) fn writable_usage(&self, container: Option<&str>) -> FsUsage {
        let mountpoint = self.layout.root().to_owned();
        let mut usage = FsUsage { mountpoint, bytes: 0, inodes: 0 };
        let all = || self.snapshots();
        for container in container.map_or_else(all, |one| vec![one.to_owned()]) {
            measure(&self.layout.snapshot(&container).join("fs"), &mut usage);
        }
        usage
    }
}
