//! How far a load has come, to be looked at from outside.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::progress::{Entry, PullStatus};

/// Shared between the work and whoever shows it.
#[derive(Debug, Default)]
pub struct LoadProgress {
    received: AtomicU64,
    spooled: AtomicU64,
    complete: AtomicBool,
    image: Mutex<Option<Arc<Entry>>>,
}

impl LoadProgress {
    /// Bytes of the archive that have come.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of its members that have been put aside.
    #[must_use]
    pub fn bytes_spooled(&self) -> u64 {
        self.spooled.load(Ordering::Relaxed)
    }

    /// Whether the whole archive is there, and its images are being unpacked.
    #[must_use]
    pub fn is_received(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// The image that is being unpacked.
    #[must_use]
    pub fn image(&self) -> Option<PullStatus> {
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        image.as_ref().map(|entry| entry.status())
    }

    pub(super) fn unpacks(&self, image: Arc<Entry>) {
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Some(image);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn spooled(&self, bytes: u64) {
        self.spooled.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }
}
