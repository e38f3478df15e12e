//! Looking after a store: what is wrong with it, what it holds and why, and setting it right.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::layers::blocking;
use crate::store::{
    DiskUsage, FsUsage, FsckOptions, FsckReport, GcOptions, GcReport, Image, ImageId, LayerHealth,
    Reason,
};
use crate::{Error, ImageStore};

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was found before.
    pub found: FsckReport,
    /// Images that are whole again.
    pub repaired: Vec<ImageId>,
    /// Images that are not, and why: not listed until a later repair or a pull succeeds.
    pub failed: Vec<(ImageId, String)>,
    /// Keys of damaged layers that no image names, so that nothing can be fetched: only
    /// containers stand on them, and they go with these.
    pub without_image: Vec<String>,
}

impl ImageStore {
    /// Compares layers with what was unpacked, and changes nothing. Reads every byte of them.
    /// `NotFound` if the options name nothing that there is.
    pub async fn fsck(&self, options: FsckOptions) -> Result<FsckReport, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.fsck(&options)?)).await
    }

    /// As [`fsck`](Self::fsck); then what is damaged or missing is unpacked again, from kept
    /// blobs or from where the image came. Until that is done, its images are not listed.
    /// Containers that run keep what they have.
    pub async fn repair(&self, options: FsckOptions) -> Result<RepairReport, Error> {
        let found = self.fsck(options).await?;
        let mut report = RepairReport { found, ..RepairReport::default() };
        let mut keys = Vec::new();
        let mut affected = BTreeSet::new();
        for check in &report.found.layers {
            if matches!(check.health, LayerHealth::Sound | LayerHealth::Unlisted) {
                continue;
            }
            keys.push(check.key.clone());
            affected.extend(check.images.iter().cloned());
            if check.images.is_empty() {
                report.without_image.push(check.key.clone());
            }
        }
        let store = self.store.clone();
        blocking(move || {
            keys.iter().for_each(|key| store.condemn_key(key));
            Ok(())
        })
        .await?;
        for image in self.store.broken() {
            affected.remove(&image.id);
            match self.healer.refetch(&image).await {
                Ok(()) => report.repaired.push(image.id.clone()),
                Err(error) => report.failed.push((image.id.clone(), error.report())),
            }
        }
        // What is condemned is healed in the background as well, which may have been faster.
        report.repaired.extend(affected);
        Ok(report)
    }

    /// Removes what nothing needs: it goes by itself, so that this matters after a crash or for
    /// what was put into the store's directories by hand. Waits until it is gone.
    pub async fn gc(&self, options: GcOptions) -> Result<GcReport, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.gc(options))).await
    }

    /// Why an image, by any of its names, or a layer, by its key, its directory's name or its
    /// diff-id, is kept. Nothing, where it will go. `NotFound` if there is none.
    pub fn explain(&self, name: &str) -> Result<Vec<Reason>, Error> {
        let mut reasons = self.store.explain(name)?;
        let image = self.store.find_any(name);
        reasons.extend(image.is_some_and(|i| self.pins.hold(&i)).then_some(Reason::Pinned));
        Ok(reasons)
    }

    /// Who uses how much of the disk; walks writable layers and blobs.
    pub async fn du(&self) -> Result<DiskUsage, Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.du())).await
    }

    /// What layers and kept blobs use: never fails.
    pub async fn image_usage(&self) -> FsUsage {
        let store = self.store.clone();
        let looked = tokio::task::spawn_blocking(move || store.image_usage()).await;
        looked.unwrap_or_else(|_| self.fs_usage())
    }

    /// The writable layers lie on another file system than the images.
    #[must_use]
    pub fn has_writable_fs(&self) -> bool {
        self.store.layout.writable_root() != self.store.layout.root()
    }

    /// As [`find`](Self::find), but waits, for a minute at most, for an image that is being
    /// verified or repaired. `NotReady` if that takes longer or fails, with the reason.
    pub async fn ready(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        self.healer.ready(name).await
    }

    /// Waits until no layer is unverified any more. Damaged ones may still be on their way.
    pub async fn verified(&self) {
        let mut changes = self.store.trust.subscribe();
        while !self.store.unverified().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
