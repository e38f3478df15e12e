//! The store on disk: layers, images, leases; what is kept, what goes, what survives a crash.
//!
//! Locks, in this order: `writer` (held while records and directory names change, only on
//! blocking threads), then `state` (held for moments; lists read it). Disk work never happens
//! under `state`.
//!
//! What survives a power cut, and why:
//!
//! - A layer is made aside, renamed into place, and only then synced (`syncfs`) and marked. One
//!   without a marker and from another boot is compared with its listing before anything is
//!   served from it (`verify`); there is no flag of a clean shutdown that could lie.
//! - An image's record is synced after its layers, and a new record of an image takes the place
//!   of the old one only when it is on disk itself (`index`, `durable`).
//! - What goes is renamed to the trash, the rename is synced, and then it is removed (`trash`).

pub(crate) mod blobs;
mod durable;
mod explain;
mod gc;
mod image;
mod index;
pub(crate) mod layer;
mod layout;
mod leases;
mod load;
mod quota;
pub(crate) mod record;
mod retired;
mod trash;
mod usage;
pub(crate) mod verify;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::{Notify, watch};

pub use explain::Reason;
pub use gc::{GcOptions, GcReport, Removed};
pub(crate) use image::BlobRecord;
pub use image::{Image, ImageId, ImageUser};
pub(crate) use index::NewImage;
use layer::{LayerHold, LayerKey, LayerRecord, Staging};
pub(crate) use layout::Layout;
pub(crate) use quota::Chosen;
pub use quota::WritableQuota;
pub use usage::{DiskUsage, FsUsage, ImageDisk, LayerDisk};
pub use verify::{FsckOptions, FsckProgress, FsckReport, LayerCheck, LayerHealth, PathDamage};

use crate::error::{ErrorKind, io_kind};
use crate::snapshot::Lease;

/// What went wrong with the store's own files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Another process has the store open.
    #[error("the image store {path} is in use by another process")]
    InUse {
        /// The store's root.
        path: String,
    },
    /// A record could not be understood after it was written or fetched.
    #[error("image {id}: its configuration cannot be read")]
    Config {
        /// The image.
        id: ImageId,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A layer of the image went away meanwhile.
    #[error("image {id} is not in the store (any more)")]
    Gone {
        /// The image.
        id: ImageId,
    },
    /// The image is listed no more until its layers are what they should be.
    #[error("image {id} is being repaired: {reason}")]
    BeingRepaired {
        /// The image.
        id: ImageId,
        /// How far that is.
        reason: String,
    },
    /// Nothing of this name is known.
    #[error("{name:?} is neither an image nor a layer of the store")]
    Unknown {
        /// As asked for.
        name: String,
    },
    /// The configuration limits writable layers, and their file system cannot.
    #[error("{keys}: the file system ({filesystem}) of {path} has no project quota in force")]
    NoQuota {
        /// The keys that ask for it.
        keys: &'static str,
        /// Its type.
        filesystem: String,
        /// Where writable layers lie.
        path: String,
        /// The kernel's answer; `None` where projects are counted, but not limited.
        source: Option<std::io::Error>,
    },
    /// A blocking task did not end well.
    #[error("a task of the store failed: {0}")]
    Task(String),
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::Gone { .. } | Self::Unknown { .. } => ErrorKind::NotFound,
            Self::BeingRepaired { .. } | Self::NoQuota { .. } => ErrorKind::NotReady,
            Self::Config { .. } => ErrorKind::Invalid,
            Self::InUse { .. } | Self::Task(_) => ErrorKind::Internal,
        }
    }

    /// Wraps a failed file operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}

/// The shared innards of an open store.
pub(crate) struct Store {
    pub(crate) layout: Layout,
    pub(crate) boot_id: String,
    pub(crate) blobs: Arc<blobs::Blobs>,
    writer: Mutex<()>,
    state: RwLock<State>,
    tidying: Mutex<()>,
    unsynced: Mutex<Unsynced>,
    /// Something waits to be synced or removed.
    pub(crate) untidy: Notify,
    /// Some layer is not, or may not be, what it should be.
    pub(crate) ailing: Notify,
    /// Counts changes of layers and images, for those who wait for one.
    pub(crate) trust: watch::Sender<u64>,
    /// Long work in the background ends early.
    pub(crate) closing: AtomicBool,
    names: AtomicU64,
    quotas: quota::Quotas,
    /// Keeps the lock on the root.
    _lock: OwnedFd,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageId, Arc<Image>>,
    /// Images of which a layer is missing or not sound: not listed.
    broken: HashSet<ImageId>,
    layers: HashMap<LayerKey, Slot>,
    retired: Vec<Retired>,
    snapshots: BTreeMap<String, Arc<Lease>>,
    /// Names of directories in staging that are being worked on.
    staged: HashSet<String>,
    serial: u64,
    /// Some records could not be read, though they may be good: nothing is taken for unneeded.
    blind: bool,
}

impl State {
    fn is_sound(&self, key: &LayerKey) -> bool {
        self.layers.get(key).is_some_and(|slot| slot.trust == Trust::Sound)
    }

    /// Must follow each change of layers or images.
    fn refresh(&mut self) {
        let broken = |image: &&Arc<Image>| !image.record.layers.iter().all(|k| self.is_sound(k));
        self.broken = self.images.values().filter(broken).map(|image| image.id.clone()).collect();
    }

    /// The images that callers may see.
    fn listed(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values().filter(|image| !self.broken.contains(&image.id))
    }
}

