//! Comparing layers with their listings: after a boot that may have lost data, after a failed
//! sync, and when someone asks.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, CWD, Mode, OFlags};

use super::durable::{digest_of, marker};
use super::layer::{DAMAGED, LayerKey, LayerRecord};
use super::{Error, ImageId, Store, Trust, open_dir};
use crate::unpack::listing::{Damage, LISTING, Listing};

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct FsckOptions {
    /// Only layers of this image or with this key; all, if `None`.
    pub only: Option<String>,
    /// Moved while the check goes on.
    pub progress: Arc<FsckProgress>,
}

/// How far a check has come, to be looked at from outside.
#[derive(Debug, Default)]
pub struct FsckProgress {
    layers: AtomicU64,
    checked: AtomicU64,
    bytes: AtomicU64,
    bytes_checked: AtomicU64,
}

impl FsckProgress {
    /// Layers to look at and looked at, then their disk space, in the same order.
    #[must_use]
    pub fn counts(&self) -> [u64; 4] {
        [&self.layers, &self.checked, &self.bytes, &self.bytes_checked]
            .map(|count| count.load(Ordering::Relaxed))
    }

    fn begin(&self, sizes: &[u64]) {
        self.layers.store(sizes.len() as u64, Ordering::Relaxed);
        let sum = sizes.iter().copied().fold(0, u64::saturating_add);
        self.bytes.store(sum, Ordering::Relaxed);
    }

    fn checked(&self, bytes: u64) {
        self.checked.fetch_add(1, Ordering::Relaxed);
        self.bytes_checked.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// One entry per layer looked at, ordered by key.
    pub layers: Vec<LayerCheck>,
    /// What lies in the store's directories and no record knows; a collection removes it.
    pub orphans: Vec<PathBuf>,
    /// Images of which a layer is missing: neither listed nor usable.
    pub incomplete: Vec<ImageId>,
}

impl FsckReport {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let well =
            |check: &LayerCheck| matches!(check.health, LayerHealth::Sound | LayerHealth::Unlisted);
        self.layers.iter().all(well) && self.orphans.is_empty() && self.incomplete.is_empty()
    }
}

/// What a check found of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCheck {
    /// Its key.
    pub key: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The images that have it.
    pub images: Vec<ImageId>,
    /// What it is found to be.
    pub health: LayerHealth,
}

/// Whether a layer is what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerHealth {
    /// Every file of it is as it was unpacked.
    Sound,
    /// These paths are not as they were unpacked; at least one.
    Damaged(Vec<PathDamage>),
    /// It, or its listing, cannot be read.
    Unreadable(String),
    /// It has no listing: an earlier version unpacked it.
    Unlisted,
}

/// A path that is not as it was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathDamage {
    /// Within the layer; bytes that are no text are replaced.
    pub path: String,
    /// What differs: `missing`, `content`, …; separated by commas.
    pub what: String,
}

