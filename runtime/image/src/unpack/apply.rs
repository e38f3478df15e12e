//! Applying tar entries to a directory, so that it becomes a layer of an overlay.
//!
//! Every step opens one name in a directory already held open and never lets the kernel follow a
//! symlink, so nothing outside the root can be reached: symlinks are resolved here, within the
//! root, as a container would see them.

use std::collections::BTreeMap;
use std::io;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::facts::{Facts, Path, is_below, join};
use super::listing::{Body, ListingWriter, Marks, Sum};
use super::node::{self, Meta};
use super::tar::{Entry, Kind, TarReader};
use super::{Below, Counts, Error, Limits, compose, entry_error, listing_error, write_error};
use crate::snapshot::view::components;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// aufs's own bookkeeping, of no meaning to others.
const AUFS: &[u8] = b".wh..wh.";
/// What a directory without an entry gets, unless one below says otherwise.
const IMPLICIT_MODE: u32 = 0o755;
pub(super) const DISK_BLOCK: u64 = 4096;

/// Turns entries into a layer.
pub(super) struct Applier<'a> {
    pub(super) root: Rc<OwnedFd>,
    pub(super) listing: &'a mut ListingWriter,
    pub(super) facts: Facts,
    pub(super) below: Option<Below>,
    pub(super) counts: Counts,
    /// Set at the end: making entries changes their directory's time.
    dir_times: BTreeMap<Path, (i64, u32)>,
    pub(super) limits: Limits,
    /// The way to the last entry's directory, name by name, where no symlink was on it.
    pub(super) trail: Vec<(Vec<u8>, Place)>,
}

/// A directory of the layer, held open.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) dir: Rc<OwnedFd>,
    pub(super) path: Path,
}

impl<'a> Applier<'a> {
    /// Applies to the empty directory `root`.
    pub(super) fn new(
        root: OwnedFd,
        listing: &'a mut ListingWriter,
        below: Option<Below>,
        limits: Limits,
    ) -> Self {
        // The first pass knows all whiteouts, wherever in the tar they stand.
        let facts = below.as_ref().map_or_else(Facts::default, |below| Facts {
            whiteouts: below.facts.whiteouts.clone(),
            opaques: below.facts.opaques.clone(),
            ..Facts::default()
        });
        let counts = Counts { bytes: 0, inodes: 1 };
        let dir_times = BTreeMap::from([(Path::new(), (0, 0))]);
        let (root, trail) = (Rc::new(root), Vec::new());
        Self { root, listing, facts, below, counts, dir_times, limits, trail }
    }

