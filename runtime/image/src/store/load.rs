//! Opening a store: what is on disk is read, and only what can be trusted is taken.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use tokio::sync::Notify;

use super::image::{Image, ImageRecord};
use super::layer::{self, LayerRecord};
use super::{Error, Layout, Slot, State, Store, Unsynced, record};
use crate::snapshot::Lease;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Opens the store at `root`, made if need be. Blocks. Damaged records are warned of and
    /// passed over; only a root that cannot be used at all is an error.
    pub(crate) fn open(root: &Path) -> Result<Arc<Self>, Error> {
        std::fs::create_dir_all(root).map_err(Error::io("make", root))?;
        let root = root.canonicalize().map_err(Error::io("find", root))?;
        let layout = Layout::new(root);
        let lock = lock(&layout)?;
        for path in layout.directories() {
            std::fs::create_dir_all(&path).map_err(Error::io("make", &path))?;
        }
        let boot_id = std::fs::read_to_string(BOOT_ID)
            .map_err(Error::io("read", Path::new(BOOT_ID)))?
            .trim()
            .to_owned();
        let store = Arc::new(Self {
            blobs: super::blobs::Blobs::new(layout.root()),
            layout,
            boot_id,
            writer: Mutex::new(()),
            state: RwLock::new(State::default()),
            tidying: Mutex::new(()),
            unsynced: Mutex::new(Unsynced::default()),
            untidy: Notify::new(),
            names: AtomicU64::new(0),
            _lock: lock,
        });
        store.load()?;
        Ok(store)
    }

    fn load(&self) -> Result<(), Error> {
        self.skip_used_names()?;
        for path in entries(&self.layout.staging())? {
            self.discard(&path);
        }
        self.load_layers()?;
        self.load_snapshots()?;
        self.load_images()?;
        self.collect();
        self.untidy.notify_one();
        Ok(())
    }

    /// What an earlier process left in the trash keeps its name until it is removed.
    fn skip_used_names(&self) -> Result<(), Error> {
        let used = entries(&self.layout.trash())?
            .iter()
            .filter_map(|path| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok())
            .max();
        let next = used.map_or(0, |highest| highest.saturating_add(1));
        self.names.store(next, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn load_layers(&self) -> Result<(), Error> {
        for path in entries(&self.layout.layers())? {
            if path.file_name().is_some_and(|name| name == Layout::EMPTY) {
                continue;
            }
            match self.trusted(&path) {
                Ok(record) => {
                    let slot = Slot { record: Arc::new(record), holds: 0 };
                    self.write().layers.insert(slot.record.key.clone(), slot);
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "layer not trusted, removed");
                    self.discard(&path);
                }
            }
        }
        Ok(())
    }

    /// A layer of this boot is whole, since it has its name; one of another boot is, if its
    /// data was known to be on disk.
    fn trusted(&self, path: &Path) -> Result<LayerRecord, String> {
        let record: LayerRecord =
            record::read(&path.join(layer::RECORD)).map_err(|e| format!("its record: {e}"))?;
        let named = path.file_name().is_some_and(|name| *name == *record.key.short());
        if !named {
            return Err("it has another layer's name".to_owned());
        }
        if record.boot_id == self.boot_id {
            return Ok(record);
        }
        let marker = std::fs::read(path.join(layer::DURABLE)).unwrap_or_default();
        if serde_json::from_slice::<serde_json::Value>(&marker).is_ok() {
            return Ok(record);
        }
        Err("it was not known to be on disk when the machine went down".to_owned())
    }

    fn load_snapshots(&self) -> Result<(), Error> {
        for path in entries(&self.layout.snapshots())? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let lease = record::read(&path.join(Lease::FILE)).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "writable layer without a lease");
                Lease::unknown()
            });
            self.write().snapshots.insert(name.to_owned(), Arc::new(lease));
        }
        Ok(())
    }

    fn load_images(&self) -> Result<(), Error> {
        let mut records = Vec::new();
        for path in entries(&self.layout.images())? {
            match record::read::<ImageRecord>(&path) {
                Ok(record) => records.push((path, record)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "image record ignored");
                    self.discard(&path);
                }
            }
        }
        // The latest first: it keeps its tags.
        records.sort_by_key(|(_, record)| std::cmp::Reverse(record.serial));
        let mut taken = std::collections::HashSet::new();
        for (path, mut record) in records {
            record.repo_tags.retain(|tag| taken.insert(tag.clone()));
            self.load_image(&path, record);
        }
        Ok(())
    }

    fn load_image(&self, path: &Path, record: ImageRecord) {
        let mut state = self.write();
        state.serial = state.serial.max(record.serial);
        let whole = record.layers.iter().all(|key| state.layers.contains_key(key));
        let reason = match Image::new(record) {
            Ok(image) if whole => {
                state.images.insert(image.id.clone(), Arc::new(image));
                return;
            }
            Ok(_) => "a layer is missing".to_owned(),
            Err(error) => error.to_string(),
        };
        drop(state);
        tracing::warn!(path = %path.display(), reason, "image no longer listed until pulled again");
        self.discard(path);
    }
}

/// One store, one process: two would take each other's layers for unneeded.
fn lock(layout: &Layout) -> Result<std::os::fd::OwnedFd, Error> {
    let path = layout.lock();
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("open", &path)(e.into()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => Error::InUse { path: layout.root().display().to_string() },
        other => Error::io("lock", &path)(other.into()),
    })?;
    Ok(file)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}
