//! Containers' claims on layers, and what all of it uses.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use super::layer::LayerRecord;
use super::{Error, Image, Store};
use crate::snapshot::Lease;

/// What the store uses of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub mountpoint: PathBuf,
    /// Disk space of the unpacked layers.
    pub bytes: u64,
    /// Inodes of the unpacked layers.
    pub inodes: u64,
}

impl Store {
    /// Lets nothing of the image go while its lease is being written.
    pub(crate) fn claim_snapshot(
        &self,
        _container: &str,
        image: &Image,
    ) -> Result<MutexGuard<'_, ()>, Error> {
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
}
