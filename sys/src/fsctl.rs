//! Whole file systems: pulling the plug of one, for tests of what survives a power cut.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::process::check;

/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)` (linux/fs.h; XFS has it as `XFS_IOC_GOINGDOWN`).
const FS_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;

/// What is still written when the plug is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// What the journal holds, but no file's data.
    LogFlush,
    /// Nothing: as in a power cut.
    NoLogFlush,
}

/// Cuts the file system of `dir` off its disk: ext4, XFS and some others. From then on all that
/// is written fails with EIO. It must be unmounted and mounted again. Needs CAP_SYS_ADMIN.
pub fn shut_down(dir: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    let flags: u32 = match how {
        Shutdown::LogFlush => 1,
        Shutdown::NoLogFlush => 2,
    };
    // SAFETY: FS_IOC_SHUTDOWN only reads a live 32-bit number.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const flags) };
    check(ret.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;

    fn run(command: &mut Command) {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    /// A small ext4 in a file, unmounted when dropped.
    struct Disk(PathBuf);

    impl Disk {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("berth-sys-{name}-{}", std::process::id()));
            std::fs::create_dir_all(dir.join("mnt")).unwrap();
            let file = std::fs::File::create(dir.join("disk")).unwrap();
            file.set_len(16 << 20).unwrap();
            run(Command::new("/sbin/mkfs.ext4").arg("-q").arg(dir.join("disk")));
            let disk = Self(dir);
            disk.mount();
            disk
        }

        fn path(&self) -> PathBuf {
            self.0.join("mnt")
        }

        fn mount(&self) {
            let disk = self.0.join("disk");
            run(Command::new("mount").args(["-o", "loop"]).args([disk, self.path()]));
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            run(Command::new("umount").arg(self.path()));
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        std::fs::write(path, bytes)
    }

    #[test]
    fn what_was_synced_survives_a_shutdown_and_what_was_not_does_not() {
        let disk = Disk::new("shutdown");
        for how in [Shutdown::NoLogFlush, Shutdown::LogFlush] {
            let dir = std::fs::File::open(disk.path()).unwrap();
            write(&disk.path().join("kept"), b"kept").unwrap();
            std::fs::File::open(disk.path().join("kept")).unwrap().sync_all().unwrap();
            dir.sync_all().unwrap();
            write(&disk.path().join("lost"), b"lost").unwrap();
            shut_down(dir.as_fd(), how).unwrap();
            let error = write(&disk.path().join("late"), b"x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
            drop(dir);
            run(Command::new("umount").arg(disk.path()));
            disk.mount();
            assert_eq!(std::fs::read(disk.path().join("kept")).unwrap(), b"kept");
            assert_ne!(std::fs::read(disk.path().join("lost")).unwrap_or_default(), b"lost");
        }
    }

    #[test]
    fn what_cannot_be_shut_down_says_so() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(shut_down(proc.as_fd(), Shutdown::NoLogFlush).is_err());
    }
}
