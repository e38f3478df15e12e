//! Mounts without paths: made or cloned detached, given their attributes, then attached to a
//! directory descriptor (open_tree(2), fsopen(2), mount_setattr(2), move_mount(2)).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::process::check;

/// `MOUNT_ATTR_*` flags of mount_setattr(2).
pub mod attr {
    /// Read only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-id.
    pub const NOSUID: u64 = 0x2;
    /// No device files.
    pub const NODEV: u64 = 0x4;
    /// No execution.
    pub const NOEXEC: u64 = 0x8;
    /// The access time modes, of which one is set: 0 is relatime.
    pub const ATIME: u64 = 0x70;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
    /// Ids are mapped.
    pub(super) const IDMAP: u64 = 0x10_0000;
}

/// How mount events spread between a mount and its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the peers to this mount.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and can't be bound.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Slave => libc::MS_SLAVE,
            Self::Shared => libc::MS_SHARED,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// The kernel's `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct RawAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What [`set_attr`] changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// [`attr`] flags to set.
    pub set: u64,
    /// [`attr`] flags to clear. [`attr::ATIME`] must be cleared whole where one of it is set.
    pub clear: u64,
    /// The new propagation.
    pub propagation: Option<Propagation>,
    /// The mounts below too.
    pub recursive: bool,
}

/// Changes the mount whose root `mount` is (kernel 5.12). All or nothing with `recursive`.
pub fn set_attr(mount: BorrowedFd<'_>, change: &Change) -> io::Result<()> {
    let raw = RawAttr {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation.map_or(0, Propagation::flag),
        userns_fd: 0,
    };
    setattr(mount, &raw, change.recursive)
}

/// Has the detached mount show each id that is on disk as the one that the user namespace maps it
/// to, and write it back likewise (kernel 5.12; ext4, xfs 5.12; tmpfs 6.3; layers of overlayfs
/// 5.19). Ids that are not mapped show as nobody's and can't be written.
///
/// `EINVAL`: the file system can't; `EPERM`: it is mapped already.
pub fn set_idmap(mount: BorrowedFd<'_>, user: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let raw = RawAttr {
        set: attr::IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: u64::from(user.as_raw_fd().unsigned_abs()),
    };
    setattr(mount, &raw, recursive)
}

fn setattr(mount: BorrowedFd<'_>, raw: &RawAttr, recursive: bool) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and `raw` a live mount_attr of the size given.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(raw),
            size_of::<RawAttr>(),
        )
    };
    check(ret)
}

/// Clones the mount at `path` (links followed) as a detached one; `recursive` with those below.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// Attaches a detached mount on top of what `target` refers to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", target, c"", flags)?)
}

/// A file system being configured.
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
}

impl FsContext {
    /// Begins a new instance of the file system type. `ENODEV`: the kernel doesn't have it.
    pub fn open(kind: &CStr) -> io::Result<Self> {
        Ok(Self { fd: rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)? })
    }

    /// A parameter without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.explain(rustix::mount::fsconfig_set_flag(self.fd.as_fd(), key))
    }

    /// A parameter with a value of at most 255 bytes.
    pub fn string(&self, key: &str, value: impl rustix::path::Arg) -> io::Result<()> {
        self.explain(rustix::mount::fsconfig_set_string(self.fd.as_fd(), key, value))
    }

    /// Makes the file system and a detached mount of it with these [`attr`] flags.
    pub fn mount(&self, attrs: u64) -> io::Result<OwnedFd> {
        self.explain(rustix::mount::fsconfig_create(self.fd.as_fd()))?;
        let attrs = u32::try_from(attrs).map_err(io::Error::other)?;
        self.explain(rustix::mount::fsmount(
            self.fd.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::from_bits_retain(attrs),
        ))
    }

    /// Adds what the kernel has to say about a failure (its messages are read from the context).
    fn explain<T>(&self, result: rustix::io::Result<T>) -> io::Result<T> {
        let err = match result {
            Ok(value) => return Ok(value),
            Err(err) => io::Error::from(err),
        };
        let mut buf = [0_u8; 512];
        let said = match rustix::io::read(&self.fd, &mut buf) {
            Ok(len) => buf.get(..len).map(String::from_utf8_lossy).unwrap_or_default(),
            Err(_) => return Err(err),
        };
        // "e text": an error message.
        let said = said.trim().trim_start_matches("e ").to_owned();
        Err(io::Error::new(err.kind(), Explained { said, source: err }))
    }
}

/// A system error with the kernel's own words.
#[derive(Debug)]
struct Explained {
    said: String,
    source: io::Error,
}

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.source, self.said)
    }
}

impl std::error::Error for Explained {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The error number behind an error of this module, or 0.
#[must_use]
pub fn errno(err: &io::Error) -> i32 {
    let explained = err.get_ref().and_then(|inner| inner.downcast_ref::<Explained>());
    explained.map_or(err, |inner| &inner.source).raw_os_error().unwrap_or(0)
}

/// mount(2) of a new file system at `target`, for kernels whose fsconfig can't take `data`.
pub fn mount_at(target: &Path, kind: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_encoded_bytes())?;
    // SAFETY: four live C strings (mount(2) takes `data` as one for file systems with text
    // options) and a number.
    let ret = unsafe {
        libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    check(ret.into())
}

/// Makes the caller's working directory its mount namespace's root, and takes the old root away.
pub fn pivot_to_cwd() -> io::Result<()> {
    // The old root lands on top of the new one; detaching "." then takes it off (pivot_root(2)).
    rustix::process::pivot_root(c".", c".")?;
    detach(Path::new("."))?;
    Ok(rustix::process::chdir(c"/")?)
}

/// Unmounts lazily what is mounted at `path`. `EINVAL`: nothing is.
pub fn detach(path: &Path) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;

    fn tmpfs() -> OwnedFd {
        let context = FsContext::open(c"tmpfs").unwrap();
        context.string("mode", "0755").unwrap();
        context.mount(attr::NODEV).unwrap()
    }

    #[test]
    fn a_detached_tmpfs_turns_read_only_and_is_on_no_path() {
        let mount = tmpfs();
        rustix::fs::mkdirat(&mount, "a", 0o700.into()).unwrap();
        let change = Change { set: attr::RDONLY, ..Change::default() };
        set_attr(mount.as_fd(), &change).unwrap();
        let err = rustix::fs::mkdirat(&mount, "b", 0o700.into()).unwrap_err();
        assert_eq!(err, rustix::io::Errno::ROFS);
    }

    #[test]
    fn a_clone_is_changed_without_the_original() {
        let mount = tmpfs();
        // A detached mount can be cloned from kernel 6.15 on; clone one of the host's otherwise.
        let copy = clone_tree(CWD, Path::new("/proc"), false).unwrap();
        let change = Change { set: attr::RDONLY, recursive: true, ..Change::default() };
        set_attr(copy.as_fd(), &change).unwrap();
        rustix::fs::mkdirat(&mount, "still-writable", 0o700.into()).unwrap();
    }

    #[test]
    fn the_kernels_own_words_are_in_the_error() {
        let context = FsContext::open(c"tmpfs").unwrap();
        let err = context.string("no-such-option", "1").unwrap_err();
        assert_eq!(errno(&err), libc::EINVAL);
        assert!(err.to_string().contains("no-such-option"), "{err}");
        let err = FsContext::open(c"no-such-fs").unwrap_err();
        assert_eq!(errno(&err), libc::ENODEV);
    }
}
