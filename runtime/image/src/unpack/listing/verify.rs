//! Comparing a directory with its listing.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};

use super::{Body, Listing, Marks, Sum};
use crate::unpack::facts::join;
use crate::unpack::node::{self, Meta, MetaOf, file_type};

const BUFFER: usize = 256 << 10;
/// Security modules label files by themselves; a layer itself brings capabilities only.
const LABELS: &[u8] = b"security.";
const CAPABILITY: &[u8] = b"security.capability";

/// A path that is not as listed.
#[derive(Debug)]
pub(crate) struct Damage {
    /// Within the layer; the root is empty.
    pub(crate) path: Vec<u8>,
    /// What is not as listed, at least one.
    pub(crate) differs: Vec<Difference>,
}

/// What is not as listed.
#[derive(Debug)]
pub(crate) enum Difference {
    Missing,
    Surplus,
    Type,
    Mode,
    Owner,
    Time,
    Attributes,
    Size,
    Content,
    LinkTarget,
    Device,
    /// Two names of one file are two files.
    HardLink,
    Unreadable(io::Error),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Surplus => "surplus",
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time of modification",
            Self::Attributes => "extended attributes",
            Self::Size => "size",
            Self::Content => "content",
            Self::LinkTarget => "link target",
            Self::Device => "device number",
            Self::HardLink => "hard link",
            Self::Unreadable(error) => return write!(f, "unreadable: {error}"),
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let differs: Vec<_> = self.differs.iter().map(Difference::to_string).collect();
        write!(f, "/{}: {}", String::from_utf8_lossy(&self.path), differs.join(", "))
    }
}

impl Listing {
    /// Compares the tree at `fs` with the listing, node by node and byte by byte, and returns all
    /// that differs; nothing for a tree that is whole. No link is followed. `go_on` hears of the
    /// bytes read since it was last asked, may wait to keep to a budget, and ends the comparison
    /// by `false`: an error of kind `Interrupted`. What cannot be read is damage, no error.
    pub(crate) fn verify(
        &self,
        fs: BorrowedFd<'_>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Vec<Damage>> {
        let mut walk = Walk {
            listing: self,
            go_on,
            inodes: vec![None; self.nodes.len()],
            seen: BTreeSet::new(),
            damage: Vec::new(),
            waiting: vec![Waiting { dir: Rc::new(fs.try_clone_to_owned()?), path: Vec::new() }],
            buffer: vec![0; BUFFER],
        };
        while let Some(next) = walk.waiting.pop() {
            walk.visit(&next)?;
        }
        Ok(walk.finish())
    }
}

struct Waiting {
    /// The directory it lies in; for the root, the root itself.
    dir: Rc<OwnedFd>,
    path: Vec<u8>,
}

impl Waiting {
    fn name(&self) -> &[u8] {
        match self.path.rsplit(|&b| b == b'/').next() {
            None | Some([]) => b".",
            Some(name) => name,
        }
    }
}

