//! Making single nodes and giving them their owner, mode, attributes and times.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::listing::{Body, Marks, Sum};

/// overlayfs's mark of a directory that hides those below.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Its presence makes overlayfs look for whiteouts even in a directory that exists in one layer
/// only; without it their names would show up in listings there.
const ORIGIN: &str = "trusted.overlay.origin";
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
/// Linux's XATTR_LIST_MAX and XATTR_SIZE_MAX.
const XATTR_MAX: usize = 64 << 10;
const COPY: usize = 256 << 10;
/// Room for the names that most nodes have.
const XATTR_FEW: usize = 256;

/// What all kinds of nodes have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A path that leads to an open file, also one opened with O_PATH, through /proc.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn proc_entry(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [proc_path(dir).as_bytes(), b"/", name].concat()
}

/// Opens a node itself, whatever it is.
pub(crate) fn open_node(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a directory, never through a symlink.
pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A character device 0:0: the name is removed.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0_u8; 1];
    match rustix::fs::getxattr(proc_path(dir), OPAQUE, &mut value[..]) {
        Ok(1) => Ok(value == *b"y"),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// overlayfs's attributes of a directory.
pub(super) fn marks(dir: BorrowedFd<'_>) -> io::Result<Marks> {
    let origin = match rustix::fs::getxattr(proc_path(dir), ORIGIN, &mut [0_u8; 1][..]) {
        Ok(_) | Err(Errno::RANGE) => true,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(Marks { opaque: is_opaque(dir)?, origin })
}

pub(super) fn set_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Makes a whiteout in `dir`.
pub(super) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?;
    Ok(rustix::fs::fsetxattr(dir, ORIGIN, b"", XattrFlags::empty())?)
}

/// An open file or directory gets its metadata but the time; what it has already is left alone,
/// since every change is one more in the journal. The owner goes first: changing it clears setuid
/// bits and capabilities.
pub(super) fn set_meta_of(fd: BorrowedFd<'_>, meta: &Meta) -> io::Result<()> {
    let stat = rustix::fs::fstat(fd)?;
    let owned = (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid);
    if !owned {
        rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    }
    if stat.st_mode & 0o7777 != meta.mode || !owned && meta.mode & 0o6000 != 0 {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))?;
    }
    for (name, value) in &meta.xattrs {
        tolerate(name, rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()))?;
    }
    Ok(())
}

pub(super) fn set_time_of(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> io::Result<()> {
    Ok(rustix::fs::futimens(fd, &times(mtime))?)
}

/// The node `name`, of any kind, gets its metadata.
pub(super) fn set_meta_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    meta: &Meta,
    kind: FileType,
) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), nofollow)?;
    // Symlinks have no mode; nothing else is followed here, since `name` is none.
    if kind != FileType::Symlink {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    let path = proc_entry(dir, name);
    for (key, value) in &meta.xattrs {
        let flags = XattrFlags::empty();
        tolerate(key, rustix::fs::lsetxattr(path.as_slice(), key.as_slice(), value, flags))?;
    }
    set_time_at(dir, name, meta.mtime)
}

pub(super) fn set_time_at(dir: BorrowedFd<'_>, name: &[u8], mtime: (i64, u32)) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps {
        last_access: omit,
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

/// As other runtimes: a file system without such attributes (or not on this kind of node) is
/// said and passed over.
fn tolerate(name: &[u8], result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => {
            let name = String::from_utf8_lossy(name);
            tracing::warn!(%name, "extended attribute not supported here, left out");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// What may not come from a layer: overlayfs would take it for its own.
pub(super) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(OVERLAY_PREFIX)
}

/// The metadata of an open node (O_PATH will do), overlayfs's own attributes left out.
pub(crate) fn read_meta(fd: BorrowedFd<'_>) -> io::Result<MetaOf> {
    let stat = rustix::fs::fstat(fd)?;
    let path = proc_path(fd);
    let mut xattrs = Vec::new();
    for name in xattr_names(&path)? {
        let mut value = vec![0_u8; XATTR_MAX];
        let length = rustix::fs::getxattr(path.as_str(), name.as_slice(), &mut value[..])?;
        value.truncate(length);
        xattrs.push((name, value));
    }
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let meta = Meta {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        mtime: (stat.st_mtime, nanos),
        xattrs,
    };
    Ok(MetaOf { meta, stat })
}

/// All but overlayfs's own.
fn xattr_names(path: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0_u8; XATTR_FEW];
    let used = match rustix::fs::listxattr(path, &mut list[..]) {
        Err(Errno::RANGE) => {
            list.resize(XATTR_MAX, 0);
            rustix::fs::listxattr(path, &mut list[..])
        }
        result => result,
    };
    let used = match used {
        Ok(used) => used,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list.get(..used).unwrap_or_default().split(|&b| b == 0);
    Ok(names.filter(|n| !n.is_empty() && !is_overlay_xattr(n)).map(<[u8]>::to_vec).collect())
}

/// Takes back the attributes that an earlier entry of the same directory gave.
pub(super) fn clear_xattrs(fd: BorrowedFd<'_>) -> io::Result<()> {
    for name in xattr_names(&proc_path(fd))? {
        rustix::fs::fremovexattr(fd, name.as_slice())?;
    }
    Ok(())
}

/// A node's metadata and what the kernel says of it.
pub(crate) struct MetaOf {
    pub(super) meta: Meta,
    pub(super) stat: Stat,
}

/// Gives the directory `to` the metadata of the directory `from`, and returns it.
pub(crate) fn copy_dir_meta(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<Meta> {
    let meta = read_meta(from)?.meta;
    set_meta_of(to, &meta)?;
    set_time_of(to, meta.mtime)?;
    Ok(meta)
}

/// Copies a node that is no directory, content and all, and says what it is.
pub(super) fn copy_node(
    from: &OwnedFd,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<(Meta, Body)> {
    let MetaOf { meta, stat } = read_meta(from.as_fd())?;
    let kind = file_type(&stat);
    let body = match kind {
        FileType::RegularFile => {
            let mut source = std::fs::File::open(proc_path(from.as_fd()))?;
            let mut target = std::fs::File::from(create_file(dir, name, meta.mode)?);
            let body = copy_content(&mut source, &mut target)?;
            set_meta_of(target.as_fd(), &meta)?;
            set_time_of(target.as_fd(), meta.mtime)?;
            return Ok((meta, body));
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, "", Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), dir, name)?;
            Body::Symlink(target.into_bytes())
        }
        FileType::Directory => return Err(Errno::ISDIR.into()),
        other => {
            rustix::fs::mknodat(dir, name, other, Mode::empty(), stat.st_rdev)?;
            match other {
                FileType::CharacterDevice => Body::Char(stat.st_rdev),
                FileType::BlockDevice => Body::Block(stat.st_rdev),
                _ => Body::Fifo,
            }
        }
    };
    set_meta_at(dir, name, &meta, kind)?;
    Ok((meta, body))
}

fn copy_content(source: &mut impl io::Read, target: &mut impl io::Write) -> io::Result<Body> {
    let (mut buffer, mut sum, mut size) = (vec![0_u8; COPY], Sum::new(), 0_u64);
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(Body::File { size, checksum: sum.finish() }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let piece = buffer.get(..count).unwrap_or_default();
        sum.update(piece);
        target.write_all(piece)?;
        size += count as u64;
    }
}

/// A new, empty file; fails if the name is taken. Special bits of the mode are left out: they are
/// set once there is content.
pub(super) fn create_file(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mode: u32,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o777))
}
