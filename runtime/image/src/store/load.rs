//! Opening a store: what is on disk is read, and only what can be trusted is served.
//!
//! Whatever lies there, the store opens: what is no record, no layer and no directory of the
//! store's is moved aside, and what cannot be read is left alone. Only a disk that cannot be
//! written to at all is an error.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{Notify, watch};

use super::durable::marker;
use super::image::{Image, ImageRecord};
use super::layer::{self, LayerRecord};
use super::quota::{self, Quotas, WritableQuota};
use super::{Error, ImageId, Layout, Slot, State, Store, Trust, Unsynced, record};
use crate::snapshot::Lease;
use crate::unpack::listing::LISTING;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Opens the store at `root`, with the writable layers below `writable`, both made if need
    /// be. Blocks. `boot_id` is the machine's unless given.
    pub(crate) fn open(
        root: &Path,
        writable: &Path,
        boot_id: Option<String>,
        quota: WritableQuota,
    ) -> Result<Arc<Self>, Error> {
        let layout = Layout::new(usable(root)?, usable(writable)?);
        let lock = lock(&layout)?;
        for path in layout.directories() {
            make_dir(&path)?;
        }
        let boot_id = boot_id.map_or_else(this_boot, Ok)?;
        let store = Arc::new(Self {
            blobs: super::blobs::Blobs::new(layout.root()),
            layout,
            boot_id,
            writer: Mutex::new(()),
            state: RwLock::new(State::default()),
            tidying: Mutex::new(()),
            unsynced: Mutex::new(Unsynced::default()),
            untidy: Notify::new(),
            ailing: Notify::new(),
            trust: watch::Sender::new(0),
            closing: AtomicBool::new(false),
            names: AtomicU64::new(0),
            quotas: Quotas::new(quota),
            _lock: lock,
        });
        store.load();
        Ok(store)
    }

    fn load(&self) {
        self.skip_used_names();
        for staging in self.layout.all_staging() {
            for path in self.entries(&staging) {
                self.discard(&path);
            }
        }
        self.load_layers();
        self.load_snapshots();
        self.load_retired(self.entries(&self.layout.retired()));
        self.load_images();
        self.load_quotas();
        self.write().refresh();
        self.collect();
        self.untidy.notify_one();
    }

    /// What an earlier process left keeps its name until it is removed.
    fn skip_used_names(&self) {
        let mut dirs = self.layout.all_trash();
        dirs.push(self.layout.retired());
        let names = dirs.iter().flat_map(|dir| self.entries(dir));
        let used = names
            .filter_map(|path| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok())
            // A name that cannot be one of ours does not use up all others.
            .filter(|&name| name < u64::MAX / 2)
            .max();
        let next = used.map_or(0, |highest| highest.saturating_add(1));
        self.names.store(next, Ordering::Relaxed);
    }

    /// The directory's entries. Where it cannot be read, what it may hold is not taken for gone.
    pub(super) fn entries(&self, dir: &Path) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let blind = |error| {
            tracing::error!(path = %dir.display(), %error, "cannot be read; nothing is collected");
            self.write().blind = true;
        };
        match std::fs::read_dir(dir) {
            Ok(list) => {
                for entry in list {
                    match entry {
                        Ok(entry) => paths.push(entry.path()),
                        Err(error) => blind(error),
                    }
                }
            }
            Err(error) => blind(error),
        }
        paths
    }

    fn load_layers(&self) {
        for path in self.entries(&self.layout.layers()) {
            if path.file_name().is_some_and(|name| name == Layout::EMPTY) {
                continue;
            }
            match layer_record(&path) {
                Ok(record) => self.load_layer(&path, record),
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "no layer; removed");
                    self.discard(&path);
                }
            }
        }
    }

    /// A layer of this boot is whole, since it has its name; one of another boot is, if its data
    /// was known to be on disk, and is looked at otherwise.
    fn load_layer(&self, path: &Path, record: LayerRecord) {
        let (marked, this_boot) = (marker(path).is_some(), record.boot_id == self.boot_id);
        let odd = |name: &str| path.join(name).symlink_metadata().is_ok_and(|meta| !meta.is_file());
        let spoilt = path.join(layer::DAMAGED).symlink_metadata().is_ok()
            || odd(layer::DURABLE)
            || odd(LISTING);
        let trust = match path.join("fs").symlink_metadata() {
            Ok(fs) if fs.is_dir() && !spoilt && (marked || this_boot) => Trust::Sound,
            Ok(fs) if fs.is_dir() && !spoilt => Trust::Unverified,
            _ => Trust::Damaged,
        };
        if trust == Trust::Sound && !marked {
            self.suspect(record.key.clone());
        }
        let mut slot = Slot::new(Arc::new(record), trust);
        // Containers may have been made from it before it was found out.
        slot.was_sound |= spoilt;
        self.write().layers.insert(slot.record.key.clone(), slot);
    }

    fn load_snapshots(&self) {
        for path in self.entries(&self.layout.snapshots()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                self.discard(&path);
                continue;
            };
            let lease = record::read(&path.join(Lease::FILE)).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "writable layer without a lease");
                Lease::unknown(quota::project_of(&path))
            });
            self.write().snapshots.insert(name.to_owned(), Arc::new(lease));
        }
    }

    fn load_images(&self) {
        let mut latest: HashMap<ImageId, ImageRecord> = HashMap::new();
        for path in self.entries(&self.layout.images()) {
            let Some(record) = self.image_record(&path) else { continue };
            match latest.get(&record.id) {
                Some(known) if known.serial >= record.serial => {}
                _ => {
                    latest.insert(record.id.clone(), record);
                }
            }
        }
        // The latest first: it keeps its tags.
        let mut records: Vec<_> = latest.into_values().collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.serial));
        let mut taken = HashSet::new();
        for mut record in records {
            record.repo_tags.retain(|tag| taken.insert(tag.clone()));
            self.load_image(record);
        }
    }

    /// What is no image's record goes; what cannot be read stays where it is.
    fn image_record(&self, path: &Path) -> Option<ImageRecord> {
        let reason = match record::read::<ImageRecord>(path) {
            Ok(record) => {
                let homes = [self.layout.image(&record.id), self.layout.next_image(&record.id)];
                if homes.iter().any(|home| home == path) {
                    return Some(record);
                }
                "it has another's name".to_owned()
            }
            Err(error) if record::is_damage(&error) => error.to_string(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot be read; nothing is collected");
                self.write().blind = true;
                return None;
            }
        };
        tracing::warn!(path = %path.display(), reason, "no image record; removed");
        self.discard(path);
        None
    }

    fn load_image(&self, record: ImageRecord) {
        let id = record.id.clone();
        let unsettled = self.layout.next_image(&id).exists();
        let mut state = self.write();
        state.serial = state.serial.max(record.serial);
        match Image::new(record) {
            Ok(image) => {
                state.images.insert(id.clone(), Arc::new(image));
                drop(state);
                if unsettled {
                    self.unsynced().images.push(id);
                }
            }
            Err(error) => {
                drop(state);
                tracing::warn!(%id, %error, "no image configuration; removed");
                self.discard(&self.layout.image(&id));
                self.discard(&self.layout.next_image(&id));
            }
        }
    }
}

