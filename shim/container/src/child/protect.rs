//! What is taken from a container's reach: read-only and masked paths; and its sysctls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{self, Change, FsContext, attr};
use berth_sys::root::{Leaf, Root, leaf_of};
use rustix::fs::{CWD, Mode, OFlags};

use crate::plan::Plan;
use crate::pod::NULL;
use crate::wire::{Doing, Work};

/// Writes sysctls through the small namespace's /proc, which no image can stand in for. The kernel
/// takes the writer's namespaces, not the file's.
pub(super) fn write_sysctls(proc: BorrowedFd<'_>, plan: &Plan<'_>) -> Work<()> {
    for (path, value) in &plan.sysctls {
        let step = || format!("write {value:?} to /proc/sys/{}", path.display());
        let file = Path::new("sys").join(path);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(proc, &file, flags, Mode::empty()).doing(step)?;
        rustix::io::write(&file, value.as_bytes()).doing(step)?;
    }
    Ok(())
}

/// Covers each path with a read-only copy of itself. Absent ones are skipped.
pub(super) fn read_only(root: &Root, paths: &[PathBuf]) -> Work<()> {
    for path in paths {
        let step = || format!("make {} read only", path.display());
        let Some(target) = locate(root, path).doing(step)? else { continue };
        let cover = || -> io::Result<()> {
            let copy = mount::clone_tree(target.as_fd(), Path::new(""), true)?;
            mount::set_attr(copy.as_fd(), &Change { set: attr::RDONLY, ..Change::default() })?;
            mount::attach(copy.as_fd(), target.as_fd())
        };
        cover().doing(step)?;
    }
    Ok(())
}

/// Attaches the host's null device in the small namespace's copy, where it can be cloned as often
/// as files are to be masked (a detached mount can't, before kernel 6.15).
pub(super) fn keep_null(null: OwnedFd) -> Work<()> {
    let step = || "keep /dev/null".to_owned();
    let spot = rustix::fs::open(NULL, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(step)?;
    mount::attach(null.as_fd(), spot.as_fd()).doing(step)
}

/// Covers each path: files with the null device, directories with an empty read-only tmpfs.
/// Absent ones are skipped.
pub(super) fn mask(root: &Root, paths: &[PathBuf]) -> Work<()> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let step = || format!("mask {}", path.display());
        let Some(target) = locate(root, path).doing(step)? else { continue };
        let cover = match leaf_of(target.as_fd()).doing(step)? {
            Leaf::File => mount::clone_tree(CWD, Path::new(NULL), false),
            // One file system for all: a copy of the first.
            Leaf::Dir => match &empty {
                Some(first) => mount::clone_tree(first.as_fd(), Path::new(""), false),
                None => empty_dir(),
            },
        };
        let cover = cover.doing(step)?;
        mount::attach(cover.as_fd(), target.as_fd()).doing(step)?;
        if empty.is_none() && leaf_of(cover.as_fd()).doing(step)? == Leaf::Dir {
            empty = Some(cover);
        }
    }
    Ok(())
}

fn empty_dir() -> io::Result<OwnedFd> {
    let context = FsContext::open(c"tmpfs")?;
    context.string("size", "4k")?;
    context.string("nr_inodes", "2")?;
    context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

fn locate(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    match root.locate(path) {
        Ok(found) => Ok(Some(found)),
        // ENOTDIR: below something that is a file here.
        Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(20) => {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}