struct Slot {
    record: Arc<LayerRecord>,
    holds: usize,
    trust: Trust,
    /// It was sound at some time since the machine came up: containers may have it mounted.
    was_sound: bool,
}

impl Slot {
    fn new(record: Arc<LayerRecord>, trust: Trust) -> Self {
        Self { record, holds: 0, trust, was_sound: trust == Trust::Sound }
    }
}

/// Whether a layer is what its record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    Sound,
    /// From another boot, and not known to have reached the disk: to be compared with its listing.
    Unverified,
    /// To be unpacked again.
    Damaged,
}

/// A damaged layer that was replaced. Containers that run on it keep it.
struct Retired {
    path: PathBuf,
    /// `None` where its record cannot be read.
    key: Option<LayerKey>,
}

/// What was renamed in but is not yet known to be on disk.
#[derive(Default)]
struct Unsynced {
    /// Layers with their directories, each opened before its first write, oldest first.
    layers: Vec<(LayerKey, OwnedFd)>,
    /// Layers whose syncing failed or was left to an earlier process: to be looked at.
    suspects: Vec<LayerKey>,
    images: Vec<ImageId>,
    /// Images that have lost tags to others, which are on disk first.
    untagged: Vec<ImageId>,
}

impl Unsynced {
    /// Nothing waits for a sync.
    fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.images.is_empty() && self.untagged.is_empty()
    }
}

impl Store {
    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name that no other directory in staging or trash has: this open is the only one.
    fn unique(&self) -> String {
        format!("{:x}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// The store is about to be closed: long work may stop.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Claims the layer, if it is there and sound.
    pub(crate) fn hold(self: &Arc<Self>, key: &LayerKey) -> Option<Arc<LayerHold>> {
        let mut state = self.write();
        let slot = state.layers.get_mut(key).filter(|slot| slot.trust == Trust::Sound)?;
        slot.holds += 1;
        let record = slot.record.clone();
        drop(state);
        Some(Arc::new(LayerHold::counted(self.clone(), record)))
    }

    fn unhold(&self, key: &LayerKey) {
        let mut state = self.write();
        if let Some(slot) = state.layers.get_mut(key) {
            slot.holds = slot.holds.saturating_sub(1);
            if slot.holds == 0 {
                self.untidy.notify_one();
            }
        }
    }

    /// An empty directory to make a layer in, with `fs` in it.
    pub(crate) fn stage(self: &Arc<Self>) -> Result<Staging, Error> {
        let staging = self.stage_in(&self.layout.staging())?;
        make_root(&staging.fs())?;
        Ok(staging)
    }

    /// As [`stage`](Self::stage), on the file system of the writable layers and without `fs`.
    pub(crate) fn stage_writable(self: &Arc<Self>) -> Result<Staging, Error> {
        self.stage_in(&self.layout.writable_staging())
    }

    fn stage_in(self: &Arc<Self>, dir: &Path) -> Result<Staging, Error> {
        let name = self.unique();
        let path = dir.join(&name);
        self.write().staged.insert(name);
        let made = std::fs::create_dir(&path).map_err(Error::io("make", &path));
        let opened = made.and_then(|()| open_dir(&path)).inspect_err(|_| {
            self.discard(&path);
            self.unstage(&path);
        })?;
        Ok(Staging::new(self.clone(), path, opened))
    }

    fn unstage(&self, path: &Path) {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            self.write().staged.remove(name);
        }
    }

    /// Gives an unpacked layer its name. If a sound one has come to exist meanwhile, that one is
    /// taken; any other is replaced.
    pub(crate) fn commit(
        self: &Arc<Self>,
        staging: Staging,
        layer: LayerRecord,
    ) -> Result<Arc<LayerHold>, Error> {
        let path = staging.path().join(layer::RECORD);
        record::write(&path, &layer).map_err(Error::io("write", &path))?;
        let home = self.layout.layer(&layer.key.short());
        let writer = self.writer();
        if let Some(hold) = self.hold(&layer.key) {
            return Ok(hold);
        }
        self.make_way(&layer.key, &home)?;
        std::fs::rename(staging.path(), &home).map_err(Error::io("rename into place", &home))?;
        let dir = staging.committed().map_err(Error::io("keep open", &home))?;
        self.unsynced().layers.push((layer.key.clone(), dir));
        let record = Arc::new(layer);
        let mut state = self.write();
        let holds = state.layers.get(&record.key).map_or(0, |slot| slot.holds);
        let slot = Slot { holds: holds + 1, ..Slot::new(record.clone(), Trust::Sound) };
        state.layers.insert(record.key.clone(), slot);
        state.refresh();
        drop(state);
        drop(writer);
        self.changed();
        Ok(Arc::new(LayerHold::counted(self.clone(), record)))
    }

    /// Tells those who wait for layers to be sound.
    pub(crate) fn changed(&self) {
        self.trust.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Moves a file or directory to the trash, where it is removed in the background.
    pub(crate) fn discard(&self, path: &Path) {
        match self.throw(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                // What stays behind in staging is removed at the next open.
                tracing::warn!(path = %path.display(), %error, "cannot move to the trash");
            }
        }
    }

    /// As [`discard`](Self::discard), for those to whom it matters.
    fn throw(&self, path: &Path) -> std::io::Result<()> {
        let place = self.layout.trash_for(path).join(self.unique());
        std::fs::rename(path, place)?;
        self.untidy.notify_one();
        Ok(())
    }
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| Error::io("open", path)(e.into()))
}

/// A root directory as images expect it, whatever this process's umask.
pub(crate) fn make_root(path: &PathBuf) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .map_err(Error::io("make", path))
}
