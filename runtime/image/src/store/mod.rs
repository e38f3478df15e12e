//! The store on disk: layers, images, leases; what is kept, what goes, what survives a crash.
//!
//! Locks, in this order: `writer` (held while records and directory names change, only on
//! blocking threads), then `state` (held for moments; lists read it). Disk work never happens
//! under `state`.

#[allow(dead_code, reason = "some of it is for parts that are being built")]
pub(crate) mod blobs;
mod gc;
mod image;
mod index;
pub(crate) mod layer;
mod layout;
mod leases;
mod load;
pub(crate) mod record;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::Notify;

pub use image::{Image, ImageId, ImageUser};
pub(crate) use index::NewImage;
use layer::{LayerHold, LayerKey, LayerRecord, Staging};
pub(crate) use layout::Layout;
pub use leases::FsUsage;

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
            Self::Gone { .. } => ErrorKind::NotFound,
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
    #[allow(dead_code, reason = "as the module")]
    pub(crate) blobs: Arc<blobs::Blobs>,
    writer: Mutex<()>,
    state: RwLock<State>,
    tidying: Mutex<()>,
    unsynced: Mutex<Unsynced>,
    /// Something waits to be synced or removed.
    pub(crate) untidy: Notify,
    names: AtomicU64,
    /// Keeps the lock on the root.
    _lock: OwnedFd,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageId, Arc<Image>>,
    layers: HashMap<LayerKey, Slot>,
    snapshots: BTreeMap<String, Arc<Lease>>,
    serial: u64,
}

struct Slot {
    record: Arc<LayerRecord>,
    holds: usize,
}

/// What was renamed in but is not yet known to be on disk.
#[derive(Default)]
struct Unsynced {
    /// Layer directories, each opened before its first write, oldest first.
    layers: Vec<OwnedFd>,
    images: Vec<ImageId>,
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

    /// Claims the layer, if it is there.
    pub(crate) fn hold(self: &Arc<Self>, key: &LayerKey) -> Option<Arc<LayerHold>> {
        let mut state = self.write();
        let slot = state.layers.get_mut(key)?;
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
        let path = self.layout.staging().join(self.unique());
        std::fs::create_dir(&path).map_err(Error::io("make", &path))?;
        let opened = open_dir(&path).inspect_err(|_| self.discard(&path))?;
        let staging = Staging::new(self.clone(), path, opened);
        make_root(&staging.fs())?;
        Ok(staging)
    }

    /// Gives an unpacked layer its name. If it has come to exist meanwhile, that one is taken.
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
        if home.exists() {
            self.discard(&home);
        }
        std::fs::rename(staging.path(), &home).map_err(Error::io("rename into place", &home))?;
        let dir = staging.committed().map_err(Error::io("keep open", &home))?;
        self.unsynced().layers.push(dir);
        let record = Arc::new(layer);
        let slot = Slot { record: record.clone(), holds: 1 };
        self.write().layers.insert(record.key.clone(), slot);
        drop(writer);
        Ok(Arc::new(LayerHold::counted(self.clone(), record)))
    }

    /// Moves a file or directory to the trash, where it is removed in the background.
    pub(crate) fn discard(&self, path: &Path) {
        let place = self.layout.trash().join(self.unique());
        match std::fs::rename(path, &place) {
            Ok(()) => self.untidy.notify_one(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                // What stays behind in staging is removed at the next open.
                tracing::warn!(path = %path.display(), %error, "cannot move to the trash");
            }
        }
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