    /// Applies one entry, reading its content. Where the layers below may make the difference,
    /// what cannot be applied is noted and left to the second pass, which knows them.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<impl BufRead>,
    ) -> Result<(), Error> {
        match self.try_apply(entry, reader) {
            Err(Error::Entry { .. }) if self.below.is_none() && !self.facts.stands_alone() => {
                self.facts.unapplied = true;
                Ok(())
            }
            result => result,
        }
    }

    fn try_apply(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<impl BufRead>,
    ) -> Result<(), Error> {
        let mut parts = components(&entry.path);
        if parts.iter().any(|part| part == b".." || part.contains(&0)) {
            return Err(entry_error(&entry.path, "leads out of the layer"));
        }
        let Some(name) = parts.pop() else { return self.root_entry(entry) };
        let in_aufs = parts.iter().any(|part| part.starts_with(AUFS));
        if in_aufs || name.starts_with(AUFS) && name != OPAQUE_NAME {
            return Ok(());
        }
        let place = self.place(&parts)?;
        if name == OPAQUE_NAME {
            return self.opaque(&place);
        }
        if let Some(removed) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&place, removed, &entry.path);
        }
        self.node(&place, name, entry, reader)
    }

    /// Ends the layer: directory times, and in a rebuild the attributes of implicit directories.
    pub(super) fn finish(mut self) -> Result<(Facts, Counts), Error> {
        for (path, mtime) in &self.dir_times {
            let name = if path.is_empty() { b"." } else { path.as_slice() };
            node::set_time_at(self.root.as_fd(), name, *mtime)
                .map_err(write_error("set the time of", path))?;
        }
        if let Some(below) = self.below.take() {
            compose::copy_attributes(self.root.as_fd(), &self.facts, &below.view, self.listing)?;
        }
        Ok((self.facts, self.counts))
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(entry_error(&entry.path, "would replace the root directory"));
        }
        self.facts.root_entry = true;
        self.dir_times.insert(Path::new(), entry.mtime);
        let fail = write_error("set the attributes of", b"/");
        let meta = meta(entry)?;
        node::clear_xattrs(self.root.as_fd()).map_err(&fail)?;
        node::set_meta_of(self.root.as_fd(), &meta).map_err(&fail)?;
        let root = self.root.clone();
        self.list(root.as_fd(), b"", meta, &Body::Directory(Marks::default()))
    }

    /// Writes down what has been made. Attributes are looked at again, since the file system may
    /// keep them otherwise than they were given.
    fn list(
        &mut self,
        made: BorrowedFd<'_>,
        path: &[u8],
        mut meta: Meta,
        body: &Body,
    ) -> Result<(), Error> {
        if !meta.xattrs.is_empty() {
            let found = node::read_meta(made).map_err(write_error("look at", path))?.meta;
            meta = Meta { mtime: meta.mtime, ..found };
        }
        self.listing.node(path, &meta, body).map_err(listing_error)
    }

    fn mark(&mut self, path: &[u8], marks: Marks) -> Result<(), Error> {
        self.listing.mark(path, marks).map_err(listing_error)
    }

    fn opaque(&mut self, place: &Place) -> Result<(), Error> {
        self.facts.opaques.insert(place.path.clone());
        if place.path.is_empty() {
            return Ok(());
        }
        node::set_opaque(place.dir.as_fd()).map_err(write_error("make opaque", &place.path))?;
        self.mark(&place.path, Marks::OPAQUE)
    }

    fn whiteout(&mut self, place: &Place, name: &[u8], shown: &[u8]) -> Result<(), Error> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(entry_error(shown, "is a whiteout of no name"));
        }
        let path = join(&place.path, name);
        let fail = write_error("remove by whiteout", &path);
        // Whiteouts speak of the layers below only: what this layer has of that name stays.
        match stat_at(place, name).map_err(&fail)? {
            None => {
                node::make_whiteout(place.dir.as_fd(), name).map_err(&fail)?;
                self.counts.inodes += 1;
                let device = Body::Char(0);
                self.listing.node(&path, &Meta::default(), &device).map_err(listing_error)?;
                self.mark(&place.path, Marks::ORIGIN)?;
            }
            Some(FileType::Directory) => {
                let dir = node::open_dir(place.dir.as_fd(), name).map_err(|e| fail(e.into()))?;
                node::set_opaque(dir.as_fd()).map_err(&fail)?;
                self.mark(&path, Marks::OPAQUE)?;
            }
            Some(_) => {}
        }
        self.facts.whiteouts.insert(path);
        Ok(())
    }

    fn node(
        &mut self,
        place: &Place,
        name: Vec<u8>,
        entry: &Entry,
        reader: &mut TarReader<impl BufRead>,
    ) -> Result<(), Error> {
        let path = join(&place.path, &name);
        match entry.kind {
            Kind::Directory => self.directory(place, name, path, entry),
            Kind::HardLink => self.hard_link(place, &name, &path, entry),
            Kind::CharDevice { major: 0, minor: 0 } => {
                Err(entry_error(&path, "is a character device 0:0, overlayfs's whiteout"))
            }
            Kind::File => self.file(place, &name, &path, entry, reader),
            _ => self.special(place, &name, &path, entry),
        }
    }

    fn file(
        &mut self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        reader: &mut TarReader<impl BufRead>,
    ) -> Result<(), Error> {
        let meta = meta(entry)?;
        let create = || node::create_file(place.dir.as_fd(), name, meta.mode);
        let mut file = create();
        if matches!(file, Err(Errno::EXIST)) {
            self.clear(place, name, path)?;
            file = create();
        }
        let fail = write_error("write", path);
        let mut file = std::fs::File::from(file.map_err(|e| fail(e.into()))?);
        self.counts.inodes += 1;
        self.counts.bytes += entry.size.next_multiple_of(DISK_BLOCK);
        let body = write_content(&mut file, path, reader)?;
        node::set_meta_of(file.as_fd(), &meta).map_err(&fail)?;
        node::set_time_of(file.as_fd(), meta.mtime).map_err(&fail)?;
        self.list(file.as_fd(), path, meta, &body)
    }

    fn special(
        &mut self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let meta = meta(entry)?;
        self.clear(place, name, path)?;
        self.counts.inodes += 1;
        let fail = write_error("make", path);
        let body = make_special(place, name, entry, &meta).map_err(&fail)?;
        if meta.xattrs.is_empty() {
            return self.listing.node(path, &meta, &body).map_err(listing_error);
        }
        let made = node::open_node(place.dir.as_fd(), name).map_err(|e| fail(e.into()))?;
        self.list(made.as_fd(), path, meta, &body)
    }

    fn directory(
        &mut self,
        place: &Place,
        name: Vec<u8>,
        path: Path,
        entry: &Entry,
    ) -> Result<(), Error> {
        let meta = meta(entry)?;
        let fail = write_error("make the directory", &path);
        let dir = self.make_dir(place, &name, &path, meta.mode)?;
        if self.dir_times.contains_key(&path) {
            node::clear_xattrs(dir.as_fd()).map_err(&fail)?;
        }
        if self.facts.implicit.remove(&path) {
            self.facts.late.insert(path.clone());
        }
        node::set_meta_of(dir.as_fd(), &meta).map_err(&fail)?;
        self.list(dir.as_fd(), &path, meta, &Body::Directory(Marks::default()))?;
        self.dir_times.insert(path.clone(), entry.mtime);
        // What comes next mostly lies in it.
        if self.below.is_none()
            && self.trail.last().is_some_and(|(_, last)| last.path == place.path)
        {
            self.trail.push((name, Place { dir: Rc::new(dir), path }));
        }
        Ok(())
    }

    /// Opens the directory `name`, made if need be. One that takes the place of something else
    /// in this layer hides what the layers below have of that name.
    pub(super) fn make_dir(
        &mut self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        mode: u32,
    ) -> Result<OwnedFd, Error> {
        let fail = write_error("make the directory", path);
        let parent = place.dir.as_fd();
        let mode = Mode::from_raw_mode(mode & 0o777);
        match rustix::fs::mkdirat(parent, name, mode) {
            Ok(()) => {
                self.counts.inodes += 1;
                self.counts.bytes += DISK_BLOCK;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(fail(error.into())),
        }
        match node::open_dir(parent, name) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let dir = replace_by_dir(parent, name).map_err(&fail)?;
                self.mark(path, Marks::OPAQUE)?;
                self.facts.replaced.insert(path.to_vec());
                self.trail.clear();
                Ok(dir)
            }
            Err(error) => Err(fail(error.into())),
        }
    }

    /// A directory that has no entry (yet).
    pub(super) fn make_implicit(
        &mut self,
        place: &Place,
        name: &[u8],
        path: Path,
    ) -> Result<OwnedFd, Error> {
        let dir = self.make_dir(place, name, &path, IMPLICIT_MODE)?;
        let meta = Meta { mode: IMPLICIT_MODE, ..Meta::default() };
        node::set_meta_of(dir.as_fd(), &meta)
            .map_err(write_error("set the attributes of", &path))?;
        self.list(dir.as_fd(), &path, meta, &Body::Directory(Marks::default()))?;
        self.dir_times.entry(path.clone()).or_insert((0, 0));
        self.facts.implicit.insert(path);
        Ok(dir)
    }

    /// Makes way: a later entry replaces an earlier one of its name.
    pub(super) fn clear(&mut self, place: &Place, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let fail = write_error("replace", path);
        match stat_at(place, name).map_err(&fail)? {
            None => return Ok(()),
            Some(FileType::Directory) => {
                let full = [node::proc_path(place.dir.as_fd()).as_bytes(), b"/", name].concat();
                let full: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(full);
                std::fs::remove_dir_all(full).map_err(&fail)?;
                self.facts.forget(path);
                self.dir_times.retain(|known, _| known != path && !is_below(known, path));
            }
            Some(_) => rustix::fs::unlinkat(place.dir.as_fd(), name, AtFlags::empty())
                .map_err(|e| fail(e.into()))?,
        }
        self.trail.clear();
        Ok(())
    }
}