fn layer_record(path: &Path) -> Result<LayerRecord, String> {
    let meta = path.symlink_metadata().map_err(|e| e.to_string())?;
    if !meta.is_dir() {
        return Err("it is no directory".to_owned());
    }
    let record: LayerRecord =
        record::read(&path.join(layer::RECORD)).map_err(|e| format!("its record: {e}"))?;
    let named = path.file_name().is_some_and(|name| *name == *record.key.short());
    if named { Ok(record) } else { Err("it has another layer's name".to_owned()) }
}

fn this_boot() -> Result<String, Error> {
    let id = std::fs::read_to_string(BOOT_ID).map_err(Error::io("read", Path::new(BOOT_ID)))?;
    Ok(id.trim().to_owned())
}

/// The root directory, made if need be.
fn usable(root: &Path) -> Result<PathBuf, Error> {
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    make_dir(root)?;
    // What containers write lies below with their own root as its owner, set-user-id programs too:
    // nobody else comes near (CVE-2021-41103).
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
        .map_err(Error::io("close to others", root))?;
    root.canonicalize().map_err(Error::io("find", root))
}

/// Makes a directory. What has its name and is none is put aside.
fn make_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if path.symlink_metadata().is_ok() {
        put_aside(path)?;
    }
    std::fs::create_dir(path).map_err(Error::io("make", path))
}

/// Under a name that nothing has yet: it may be somebody's.
fn put_aside(path: &Path) -> Result<(), Error> {
    let free = |path: &PathBuf| path.symlink_metadata().is_err();
    let names = (0_u32..).map(|n| path.with_extension(format!("aside-{n}")));
    let aside = names.into_iter().find(free).unwrap_or_default();
    tracing::warn!(path = %path.display(), aside = %aside.display(), "not what it should be");
    std::fs::rename(path, &aside).map_err(Error::io("put aside", path))
}

/// One store, one process: two would take each other's layers for unneeded.
fn lock(layout: &Layout) -> Result<OwnedFd, Error> {
    let path = layout.lock();
    let flags =
        OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR);
    let file = match open() {
        Err(Errno::ISDIR | Errno::LOOP | Errno::NXIO) => {
            put_aside(&path)?;
            open()
        }
        file => file,
    };
    let file = file.map_err(|e| Error::io("open", &path)(e.into()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        Errno::WOULDBLOCK => Error::InUse { path: layout.root().display().to_string() },
        other => Error::io("lock", &path)(other.into()),
    })?;
    Ok(file)
}
