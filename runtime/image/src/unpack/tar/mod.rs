//! Reading tar: ustar, GNU long names, PAX headers; one entry at a time from a stream.
//!
//! Formats: pax(1) of POSIX.1-2017 and the GNU tar manual's "Basic Tar Format". All lengths are
//! bounded; nothing here touches the file system.

mod header;
mod pax;

use std::io::{BufRead, Read};

use header::{
    BLOCK, checksum_matches, field, header_path, kind, signed, terminated, type_flag, unsigned,
};
use pax::Pax;

/// PAX data and GNU long names of one entry.
const MAX_META: u64 = 1 << 20;
const MAX_PATH: usize = 4096;

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream itself failed; the source says how.
    #[error("read the tar stream")]
    Io(#[from] std::io::Error),
    /// A header makes no sense.
    #[error("tar entry {name:?}: {reason}")]
    Entry {
        /// The entry's name, as far as known.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::unpack) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// One entry's header, PAX and GNU extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::unpack) struct Entry {
    pub(in crate::unpack) kind: Kind,
    /// As written: may be absolute, hold `..` or be empty.
    pub(in crate::unpack) path: Vec<u8>,
    /// The target of links.
    pub(in crate::unpack) link: Vec<u8>,
    pub(in crate::unpack) mode: u32,
    pub(in crate::unpack) uid: u32,
    pub(in crate::unpack) gid: u32,
    pub(in crate::unpack) mtime: (i64, u32),
    /// Bytes of content that follow; zero for all but files.
    pub(in crate::unpack) size: u64,
    pub(in crate::unpack) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stream of entries. Content must be read (or is skipped) before the next entry.
pub(in crate::unpack) struct TarReader<R> {
    inner: R,
    global: Pax,
    left: u64,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(in crate::unpack) fn new(inner: R) -> Self {
        Self { inner, global: Pax::default(), left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end marker or a clean end of the stream.
    pub(in crate::unpack) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        let mut meta = Meta::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let name = lossy(field(&header, 0, 100));
            let bad = |reason| TarError::Entry { name: name.clone(), reason };
            if !checksum_matches(&header) {
                return Err(bad("has a wrong header checksum"));
            }
            let size =
                unsigned(field(&header, 124, 12)).ok_or_else(|| bad("has a malformed size"))?;
            match type_flag(&header) {
                b'g' => {
                    let data = self.metadata(&name, size)?;
                    self.global.read(&data).map_err(bad)?;
                }
                b'x' => meta.pax.read(&self.metadata(&name, size)?).map_err(bad)?,
                b'L' => meta.long_name = Some(trimmed(self.metadata(&name, size)?)),
                b'K' => meta.long_link = Some(trimmed(self.metadata(&name, size)?)),
                _ => return self.entry(&header, size, meta).map(Some),
            }
        }
    }

    /// Up to as much of the entry's content as is at hand; empty at its end.
    pub(in crate::unpack) fn content(&mut self) -> Result<&[u8], TarError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.inner.fill_buf()?;
        if available.is_empty() {
            return Err(truncated().into());
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(available.len());
        Ok(available.get(..wanted).unwrap_or_default())
    }

    /// Bytes of the entry's content that are still to come.
    pub(in crate::unpack) fn left(&self) -> u64 {
        self.left
    }

    /// Takes `count` bytes off what [`content`](Self::content) showed.
    pub(in crate::unpack) fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    /// Reads on to the end of the stream, past the end marker and any padding.
    pub(in crate::unpack) fn drain(&mut self) -> Result<(), TarError> {
        self.skip(u64::MAX).map(|_| ())
    }

    /// Where the stream is; between [`next`](Self::next) and the first read of the content,
    /// at that content.
    pub(in crate::unpack) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Where the stream came from.
    pub(in crate::unpack) fn into_inner(self) -> R {
        self.inner
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let wanted = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        if self.skip(wanted)? == wanted { Ok(()) } else { Err(truncated().into()) }
    }

    fn skip(&mut self, wanted: u64) -> Result<u64, TarError> {
        let mut done = 0_u64;
        while done < wanted {
            let available = self.inner.fill_buf()?.len();
            if available == 0 {
                break;
            }
            let step = usize::try_from(wanted - done).unwrap_or(usize::MAX).min(available);
            self.inner.consume(step);
            done += step as u64;
        }
        Ok(done)
    }

    /// The next header block; `None` at two zero blocks or the stream's end. A single zero block
    /// is passed over, as GNU tar does.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        for _ in 0..2 {
            let mut block = [0_u8; BLOCK];
            if self.inner.fill_buf()?.is_empty() {
                return Ok(None);
            }
            self.inner.read_exact(&mut block)?;
            if block.iter().any(|&b| b != 0) {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn metadata(&mut self, name: &str, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_META {
            let reason = "has extended headers longer than 1 MiB";
            return Err(TarError::Entry { name: name.to_owned(), reason });
        }
        let mut data = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut data)?;
        let padding = padding(size);
        if data.len() as u64 != size || self.skip(padding)? != padding {
            return Err(truncated().into());
        }
        Ok(data)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, meta: Meta) -> Result<Entry, TarError> {
        let pax = meta.pax.over(&self.global);
        let path = pax.path.or(meta.long_name).unwrap_or_else(|| header_path(header));
        let link = pax.link.or(meta.long_link);
        let link = link.unwrap_or_else(|| terminated(field(header, 157, 100)).to_vec());
        let shown = lossy(&path);
        let bad = |reason| TarError::Entry { name: shown.clone(), reason };
        if pax.sparse {
            return Err(bad("is a sparse file, which Berth does not unpack"));
        }
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(bad("has a name longer than 4096 bytes"));
        }
        let kind = kind(header, &path).map_err(bad)?;
        let number = |at, len, what| unsigned(field(header, at, len)).ok_or_else(|| bad(what));
        let size = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        let entry = Entry {
            kind,
            mode: u32::try_from(number(100, 8, "has a malformed mode")? & 0o7777).unwrap_or(0),
            uid: id(pax.uid, number(108, 8, "has a malformed uid")?).map_err(bad)?,
            gid: id(pax.gid, number(116, 8, "has a malformed gid")?).map_err(bad)?,
            mtime: pax.mtime.unwrap_or_else(|| (signed(field(header, 136, 12)).unwrap_or(0), 0)),
            size,
            xattrs: pax.xattrs,
            path,
            link,
        };
        self.left = size;
        self.padding = padding(size);
        Ok(entry)
    }
}

#[derive(Default)]
struct Meta {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

fn id(pax: Option<u64>, header: u64) -> Result<u32, &'static str> {
    u32::try_from(pax.unwrap_or(header)).map_err(|_| "has an owner beyond 32 bits")
}

fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = terminated(&bytes).len();
    bytes.truncate(length);
    bytes
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(terminated(bytes)).chars().take(MAX_PATH).collect()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn truncated() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the tar stream ends within an entry")
}
