//! Reading a listing back.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;

use super::{Body, CHECKSUM, MAGIC, Marks, Sum, kind};
use crate::unpack::facts::is_below;
use crate::unpack::node::Meta;

/// The kernel's PATH_MAX and XATTR_SIZE_MAX bound what can have been written.
const MAX_BYTES: u64 = 64 << 10;

/// Why a file is no listing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidListing {
    #[error("read the listing")]
    Io(#[from] io::Error),
    #[error("the listing is damaged: {0}")]
    Damaged(&'static str),
}

use InvalidListing::Damaged;

/// All paths of a layer and what is there.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Each path's place in `nodes`; hard links share one.
    pub(super) paths: BTreeMap<Vec<u8>, usize>,
    pub(super) nodes: Vec<(Meta, Body)>,
    checksum: u64,
}

impl Listing {
    /// Reads and checks the listing at `path`. Blocks.
    pub(crate) fn read(path: &Path) -> Result<Self, InvalidListing> {
        Self::parse(&std::fs::read(path)?)
    }

    /// Takes a listing's bytes, checksum and all.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InvalidListing> {
        let at = bytes.len().checked_sub(CHECKSUM).ok_or(Damaged("it is cut short"))?;
        let (content, wanted) = bytes.split_at(at);
        let checksum = Sum::of(content);
        if wanted != checksum.to_le_bytes() {
            return Err(Damaged("it does not match its checksum"));
        }
        let mut listing = Self::records(content)?;
        listing.checksum = checksum;
        Ok(listing)
    }

    /// Takes all but the checksum, which is not looked at.
    pub(crate) fn records(content: &[u8]) -> Result<Self, InvalidListing> {
        let rest = content.strip_prefix(MAGIC).ok_or(Damaged("another form or version"))?;
        let mut reader = Reader { rest, path: Vec::new() };
        let mut listing = Self::default();
        let mut count = 0_u64;
        loop {
            match reader.byte()? {
                kind::END => break,
                kind => listing.replay(kind, &mut reader)?,
            }
            count += 1;
        }
        if reader.number()? != count || !reader.rest.is_empty() {
            return Err(Damaged("its records are not as many as it says"));
        }
        if !listing.paths.contains_key(&b""[..]) {
            return Err(Damaged("it has no root"));
        }
        Ok(listing)
    }

    fn replay(&mut self, kind: u8, reader: &mut Reader<'_>) -> Result<(), InvalidListing> {
        reader.next_path()?;
        let path = reader.path.clone();
        match kind {
            kind::LINK => {
                let target = reader.bytes()?;
                let node = *self.paths.get(target).ok_or(Damaged("a link to nothing"))?;
                self.remove_below(&path);
                self.paths.insert(path, node);
            }
            kind::MARK => self.mark(path, reader.number()?),
            kind => {
                let meta = reader.meta()?;
                let body = reader.body(kind)?;
                self.put(path, meta, body);
            }
        }
        Ok(())
    }

    fn put(&mut self, path: Vec<u8>, meta: Meta, mut body: Body) {
        match (self.directory(&path), &mut body) {
            (Some((known, Body::Directory(had))), Body::Directory(marks)) => {
                *known = meta;
                *marks = *had;
            }
            _ => {
                self.remove_below(&path);
                self.paths.insert(path, self.nodes.len());
                self.nodes.push((meta, body));
            }
        }
    }

    fn mark(&mut self, path: Vec<u8>, bits: u64) {
        let (opaque, origin) = (bits & 1 != 0, bits & 2 != 0);
        if let Some((_, Body::Directory(marks))) = self.directory(&path) {
            marks.opaque |= opaque;
            marks.origin |= origin;
            return;
        }
        // It took the place of something else; its attributes follow.
        self.put(path, Meta::default(), Body::Directory(Marks { opaque, origin }));
    }

    fn directory(&mut self, path: &[u8]) -> Option<(&mut Meta, &mut Body)> {
        let (meta, body) = self.nodes.get_mut(*self.paths.get(path)?)?;
        matches!(body, Body::Directory(_)).then_some((meta, body))
    }

    fn remove_below(&mut self, path: &[u8]) {
        let after = self.paths.range::<[u8], _>((Bound::Excluded(path), Bound::Unbounded));
        // Between a path and what lies below it may sort others that begin alike: `a-b`.
        let within = after.take_while(|(known, _)| known.starts_with(path));
        let gone: Vec<_> = within.map(|(known, _)| known).filter(|k| is_below(k, path)).collect();
        let gone: Vec<Vec<u8>> = gone.into_iter().cloned().collect();
        for path in gone {
            self.paths.remove(&path);
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    path: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, InvalidListing> {
        let (&byte, rest) = self.rest.split_first().ok_or(Damaged("it is cut short"))?;
        self.rest = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, InvalidListing> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged("a number beyond 64 bits"))
    }

    fn small(&mut self) -> Result<u32, InvalidListing> {
        u32::try_from(self.number()?).map_err(|_| Damaged("a number beyond 32 bits"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], InvalidListing> {
        let count = usize::try_from(count).map_err(|_| Damaged("a length beyond memory"))?;
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Damaged("it is cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], InvalidListing> {
        let count = self.number()?;
        if count > MAX_BYTES { Err(Damaged("a text beyond 64 KiB")) } else { self.take(count) }
    }

    fn next_path(&mut self) -> Result<(), InvalidListing> {
        let shared = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if shared > self.path.len() {
            return Err(Damaged("a path shares more than its forerunner has"));
        }
        self.path.truncate(shared);
        let rest = self.bytes()?;
        self.path.extend_from_slice(rest);
        if self.path.len() as u64 > MAX_BYTES {
            return Err(Damaged("a path beyond 64 KiB"));
        }
        Ok(())
    }

    fn meta(&mut self) -> Result<Meta, InvalidListing> {
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let seconds = self.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
        let mtime = (seconds, self.small()?);
        let mut xattrs = Vec::new();
        for _ in 0..self.number()? {
            xattrs.push((self.bytes()?.to_vec(), self.bytes()?.to_vec()));
        }
        Ok(Meta { uid, gid, mode, mtime, xattrs })
    }

    fn body(&mut self, kind: u8) -> Result<Body, InvalidListing> {
        Ok(match kind {
            kind::FILE => Body::File { size: self.number()?, checksum: self.checksum()? },
            kind::DIRECTORY => Body::Directory(Marks::default()),
            kind::SYMLINK => Body::Symlink(self.bytes()?.to_vec()),
            kind::CHAR => Body::Char(self.number()?),
            kind::BLOCK => Body::Block(self.number()?),
            kind::FIFO => Body::Fifo,
            _ => return Err(Damaged("a record of unknown kind")),
        })
    }

    fn checksum(&mut self) -> Result<u64, InvalidListing> {
        let bytes = self.take(CHECKSUM as u64)?;
        let bytes = bytes.try_into().map_err(|_| Damaged("it is cut short"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}