struct Walk<'a> {
    listing: &'a Listing,
    go_on: &'a mut dyn FnMut(u64) -> bool,
    /// Where each node was found first.
    inodes: Vec<Option<(u64, u64)>>,
    seen: BTreeSet<&'a [u8]>,
    damage: Vec<Damage>,
    waiting: Vec<Waiting>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn visit(&mut self, at: &Waiting) -> io::Result<()> {
        self.pace(0)?;
        let Some((path, &index)) = self.listing.paths.get_key_value(&at.path) else {
            self.report(&at.path, vec![Difference::Surplus]);
            return Ok(());
        };
        self.seen.insert(path);
        let mut differs = Vec::new();
        match self.compare(at, index, &mut differs) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => differs.push(Difference::Unreadable(error)),
            Ok(()) => {}
        }
        self.report(path, differs);
        Ok(())
    }

    fn pace(&mut self, bytes: u64) -> io::Result<()> {
        if (self.go_on)(bytes) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
    }

    fn report(&mut self, path: &[u8], differs: Vec<Difference>) {
        if !differs.is_empty() {
            self.damage.push(Damage { path: path.to_vec(), differs });
        }
    }

    fn compare(
        &mut self,
        at: &Waiting,
        index: usize,
        differs: &mut Vec<Difference>,
    ) -> io::Result<()> {
        let Some((meta, body)) = self.listing.nodes.get(index) else { return Ok(()) };
        let fd = node::open_node(at.dir.as_fd(), at.name())?;
        let found = node::read_meta(fd.as_fd())?;
        if !same_type(body, &found.stat) {
            differs.push(Difference::Type);
            return Ok(());
        }
        // A whiteout is nothing but its type.
        if *body == Body::Char(0) {
            return Ok(());
        }
        compare_meta(meta, body, &found, differs);
        if self.is_known(index, &found.stat, differs) {
            return Ok(());
        }
        match body {
            Body::Directory(marks) => self.directory(at, *marks, differs),
            Body::File { size, checksum } => {
                self.file(at, (*size, *checksum), &found.stat, differs)
            }
            Body::Symlink(target) => {
                let there = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                differ(differs, there.as_bytes() != target, Difference::LinkTarget);
                Ok(())
            }
            Body::Char(device) | Body::Block(device) => {
                differ(differs, found.stat.st_rdev != *device, Difference::Device);
                Ok(())
            }
            Body::Fifo => Ok(()),
        }
    }

    /// Whether this is a further name of a file that was compared already.
    fn is_known(&mut self, index: usize, stat: &Stat, differs: &mut Vec<Difference>) -> bool {
        let here = (stat.st_dev, stat.st_ino);
        match self.inodes.get_mut(index) {
            Some(Some(first)) if *first == here => return true,
            Some(Some(_)) => differs.push(Difference::HardLink),
            Some(slot) => *slot = Some(here),
            None => {}
        }
        false
    }

    fn directory(
        &mut self,
        at: &Waiting,
        marks: Marks,
        differs: &mut Vec<Difference>,
    ) -> io::Result<()> {
        let dir = Rc::new(node::open_dir(at.dir.as_fd(), at.name())?);
        let found = node::marks(dir.as_fd())?;
        differ(differs, found != marks, Difference::Attributes);
        let mut names = Vec::new();
        for entry in Dir::read_from(&*dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        for name in names {
            self.waiting.push(Waiting { dir: dir.clone(), path: join(&at.path, &name) });
        }
        Ok(())
    }

    fn file(
        &mut self,
        at: &Waiting,
        (size, checksum): (u64, u64),
        stat: &Stat,
        differs: &mut Vec<Difference>,
    ) -> io::Result<()> {
        if u64::try_from(stat.st_size).ok() != Some(size) {
            differs.push(Difference::Size);
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file: std::fs::File =
            rustix::fs::openat(&at.dir, at.name(), flags, Mode::empty())?.into();
        let mut sum = Sum::new();
        loop {
            let count = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            sum.update(self.buffer.get(..count).unwrap_or_default());
            self.pace(count as u64)?;
        }
        differ(differs, sum.finish() != checksum, Difference::Content);
        Ok(())
    }

    fn finish(mut self) -> Vec<Damage> {
        let missing = self.listing.paths.keys().filter(|path| !self.seen.contains(path.as_slice()));
        let missing =
            missing.map(|path| Damage { path: path.clone(), differs: vec![Difference::Missing] });
        self.damage.extend(missing);
        self.damage.sort_by(|a, b| a.path.cmp(&b.path));
        self.damage
    }
}

fn differ(differs: &mut Vec<Difference>, is_so: bool, what: Difference) {
    if is_so {
        differs.push(what);
    }
}

fn same_type(body: &Body, stat: &Stat) -> bool {
    let wanted = match body {
        Body::Directory(_) => FileType::Directory,
        Body::File { .. } => FileType::RegularFile,
        Body::Symlink(_) => FileType::Symlink,
        Body::Char(0) => return node::is_whiteout(stat),
        Body::Char(_) => FileType::CharacterDevice,
        Body::Block(_) => FileType::BlockDevice,
        Body::Fifo => FileType::Fifo,
    };
    file_type(stat) == wanted
}

fn compare_meta(wanted: &Meta, body: &Body, found: &MetaOf, differs: &mut Vec<Difference>) {
    let there = &found.meta;
    // Symlinks have no mode of their own.
    let mode = matches!(body, Body::Symlink(_)) || there.mode == wanted.mode;
    differ(differs, !mode, Difference::Mode);
    differ(differs, (there.uid, there.gid) != (wanted.uid, wanted.gid), Difference::Owner);
    differ(differs, there.mtime != wanted.mtime, Difference::Time);
    let same = same_xattrs(&wanted.xattrs, &there.xattrs);
    differ(differs, !same, Difference::Attributes);
}

fn same_xattrs(wanted: &[(Vec<u8>, Vec<u8>)], there: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let label = |name: &[u8]| name.starts_with(LABELS) && name != CAPABILITY;
    wanted.iter().all(|pair| there.contains(pair))
        && there.iter().all(|pair| label(&pair.0) || wanted.contains(pair))
}
