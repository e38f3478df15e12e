//! Fitting a layer to what lies below it: directories that its tar left out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;

use super::facts::Facts;
use super::listing::{Body, ListingWriter, Marks};
use super::node::{Meta, copy_dir_meta, open_dir};
use super::{Error, listing_error, write_error};
use crate::snapshot::view::MergedView;

/// Completes a layer that was unpacked without regard to those below. `false` where that is not
/// enough: a directory is something else below, or an entry could not be applied.
pub(super) fn fit(
    root: &OwnedFd,
    facts: &Facts,
    below: &MergedView,
    listing: &mut ListingWriter,
) -> Result<bool, Error> {
    if facts.unapplied {
        return Ok(false);
    }
    let implicit = facts.implicit.iter().filter(|path| !facts.hides(path));
    let late = facts.late.iter().filter(|path| !facts.removes(path));
    for path in implicit.chain(late) {
        let found = below.peek(path).map_err(write_error("look below for", path))?;
        if found.is_some_and(|found| found.file_type() != FileType::Directory) {
            return Ok(false);
        }
    }
    copy_attributes(root.as_fd(), facts, below, listing)?;
    Ok(true)
}

/// Gives implicit directories the owner, mode, attributes and times of their namesakes below.
pub(super) fn copy_attributes(
    root: BorrowedFd<'_>,
    facts: &Facts,
    below: &MergedView,
    listing: &mut ListingWriter,
) -> Result<(), Error> {
    for path in facts.implicit.iter().filter(|path| !facts.hides(path)) {
        let found = below.peek(path).map_err(write_error("look below for", path))?;
        if let Some(found) = found.filter(|found| found.file_type() == FileType::Directory) {
            let meta =
                copy(root, path, &found.fd).map_err(write_error("copy the attributes of", path))?;
            let body = Body::Directory(Marks::default());
            listing.node(path, &meta, &body).map_err(listing_error)?;
        }
    }
    Ok(())
}

fn copy(root: BorrowedFd<'_>, path: &[u8], from: &OwnedFd) -> io::Result<Meta> {
    let to = open_dir(root, path)?;
    copy_dir_meta(from.as_fd(), to.as_fd())
}
