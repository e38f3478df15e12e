//! Containers' claims on layers.

use std::sync::{Arc, MutexGuard};

use super::gc::BATCH;
use super::layer::LayerRecord;
use super::{Error, Image, Store, Trust};
use crate::snapshot::Lease;

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
        match self.throw(&home) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("move to the trash", &home)(error));
            }
            _ => {}
        }
        let lease = self.write().snapshots.remove(container);
        self.release_project(lease.and_then(|lease| lease.project));
        self.collect_some(BATCH);
        self.untidy.notify_one();
        Ok(())
    }

    /// The image's layers, bottom first; an error if one is not there any more, or not sound.
    pub(crate) fn layer_records(&self, image: &Image) -> Result<Vec<Arc<LayerRecord>>, Error> {
        let state = self.read();
        let sound = |key| state.layers.get(key).filter(|slot| slot.trust == Trust::Sound);
        let records = image.record.layers.iter().map(|key| sound(key).map(|s| s.record.clone()));
        let id = image.id.clone();
        records.collect::<Option<_>>().ok_or_else(|| {
            if state.broken.contains(&id) {
                let reason = "its layers are being checked or fetched again".to_owned();
                return Error::BeingRepaired { id, reason };
            }
            Error::Gone { id }
        })
    }
}