fn meta(entry: &Entry) -> Result<Meta, Error> {
    if entry.xattrs.iter().any(|(name, _)| node::is_overlay_xattr(name)) {
        return Err(entry_error(&entry.path, "has an extended attribute of overlayfs"));
    }
    Ok(Meta {
        uid: entry.uid,
        gid: entry.gid,
        mode: entry.mode,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    })
}

pub(super) fn stat_at(place: &Place, name: &[u8]) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(node::file_type(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn is_whiteout_at(place: &Place, name: &[u8]) -> bool {
    rustix::fs::statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| node::is_whiteout(&stat))
}

fn replace_by_dir(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    let dir = node::open_dir(parent, name)?;
    node::set_opaque(dir.as_fd())?;
    Ok(dir)
}

/// Most files come whole in what is at hand: one write, and one pass of the checksum.
fn write_content(
    file: &mut std::fs::File,
    path: &[u8],
    reader: &mut TarReader<impl BufRead>,
) -> Result<Body, Error> {
    let fail = write_error("write", path);
    let mut sum: Option<Sum> = None;
    let mut size = 0_u64;
    loop {
        let last = reader.left();
        let piece = reader.content()?;
        let (count, whole) = (piece.len(), piece.len() as u64 == last);
        file.write_all(piece).map_err(&fail)?;
        size += count as u64;
        let checksum = match (&mut sum, whole) {
            (None, true) => Some(Sum::of(piece)),
            (sum, whole) => {
                let sum = sum.get_or_insert_with(Sum::new);
                sum.update(piece);
                whole.then(|| sum.finish())
            }
        };
        reader.consume(count);
        if let Some(checksum) = checksum {
            return Ok(Body::File { size, checksum });
        }
    }
}

fn make_special(place: &Place, name: &[u8], entry: &Entry, meta: &Meta) -> io::Result<Body> {
    let dir = place.dir.as_fd();
    let make = |kind, device| rustix::fs::mknodat(dir, name, kind, Mode::empty(), device);
    let (kind, body) = match entry.kind {
        Kind::Symlink => {
            rustix::fs::symlinkat(entry.link.as_slice(), dir, name)?;
            (FileType::Symlink, Body::Symlink(entry.link.clone()))
        }
        Kind::CharDevice { major, minor } => {
            let device = rustix::fs::makedev(major, minor);
            make(FileType::CharacterDevice, device)?;
            (FileType::CharacterDevice, Body::Char(device))
        }
        Kind::BlockDevice { major, minor } => {
            let device = rustix::fs::makedev(major, minor);
            make(FileType::BlockDevice, device)?;
            (FileType::BlockDevice, Body::Block(device))
        }
        _ => {
            make(FileType::Fifo, 0)?;
            (FileType::Fifo, Body::Fifo)
        }
    };
    node::set_meta_at(dir, name, meta, kind)?;
    Ok(body)
}
