//! Fitting a layer to what lies below it: directories that its tar left out.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode};

use super::apply::DISK_BLOCK;
use super::facts::{Facts, Path, prefixes};
use super::listing::{Body, ListingWriter, Marks};
use super::node::{Meta, copy_dir_meta, open_dir, set_time_of};
use super::{Counts, Error, listing_error, write_error};
use crate::snapshot::view::MergedView;

/// The directories that a layer's tar left out and that are directories below. `None` where they
/// are not all that is missing: one is something else below, so that what lies in it belongs
/// elsewhere.
pub(super) fn missing(facts: &Facts, below: &MergedView) -> Result<Option<Vec<Path>>, Error> {
    if facts.needs_below() {
        return Ok(None);
    }
    let mut missing = Vec::new();
    let implicit = facts.implicit.iter().filter(|path| !facts.hides(path)).map(|p| (p, true));
    let late = facts.late.iter().filter(|path| !facts.removes(path)).map(|p| (p, false));
    for (path, is_implicit) in implicit.chain(late) {
        let found = below.peek(path).map_err(write_error("look below for", path))?;
        match found.map(|found| found.file_type()) {
            Some(FileType::Directory) if is_implicit => missing.push(path.clone()),
            Some(FileType::Directory) | None => {}
            Some(_) => return Ok(None),
        }
    }
    Ok(Some(missing))
}

/// Makes in `root` the directories at `paths` as they are below. Those on the way there that are
/// not among them are as the layer itself has them.
pub(super) fn patch(
    root: &OwnedFd,
    layer: &OwnedFd,
    paths: &[Path],
    below: &MergedView,
    listing: &mut ListingWriter,
) -> Result<Counts, Error> {
    let wanted: BTreeSet<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    let mut all = wanted.clone();
    all.extend(paths.iter().flat_map(|path| prefixes(path)).filter(|path| !path.is_empty()));
    for path in &all {
        rustix::fs::mkdirat(root, *path, Mode::RWXU)
            .map_err(|e| write_error("make the directory", path)(e.into()))?;
    }
    for path in &all {
        let fail = write_error("copy the attributes of", path);
        let from = match below.peek(path).map_err(&fail)? {
            Some(found) if wanted.contains(path) => found.fd,
            _ => open_dir(layer.as_fd(), path).map_err(|e| fail(e.into()))?,
        };
        let meta = copy(root.as_fd(), path, &from).map_err(&fail)?;
        listing.node(path, &meta, &Body::Directory(Marks::default())).map_err(listing_error)?;
    }
    // As in every listing, the root without an entry has time zero.
    set_time_of(root.as_fd(), (0, 0)).map_err(write_error("set the time of", b"/"))?;
    let inodes = 1 + all.len() as u64;
    Ok(Counts { bytes: all.len() as u64 * DISK_BLOCK, inodes })
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
