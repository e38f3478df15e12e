//! Joining namespaces and making new ones (setns(2), unshare(2)). For single-threaded children.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::process::check;

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Mounts.
    Mnt,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Process ids.
    Pid,
    /// Cgroup root.
    Cgroup,
    /// User and group ids.
    User,
}

impl Kind {
    /// Its `CLONE_NEW*` flag.
    #[must_use]
    pub fn flag(self) -> u64 {
        let flag = match self {
            Self::Mnt => libc::CLONE_NEWNS,
            Self::Net => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::User => libc::CLONE_NEWUSER,
        };
        u64::from(flag.unsigned_abs())
    }

    /// Its name in /proc/PID/ns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnt => "mnt",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::User => "user",
        }
    }
}

/// All flags of `kinds`, or'ed.
#[must_use]
pub fn flags(kinds: &[Kind]) -> u64 {
    kinds.iter().fold(0, |all, kind| all | kind.flag())
}

/// The calling thread's namespace of this kind. For [`Kind::Pid`]: the one it is in, not the one
/// its children will be in.
pub fn current(kind: Kind) -> io::Result<OwnedFd> {
    open(Path::new(&format!("/proc/self/ns/{}", kind.name())))
}

/// Opens a namespace file.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?)
}

/// Joins the namespace behind `fd`, which must be of this kind. Joining a mount namespace moves
/// root and working directory to its root. Joining a PID namespace concerns later children only.
/// Joining a user namespace gives all capabilities in it and none outside, and can't be undone.
pub fn join(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    setns(fd, kind.flag())
}

/// Joins those namespaces of the process behind `pidfd` that `kinds` names (kernel 5.8).
pub fn join_process(pidfd: BorrowedFd<'_>, kinds: &[Kind]) -> io::Result<()> {
    setns(pidfd, flags(kinds))
}

fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: takes numbers only; changes no memory and no descriptor.
    let ret = unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) };
    check(ret)
}

/// Moves the caller into new namespaces of these kinds.
pub fn unshare(kinds: &[Kind]) -> io::Result<()> {
    // SAFETY: takes numbers only. The flags of `Kind` don't touch the descriptor table or memory.
    let ret = unsafe { libc::syscall(libc::SYS_unshare, flags(kinds)) };
    check(ret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_its_own_gets_and_regains_a_uts_namespace() {
        std::thread::spawn(|| {
            let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
            let before = open(Path::new("/proc/thread-self/ns/uts")).expect("own namespace");
            unshare(&[Kind::Uts]).expect("root may unshare");
            let inside = open(Path::new("/proc/thread-self/ns/uts")).unwrap();
            assert_ne!(inode(&before), inode(&inside));
            use std::os::fd::AsFd;
            let wrong = join(before.as_fd(), Kind::Ipc).unwrap_err();
            assert_eq!(wrong.raw_os_error(), Some(libc::EINVAL));
            join(before.as_fd(), Kind::Uts).unwrap();
            let after = open(Path::new("/proc/thread-self/ns/uts")).unwrap();
            assert_eq!(inode(&before), inode(&after));
        })
        .join()
        .unwrap();
    }
}
