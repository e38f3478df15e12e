//! Limits of writable layers, by project quota.
//!
//! Each writable layer that is made while a limit is configured is a project of its own: its
//! directory has the project's id, hands it down to all that is made within, and the lease names
//! it. An id is taken only if the file system counts nothing for it, so that what is still in the
//! trash, or not Berth's at all, is never charged to a new container.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use berth_sys::quota::{self, Amount};
use rustix::fs::{CWD, Mode, OFlags};

use super::{Error, Store, open_dir};

/// The ids of writable layers; those below are left to the administrator.
const FIRST: u32 = 1 << 20;
const END: u32 = 1 << 21;

/// What each container may write, on top of its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WritableQuota {
    /// Disk space in MiB; `None`: no limit.
    pub mib: Option<u64>,
    /// Files, directories and all other nodes; `None`: no limit.
    pub inodes: Option<u64>,
}

impl WritableQuota {
    /// The keys of the configuration that ask for it; `None` if none does.
    fn keys(self) -> Option<&'static str> {
        match (self.mib, self.inodes) {
            (None, None) => None,
            (Some(_), None) => Some("image.rw_quota_mib"),
            (None, Some(_)) => Some("image.rw_quota_inodes"),
            (Some(_), Some(_)) => Some("image.rw_quota_mib and image.rw_quota_inodes"),
        }
    }

    fn limits(self) -> Amount {
        let bytes = self.mib.unwrap_or(0).saturating_mul(1 << 20);
        Amount { bytes, inodes: self.inodes.unwrap_or(0) }
    }
}

/// What new writable layers get, and where to look for the next free id.
pub(super) struct Quotas {
    wanted: WritableQuota,
    next: AtomicU32,
}

impl Quotas {
    pub(super) fn new(wanted: WritableQuota) -> Self {
        Self { wanted, next: AtomicU32::new(FIRST) }
    }
}

/// A project that was chosen for a writable layer. Its limits go with it, unless it is kept.
pub(crate) struct Chosen {
    root: OwnedFd,
    id: u32,
    limits: Amount,
    kept: bool,
}

impl Chosen {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// All that is made in this directory from now on belongs to the project.
    pub(crate) fn claim(&self, dir: BorrowedFd<'_>) -> std::io::Result<()> {
        quota::set_project(dir, self.id)
    }

    /// From now on nothing more fits than was configured.
    pub(crate) fn limit(&self) -> std::io::Result<()> {
        quota::set_limits(self.root.as_fd(), self.id, self.limits)
    }

    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.kept {
            clear(self.root.as_fd(), self.id);
        }
    }
}

impl Store {
    /// A project for a new writable layer, if a limit is configured. For those who have the
    /// writer lock, until the lease is known.
    pub(crate) fn choose_project(&self) -> Result<Option<Chosen>, Error> {
        let Some(root) = self.limited_root()? else { return Ok(None) };
        let taken: HashSet<u32> =
            self.read().snapshots.values().filter_map(|lease| lease.project).collect();
        let first = self.quotas.next.load(Ordering::Relaxed);
        for id in (first..END).chain(FIRST..first).filter(|id| !taken.contains(id)) {
            let used = quota::get(root.as_fd(), id).map_err(self.quota_failed("read"))?.used;
            if used == Amount::default() {
                let next = if id + 1 < END { id + 1 } else { FIRST };
                self.quotas.next.store(next, Ordering::Relaxed);
                let limits = self.quotas.wanted.limits();
                return Ok(Some(Chosen { root, id, limits, kept: false }));
            }
        }
        Err(self.quota_failed("find a free project for")(std::io::ErrorKind::QuotaExceeded.into()))
    }

    /// Where writable layers lie, if a limit is configured. An error, if that is not to be had.
    fn limited_root(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(keys) = self.quotas.wanted.keys() else { return Ok(None) };
        let path = self.layout.writable_root();
        let root = open_dir(path)?;
        let source = match quota::enforced(root.as_fd()) {
            Ok(true) => return Ok(Some(root)),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        let path = path.display().to_string();
        Err(Error::NoQuota { keys, filesystem: filesystem(root.as_fd()), path, source })
    }

    fn quota_failed(&self, action: &'static str) -> impl Fn(std::io::Error) -> Error {
        let path = format!("the quota of {}", self.layout.writable_root().display());
        move |source| Error::Io { action, path: path.clone(), source }
    }

    /// What an earlier process left: limits of what is to be removed. And says once if what is
    /// configured is not to be had, for which a create then fails.
    pub(super) fn load_quotas(&self) {
        if let Err(error) = self.limited_root() {
            let reason = crate::Error::from(error).report();
            tracing::error!(reason, "no container can be created");
        }
        let root = self.layout.writable_root();
        let Ok(root) = open_dir(root) else { return };
        if !quota::enforced(root.as_fd()).unwrap_or(false) {
            return;
        }
        for path in self.entries(&self.layout.writable_trash()) {
            if let Some(id) = project_of(&path) {
                clear(root.as_fd(), id);
            }
        }
    }

    /// The container is gone: its limits go, and its id is free once its files are removed.
    pub(super) fn release_project(&self, id: Option<u32>) {
        if let (Some(id), Ok(root)) = (id, open_dir(self.layout.writable_root())) {
            clear(root.as_fd(), id);
        }
    }

    /// What a container's project uses; `None` if that is not counted.
    pub(super) fn counted(&self, container: &str) -> Option<(u64, u64)> {
        let id = self.lease(container)?.project?;
        let root = open_dir(self.layout.writable_root()).ok()?;
        let used = quota::get(root.as_fd(), id).ok()?.used;
        // Its own directory at least is counted, or nothing is.
        (used.inodes > 0).then_some((used.bytes, used.inodes))
    }
}

/// The project of a writable layer's directory; `None` if it has none of ours.
pub(super) fn project_of(path: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
    quota::project(dir.as_fd()).ok().filter(|id| (FIRST..END).contains(id))
}

/// A limit that stays does no harm: it is set anew when the id is taken again.
fn clear(root: BorrowedFd<'_>, id: u32) {
    if let Err(error) = quota::set_limits(root, id, Amount::default()) {
        tracing::warn!(id, %error, "cannot clear the limits of a project");
    }
}

/// What people call the file system.
fn filesystem(dir: BorrowedFd<'_>) -> String {
    let Ok(stat) = rustix::fs::fstatfs(dir) else { return "unknown".to_owned() };
    match stat.f_type {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x794c_7630 => "overlay".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        0xf2f5_2010 => "f2fs".to_owned(),
        other => format!("of type {other:#x}"),
    }
}
