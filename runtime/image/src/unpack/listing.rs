//! What an unpacked layer consists of, written while it is unpacked: by it a layer whose data may
//! not have reached the disk is checked.
//!
//! The file is a journal: a later record of a path takes the place of an earlier one, so that
//! nothing is kept in memory while a layer streams by. All numbers are LEB128 varints but the
//! checksums, which are eight bytes, little-endian:
//!
//! ```text
//! file   = "berthls" VERSION record* end
//! record = KIND shared suffix body     path: what it shares with the last, then the rest of it
//! node   = mode uid gid seconds(zigzag) nanos xattrs (name value)*   then, of its kind:
//!            file: size checksum   symlink: target   device: number
//! link   = path of the file         mark = 1 opaque, 2 origin (of a directory that exists)
//! end    = END count checksum       of all records, and of all bytes before the checksum
//! ```
//!
//! Checksums are XXH3 (64 bits). They tell damage from health; they are no proof against malice.

mod read;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use std::hash::Hasher as _;

pub(crate) use read::Listing;
pub(crate) use verify::Damage;
pub(crate) use write::ListingWriter;

/// The file's name, beside a layer's `fs`.
pub(crate) const LISTING: &str = "listing";

const MAGIC: &[u8; 8] = b"berthls\x01";
const CHECKSUM: usize = 8;

/// What a record is about.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const FILE: u8 = 1;
    pub(super) const DIRECTORY: u8 = 2;
    pub(super) const SYMLINK: u8 = 3;
    pub(super) const CHAR: u8 = 4;
    pub(super) const BLOCK: u8 = 5;
    pub(super) const FIFO: u8 = 6;
    pub(super) const LINK: u8 = 7;
    pub(super) const MARK: u8 = 8;
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Directory(Marks),
    File { size: u64, checksum: u64 },
    Symlink(Vec<u8>),
    Char(u64),
    Block(u64),
    Fifo,
}

/// overlayfs's attributes of a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) opaque: bool,
    pub(crate) origin: bool,
}

impl Marks {
    pub(crate) const OPAQUE: Self = Self { opaque: true, origin: false };
    pub(crate) const ORIGIN: Self = Self { opaque: false, origin: true };
}

/// The content checksum of a file.
pub(crate) struct Sum(twox_hash::XxHash3_64);

impl Sum {
    pub(crate) fn new() -> Self {
        Self(twox_hash::XxHash3_64::new())
    }

    /// Of bytes that are at hand as a whole; faster than in pieces.
    pub(crate) fn of(bytes: &[u8]) -> u64 {
        twox_hash::XxHash3_64::oneshot(bytes)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.finish()
    }
}
