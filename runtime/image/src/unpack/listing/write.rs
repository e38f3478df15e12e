//! Writing a listing, record by record.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::{Body, MAGIC, Marks, Sum, kind};
use crate::unpack::node::Meta;

const BUFFER: usize = 64 << 10;

/// A listing being written. Dropped before [`finish`](Self::finish) it is no listing.
pub(crate) struct ListingWriter {
    file: File,
    buffer: Vec<u8>,
    sum: Sum,
    last: Vec<u8>,
    count: u64,
}

impl ListingWriter {
    /// Begins a listing at `path`, of a layer that has nothing yet but its root.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut writer = Self {
            file: File::create_new(path)?,
            buffer: Vec::with_capacity(BUFFER),
            sum: Sum::new(),
            last: Vec::new(),
            count: 0,
        };
        writer.buffer.extend_from_slice(MAGIC);
        let root = Meta { mode: 0o755, ..Meta::default() };
        writer.node(b"", &root, &Body::Directory(Marks::default()))?;
        Ok(writer)
    }

    /// There is a node at `path` now. What was there before is gone, but for a directory that
    /// gets new attributes: what lies in it and its marks stay.
    pub(crate) fn node(&mut self, path: &[u8], meta: &Meta, body: &Body) -> io::Result<()> {
        self.begin(kind_of(body), path)?;
        self.number(meta.mode.into());
        self.number(meta.uid.into());
        self.number(meta.gid.into());
        self.number(zigzag(meta.mtime.0));
        self.number(meta.mtime.1.into());
        self.number(meta.xattrs.len() as u64);
        for (name, value) in &meta.xattrs {
            self.bytes(name);
            self.bytes(value);
        }
        match body {
            Body::File { size, checksum } => {
                self.number(*size);
                self.buffer.extend_from_slice(&checksum.to_le_bytes());
            }
            Body::Symlink(target) => self.bytes(target),
            Body::Char(device) | Body::Block(device) => self.number(*device),
            Body::Directory(_) | Body::Fifo => {}
        }
        match body {
            Body::Directory(marks) if *marks != Marks::default() => self.mark(path, *marks),
            _ => Ok(()),
        }
    }

    /// `path` is a name of the file that is at `target` now.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.begin(kind::LINK, path)?;
        self.bytes(target);
        Ok(())
    }

    /// The directory at `path` gets these marks, and keeps those that it has.
    pub(crate) fn mark(&mut self, path: &[u8], marks: Marks) -> io::Result<()> {
        self.begin(kind::MARK, path)?;
        self.number(u64::from(marks.opaque) | u64::from(marks.origin) << 1);
        Ok(())
    }

    /// Ends the listing and returns its checksum, which stands at its end, too. Nothing is synced.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.buffer.push(kind::END);
        self.number(self.count);
        self.sum.update(&self.buffer);
        let checksum = self.sum.finish();
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        self.file.write_all(&self.buffer)?;
        Ok(checksum)
    }

    fn begin(&mut self, kind: u8, path: &[u8]) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.sum.update(&self.buffer);
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        self.count += 1;
        let shared = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        self.buffer.push(kind);
        self.number(shared as u64);
        self.bytes(path.get(shared..).unwrap_or_default());
        self.last.truncate(shared);
        self.last.extend_from_slice(path.get(shared..).unwrap_or_default());
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                self.buffer.push(low & 0x7f);
                return;
            }
            self.buffer.push(low | 0x80);
        }
    }
}

fn kind_of(body: &Body) -> u8 {
    match body {
        Body::Directory(_) => kind::DIRECTORY,
        Body::File { .. } => kind::FILE,
        Body::Symlink(_) => kind::SYMLINK,
        Body::Char(_) => kind::CHAR,
        Body::Block(_) => kind::BLOCK,
        Body::Fifo => kind::FIFO,
    }
}

/// Small numbers of either sign as small numbers.
fn zigzag(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}
