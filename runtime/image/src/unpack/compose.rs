//! Fitting a layer to what lies below it: directories that its tar left out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;

use super::facts::Facts;
use super::node::{copy_dir_meta, open_dir};
use super::{Error, write_error};
use crate::snapshot::view::MergedView;

/// Gives implicit directories the metadata of their namesakes below. `false` when a namesake is
/// no directory or a hard link's target is missing: then only unpacking anew helps.
pub(super) fn fit(root: &OwnedFd, facts: &Facts, below: &MergedView) -> Result<bool, Error> {
    if facts.foreign_links {
        return Ok(false);
    }
    for path in facts.implicit.iter().chain(&facts.late).filter(|path| !facts.hides(path)) {
        let found = below.peek(path).map_err(write_error("look below for", path))?;
        let Some(found) = found else { continue };
        if found.file_type() != FileType::Directory {
            return Ok(false);
        }
        if facts.implicit.contains(path) {
            copy(root, path, &found.fd).map_err(write_error("copy the attributes of", path))?;
        }
    }
    Ok(true)
}

fn copy(root: &OwnedFd, path: &[u8], from: &OwnedFd) -> io::Result<()> {
    let to = open_dir(root.as_fd(), path)?;
    copy_dir_meta(from.as_fd(), to.as_fd())
}
