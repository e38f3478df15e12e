//! Project quota: what a directory with all below it may use of its file system.
//!
//! A file system counts space and inodes per project, a number that each file carries and that
//! directories can hand down, and may hold limits against it: ext4 (feature `project`, mounted
//! with `prjquota`) and XFS (mounted with `prjquota`). The calls are the same for both.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void};

use crate::process::check;

/// `_IOR('X', 31, struct fsxattr)` (linux/fs.h).
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
/// `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;
/// New files and directories within take the directory's project, and new directories this flag.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
/// `XQM_CMD(8)` (linux/dqblk_xfs.h). The kernel answers it for every file system.
const Q_XGETQSTATV: u32 = 0x5808;
const FS_QSTATV_VERSION1: i8 = 1;
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
const QIF_BLIMITS: u32 = 1;
const QIF_ILIMITS: u32 = 4;
/// What `dqb_bhardlimit` counts.
const BLOCK: u64 = 1024;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fs_quota_statv` (linux/dqblk_xfs.h), of which only the flags are of use here.
#[repr(C)]
#[derive(Default)]
struct QuotaStat {
    version: i8,
    pad1: u8,
    flags: u16,
    incore: u32,
    rest: [u64; 19],
}

/// `struct if_dqblk` (linux/quota.h).
#[repr(C)]
#[derive(Default)]
struct Dqblk {
    bhardlimit: u64,
    bsoftlimit: u64,
    curspace: u64,
    ihardlimit: u64,
    isoftlimit: u64,
    curinodes: u64,
    btime: u64,
    itime: u64,
    valid: u32,
}

const _: () = assert!(size_of::<FsXattr>() == 28);
const _: () = assert!(size_of::<QuotaStat>() == 160);
const _: () = assert!(size_of::<Dqblk>() == 72);

/// Disk space and inodes; as a limit, 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes. Limits are in whole KiB, rounded down.
    pub bytes: u64,
    /// Files, directories and all other nodes.
    pub inodes: u64,
}

/// What a project uses, and what it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Project {
    /// Also what is written but not yet on disk.
    pub used: Amount,
    /// More is refused: by EDQUOT on ext4, by ENOSPC on XFS.
    pub limits: Amount,
}

/// The project of a file or directory; 0 is none. Fails where the file system knows no such thing.
pub fn project(file: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(attributes(file)?.projid)
}

/// Gives a directory a project, which all that is made in it from now on has, too. What is in it
/// already keeps its own.
pub fn set_project(dir: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let mut attributes = attributes(dir)?;
    attributes.projid = id;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: FS_IOC_FSSETXATTR only reads a live fsxattr.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    check(ret.into())
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    // SAFETY: FS_IOC_FSGETXATTR only writes a live fsxattr.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    check(ret.into())?;
    Ok(attributes)
}

/// Whether the file system of `file` counts projects and holds limits against them. An error where
/// it, or the kernel, has no quota at all.
pub fn enforced(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut stat = QuotaStat { version: FS_QSTATV_VERSION1, ..QuotaStat::default() };
    // SAFETY: Q_XGETQSTATV writes a fs_quota_statv of the version that it reads there.
    unsafe { quotactl(file, Q_XGETQSTATV, 0, (&raw mut stat).cast()) }?;
    Ok(stat.flags & FS_QUOTA_PDQ_ENFD != 0)
}

/// What the project uses and may use on the file system of `file`. Needs CAP_SYS_ADMIN.
pub fn get(file: BorrowedFd<'_>, id: u32) -> io::Result<Project> {
    let mut block = Dqblk::default();
    // SAFETY: Q_GETQUOTA writes an if_dqblk.
    match unsafe { quotactl(file, Q_GETQUOTA, id, (&raw mut block).cast()) } {
        Ok(()) => {}
        // XFS, of a project that nothing was ever counted for.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Project::default()),
        Err(error) => return Err(error),
    }
    let bytes = block.bhardlimit.saturating_mul(BLOCK);
    Ok(Project {
        used: Amount { bytes: block.curspace, inodes: block.curinodes },
        limits: Amount { bytes, inodes: block.ihardlimit },
    })
}

/// Limits the project on the file system of `file`. Needs CAP_SYS_ADMIN.
pub fn set_limits(file: BorrowedFd<'_>, id: u32, limits: Amount) -> io::Result<()> {
    let mut block = Dqblk {
        bhardlimit: limits.bytes / BLOCK,
        ihardlimit: limits.inodes,
        valid: QIF_BLIMITS | QIF_ILIMITS,
        ..Dqblk::default()
    };
    // SAFETY: Q_SETQUOTA only reads an if_dqblk.
    unsafe { quotactl(file, Q_SETQUOTA, id, (&raw mut block).cast()) }
}

/// quotactl_fd(2), of projects.
///
/// # Safety
///
/// `data` points to what `command` reads and writes, and lives.
unsafe fn quotactl(
    file: BorrowedFd<'_>,
    command: u32,
    id: u32,
    data: *mut c_void,
) -> io::Result<()> {
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: the caller vouches for `data`, and the descriptor is open while it is borrowed.
    let ret = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd() as c_int, command, id, data)
    };
    check(ret)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    /// Directories on file systems with project quota, if the machine has any.
    fn places() -> Vec<PathBuf> {
        let dirs = std::env::var_os("BERTH_TEST_QUOTA_DIR").unwrap_or_default();
        let dirs: Vec<_> = std::env::split_paths(&dirs).filter(|p| p.is_absolute()).collect();
        if dirs.is_empty() {
            println!("skipped: BERTH_TEST_QUOTA_DIR names no directory with project quota");
        }
        dirs
    }

    #[test]
    fn what_has_no_quota_says_so() {
        let proc = File::open("/proc/self").unwrap();
        assert!(enforced(proc.as_fd()).is_err());
        assert!(get(proc.as_fd(), 7).is_err());
        assert!(set_limits(proc.as_fd(), 7, Amount { bytes: 1 << 20, inodes: 0 }).is_err());
        assert!(set_project(proc.as_fd(), 7).is_err());
    }

    #[test]
    fn a_project_is_handed_down_counted_and_limited() {
        for place in places() {
            let path = place.join("sys-quota");
            std::fs::create_dir(&path).unwrap();
            let dir = File::open(&path).unwrap();
            let dir = dir.as_fd();
            let id = 0x7fff_1234;
            assert!(enforced(dir).unwrap(), "{place:?}");
            assert_eq!(get(dir, id).unwrap(), Project::default());
            set_project(dir, id).unwrap();
            std::fs::create_dir(path.join("inner")).unwrap();
            std::fs::write(path.join("inner/file"), vec![1; 100_000]).unwrap();
            let file = File::open(path.join("inner/file")).unwrap();
            assert_eq!(project(file.as_fd()).unwrap(), id);
            let limits = Amount { bytes: 1 << 20, inodes: 50 };
            set_limits(dir, id, limits).unwrap();
            let found = get(dir, id).unwrap();
            assert_eq!((found.limits, found.used.inodes), (limits, 3), "{place:?}");
            assert!((100_000..200_000).contains(&found.used.bytes), "{found:?}");
            set_limits(dir, id, Amount::default()).unwrap();
            std::fs::remove_dir_all(&path).unwrap();
            drop(file);
            assert_eq!(get(dir, id).unwrap().limits, Amount::default());
        }
    }
}
