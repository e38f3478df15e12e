//! The merged view of a stack of unpacked layers, read without mounting it.
//!
//! The rules are overlayfs's own: a whiteout (character device 0:0) or a node that is no
//! directory hides what lies below, an opaque directory hides the contents of those below.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::unpack::node::{file_type, is_opaque, is_whiteout, open_node};

/// As the kernel's own limit.
const MAX_SYMLINKS: usize = 40;

/// Layers, top first.
pub(crate) struct MergedView {
    layers: Vec<ViewLayer>,
}

struct ViewLayer {
    root: OwnedFd,
    opaque_root: bool,
}

/// A node of the view, opened with O_PATH.
pub(crate) struct Found {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Stat,
}

impl Found {
    pub(crate) fn file_type(&self) -> FileType {
        file_type(&self.stat)
    }

    /// A symlink's target.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, "", Vec::new())?.into_bytes())
    }
}

enum Within {
    Here(Found),
    /// Not in this layer, and those below show through.
    Below,
    /// Hidden from here on.
    Gone,
}

impl MergedView {
    /// Opens the layers' root directories, given top first, each with whether it hides all
    /// that is below it.
    pub(crate) fn open<'a>(layers: impl IntoIterator<Item = (&'a Path, bool)>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layers = layers
            .into_iter()
            .map(|(path, opaque_root)| {
                let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
                Ok(ViewLayer { root, opaque_root })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { layers })
    }

    /// The node at `path` (canonical, no leading slash); no symlink is followed, and a symlink
    /// on the way means that nothing is there.
    pub(crate) fn peek(&self, path: &[u8]) -> io::Result<Option<Found>> {
        for layer in &self.layers {
            match layer.find(path)? {
                Within::Here(found) => return Ok(Some(found)),
                Within::Gone => return Ok(None),
                Within::Below if layer.opaque_root => return Ok(None),
                Within::Below => {}
            }
        }
        Ok(None)
    }

    /// The node that `path` leads to for a process whose root this view is: symlinks are
    /// followed, also the last, and `..` stops at the root.
    pub(crate) fn resolve(&self, path: &[u8]) -> io::Result<Option<Found>> {
        let mut waiting = components(path);
        waiting.reverse();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut found = self.peek(b"")?;
        let mut symlinks = 0;
        while let Some(name) = waiting.pop() {
            if name == b".." {
                at.pop();
                found = self.peek(&at.join(&b'/'))?;
                continue;
            }
            at.push(name);
            let Some(next) = self.peek(&at.join(&b'/'))? else { return Ok(None) };
            if next.file_type() == FileType::Symlink {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = next.target()?;
                at.pop();
                if target.starts_with(b"/") {
                    at.clear();
                }
                waiting.extend(components(&target).into_iter().rev());
                found = self.peek(&at.join(&b'/'))?;
            } else {
                found = Some(next);
            }
        }
        Ok(found)
    }
}

/// The parts of a path, without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&b| b == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

impl ViewLayer {
    fn find(&self, path: &[u8]) -> io::Result<Within> {
        let parts = components(path);
        let mut fd = open_node(self.root.as_fd(), b".")?;
        let mut stat = rustix::fs::fstat(&fd)?;
        let mut opaque = false;
        for name in &parts {
            if file_type(&stat) != FileType::Directory {
                return Ok(Within::Gone);
            }
            opaque = opaque || is_opaque(fd.as_fd())?;
            fd = match open_node(fd.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::NOENT) if opaque => return Ok(Within::Gone),
                Err(Errno::NOENT) => return Ok(Within::Below),
                Err(error) => return Err(error.into()),
            };
            stat = rustix::fs::fstat(&fd)?;
            if is_whiteout(&stat) {
                return Ok(Within::Gone);
            }
        }
        Ok(Within::Here(Found { fd, stat }))
    }
}