impl Store {
    /// Compares all of a layer with its listing, as it is on the disk: what memory has of its
    /// files is dropped before. Blocks.
    pub(crate) fn examine(&self, key: &LayerKey) -> LayerHealth {
        let path = self.layout.layer(&key.short());
        let unreadable = |what: &str, error: &dyn std::fmt::Display| {
            LayerHealth::Unreadable(format!("{what}: {error}"))
        };
        let home = match open_dir(&path) {
            Ok(home) => home,
            Err(error) => return unreadable("its directory", &crate::Error::from(error).report()),
        };
        let digest = match digest_of(home.as_fd(), LISTING) {
            Ok(digest) => digest,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return LayerHealth::Unlisted;
            }
            Err(error) => return unreadable("its listing", &error),
        };
        if marker(&path).and_then(|marker| marker.listing).is_some_and(|marked| marked != digest) {
            return LayerHealth::Unreadable("its listing is not the one it was marked with".into());
        }
        let listing = match Listing::read(&path.join(LISTING)) {
            Ok(listing) => listing,
            Err(error) => return unreadable("its listing", &error),
        };
        let root = path.join("fs");
        let fs = match open_dir(&root) {
            Ok(fs) => fs,
            Err(error) => return unreadable("its root", &crate::Error::from(error).report()),
        };
        forget(&root);
        self.compare(&listing, &fs)
    }

    fn compare(&self, listing: &Listing, fs: &OwnedFd) -> LayerHealth {
        let mut go_on = |_bytes: u64| !self.is_closing();
        match listing.verify(fs.as_fd(), &mut go_on) {
            Ok(damage) if damage.is_empty() => LayerHealth::Sound,
            Ok(damage) => LayerHealth::Damaged(damage.into_iter().map(PathDamage::from).collect()),
            Err(error) => LayerHealth::Unreadable(error.to_string()),
        }
    }

    /// Layers that are not known to have reached the disk in the boot they are from.
    pub(crate) fn unverified(&self) -> Vec<LayerKey> {
        let state = self.read();
        let unverified = state.layers.values().filter(|slot| slot.trust == Trust::Unverified);
        unverified.map(|slot| slot.record.key.clone()).collect()
    }

    /// Looks at an unverified layer and says of it from then on that it is sound, or damaged.
    /// Blocks.
    pub(crate) fn verify(&self, key: &LayerKey) {
        let Some(record) = self.record_of(key) else { return };
        let health = self.examine(key);
        if self.is_closing() {
            return;
        }
        if health == LayerHealth::Sound {
            // It came from the disk, so there it is.
            if let Err(error) = self.mark(key) {
                tracing::warn!(%key, %error, "a verified layer is not marked; it will be again");
            }
            tracing::info!(%key, "layer verified after an unclean boot");
            self.set_trust(&record, Trust::Sound);
        } else {
            tracing::warn!(%key, ?health, "layer damaged; it will be unpacked again");
            self.set_trust(&record, Trust::Damaged);
        }
    }

    /// Looks at a layer that serves already, of whose writing errors may have been missed.
    /// Blocks.
    pub(crate) fn recheck(&self, key: &LayerKey) {
        let Some(record) = self.record_of(key) else { return };
        let synced = open_dir(&self.layout.layer(&key.short()))
            .map_err(|e| e.to_string())
            .and_then(|dir| rustix::fs::syncfs(&dir).map_err(|e| e.to_string()));
        if let Err(error) = synced {
            // Without a marker it is looked at again after the next start.
            tracing::error!(%key, error, "layer cannot be synced");
            return;
        }
        let health = self.examine(key);
        if self.is_closing() {
            return;
        }
        if matches!(health, LayerHealth::Sound | LayerHealth::Unlisted) {
            if let Err(error) = self.mark(key) {
                tracing::warn!(%key, %error, "a layer could not be marked");
            }
        } else {
            tracing::error!(%key, ?health, "layer damaged; it will be unpacked again");
            self.condemn(&record);
        }
    }

    fn mark(&self, key: &LayerKey) -> Result<(), String> {
        let dir = open_dir(&self.layout.layer(&key.short())).map_err(|e| e.to_string())?;
        let marked = self.mark_durable(dir.as_fd());
        marked.and_then(|()| super::record::sync(&self.layout.layers())).map_err(|e| e.to_string())
    }

    pub(crate) fn record_of(&self, key: &LayerKey) -> Option<Arc<LayerRecord>> {
        self.read().layers.get(key).map(|slot| slot.record.clone())
    }

    /// Says that a layer is damaged, also over restarts, until it is replaced.
    pub(crate) fn condemn(&self, record: &Arc<LayerRecord>) {
        let path = self.layout.layer(&record.key.short()).join(DAMAGED);
        if let Err(error) = std::fs::write(&path, b"") {
            tracing::warn!(path = %path.display(), %error, "cannot note that a layer is damaged");
        }
        self.set_trust(record, Trust::Damaged);
    }

    /// As [`condemn`](Self::condemn), by the text of a key; nothing, if there is none.
    pub(crate) fn condemn_key(&self, key: &str) {
        let key = LayerKey::try_from(key.to_owned()).ok();
        if let Some(record) = key.and_then(|key| self.record_of(&key)) {
            self.condemn(&record);
        }
    }

    /// Some of the image's layers are not yet known to be sound or damaged.
    pub(crate) fn is_being_verified(&self, image: &super::Image) -> bool {
        let state = self.read();
        let trust = |key| state.layers.get(key).map(|slot| slot.trust);
        image.record.layers.iter().any(|key| trust(key) == Some(Trust::Unverified))
    }

    /// Nothing, if the layer has been replaced meanwhile.
    fn set_trust(&self, record: &Arc<LayerRecord>, trust: Trust) {
        let mut state = self.write();
        let slot = state.layers.get_mut(&record.key);
        if let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.record, record)) {
            slot.trust = trust;
            slot.was_sound |= trust == Trust::Sound;
        }
        state.refresh();
        drop(state);
        self.changed();
        self.ailing.notify_one();
    }

    /// Waits until the layer is no longer unverified.
    pub(crate) async fn verified(&self, key: &LayerKey) {
        let mut changes = self.trust.subscribe();
        loop {
            let state = self.read().layers.get(key).map(|slot| slot.trust);
            if state != Some(Trust::Unverified) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Looks at layers without changing anything. Blocks.
    pub(crate) fn fsck(&self, options: &FsckOptions) -> Result<FsckReport, Error> {
        let mut report = FsckReport::default();
        let chosen = self.chosen(options.only.as_deref())?;
        let size = |key: &LayerKey| self.record_of(key).map_or(0, |record| record.bytes);
        let sizes: Vec<u64> = chosen.iter().map(size).collect();
        options.progress.begin(&sizes);
        for (key, bytes) in chosen.into_iter().zip(sizes) {
            let health = self.examine(&key);
            options.progress.checked(bytes);
            // It may have been removed meanwhile.
            let Some(path) = self.record_of(&key).map(|_| self.layout.layer(&key.short())) else {
                continue;
            };
            let state = self.read();
            let users = state.images.values().filter(|image| image.record.layers.contains(&key));
            let images = users.map(|image| image.id.clone()).collect();
            report.layers.push(LayerCheck { key: key.to_string(), path, images, health });
        }
        if options.only.is_none() {
            report.orphans = self.orphans();
        }
        let state = self.read();
        let missing = |id: &&ImageId| {
            let layers = state.images.get(*id).map(|image| &image.record.layers);
            layers.is_some_and(|keys| !keys.iter().all(|key| state.layers.contains_key(key)))
        };
        report.incomplete = state.broken.iter().filter(missing).cloned().collect();
        drop(state);
        report.incomplete.sort();
        Ok(report)
    }

    /// The layers of that name, ordered by key.
    fn chosen(&self, only: Option<&str>) -> Result<Vec<LayerKey>, Error> {
        let image = only.and_then(|name| self.find_any(name));
        let state = self.read();
        let mut keys: Vec<LayerKey> = match (only, image) {
            (None, _) => state.layers.keys().cloned().collect(),
            (Some(_), Some(image)) => image.record.layers.clone(),
            (Some(name), None) => {
                let named = |key: &&LayerKey| key.to_string() == name || key.short() == name;
                vec![
                    state
                        .layers
                        .keys()
                        .find(named)
                        .cloned()
                        .ok_or_else(|| Error::Unknown { name: name.to_owned() })?,
                ]
            }
        };
        keys.sort();
        keys.dedup();
        Ok(keys)
    }
}

/// Drops what memory has of the files below `root`, so that they are read from the disk. What
/// has not been written stays; what cannot be opened is found out later.
fn forget(root: &Path) {
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    if let Ok(file) = rustix::fs::openat(CWD, entry.path(), flags, Mode::empty()) {
                        // Advice may be ignored.
                        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                    }
                }
                _ => {}
            }
        }
    }
}

impl From<Damage> for PathDamage {
    fn from(damage: Damage) -> Self {
        let what: Vec<_> = damage.differs.iter().map(ToString::to_string).collect();
        let path = String::from_utf8_lossy(&damage.path).into_owned();
        Self { path, what: what.join(",") }
    }
}
