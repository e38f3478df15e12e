//! The trash is emptied in small steps, outside all locks: a layer of many files holds up
//! nobody, and what is new is synced in between.

use std::ffi::{CStr, CString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Store, record};

/// Names removed between two looks at what else is to be done.
const STEP: u32 = 256;
/// A deeper directory is moved to the trash's top, lest the walk needs a descriptor per level.
const DEPTH: usize = 32;

impl Store {
    /// Removes what lies in the trash, until the store closes.
    pub(super) fn empty_trash(&self) {
        for trash in self.layout.all_trash() {
            if let Err(error) = self.empty(&trash) {
                tracing::warn!(path = %trash.display(), %error, "cannot empty the trash");
            }
        }
    }

    fn empty(&self, trash: &Path) -> io::Result<()> {
        let names = names(open_dir_plain(trash)?.as_fd())?;
        if names.is_empty() {
            return Ok(());
        }
        // That they left their places must be on disk before their contents go.
        for dir in self.layout.homes() {
            record::sync(&dir)?;
        }
        let dir = open_dir_plain(trash)?;
        let mut walk = Walk { store: self, trash: dir.as_fd(), steps: 0, deeper: names };
        while let Some(name) = walk.deeper.pop() {
            match walk.remove(dir.as_fd(), &name, 0) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(error) => {
                    let name = name.to_string_lossy();
                    tracing::warn!(%name, %error, "cannot remove from the trash");
                }
            }
        }
        Ok(())
    }
}

struct Walk<'a> {
    store: &'a Store,
    trash: BorrowedFd<'a>,
    steps: u32,
    /// Names in the trash that are to be removed.
    deeper: Vec<CString>,
}

impl Walk<'_> {
    fn remove(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> io::Result<ControlFlow<()>> {
        if self.step().is_break() {
            return Ok(ControlFlow::Break(()));
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(error.into()),
        }
        if depth >= DEPTH {
            let place = CString::new(self.store.unique())?;
            rustix::fs::renameat(dir, name, self.trash, &*place)?;
            self.deeper.push(place);
            return Ok(ControlFlow::Continue(()));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        for child in names(inner.as_fd())? {
            if self.remove(inner.as_fd(), &child, depth + 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
        Ok(ControlFlow::Continue(()))
    }

    fn step(&mut self) -> ControlFlow<()> {
        if self.store.is_closing() {
            return ControlFlow::Break(());
        }
        self.steps = self.steps.wrapping_add(1);
        if self.steps.is_multiple_of(STEP) && !self.store.unsynced().is_empty() {
            // The error is logged there, and told to who waits for the next round.
            let _ = self.store.sync_new();
        }
        ControlFlow::Continue(())
    }
}

fn open_dir_plain(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(rustix::fs::CWD, path.as_os_str().as_bytes(), flags, Mode::empty())?)
}

/// All names but `.` and `..`.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
