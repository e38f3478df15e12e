//! Reading tar: ustar, GNU long names, PAX headers; one entry at a time from a stream.
//!
//! Formats: pax(1) of POSIX.1-2017 and the GNU tar manual's "Basic Tar Format". All lengths are
//! bounded; nothing here touches the file system.

use std::io::{BufRead, Read};

const BLOCK: usize = 512;
/// PAX data and GNU long names of one entry.
const MAX_META: u64 = 1 << 20;
const MAX_PATH: usize = 4096;
/// The kernel's XATTR_SIZE_MAX.
const MAX_XATTR: usize = 64 << 10;

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
pub(super) enum Kind {
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
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// As written: may be absolute, hold `..` or be empty.
    pub(super) path: Vec<u8>,
    /// The target of links.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    /// Bytes of content that follow; zero for all but files.
    pub(super) size: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stream of entries. Content must be read (or is skipped) before the next entry.
pub(super) struct TarReader<R> {
    inner: R,
    global: Pax,
    left: u64,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, global: Pax::default(), left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end marker or a clean end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
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
    pub(super) fn content(&mut self) -> Result<&[u8], TarError> {
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

    /// Takes `count` bytes off what [`content`](Self::content) showed.
    pub(super) fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    /// Reads on to the end of the stream, past the end marker and any padding.
    pub(super) fn drain(&mut self) -> Result<(), TarError> {
        self.skip(u64::MAX).map(|_| ())
    }

    /// Where the stream is; between [`next`](Self::next) and the first read of the content,
    /// at that content.
    pub(super) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Where the stream came from.
    pub(super) fn into_inner(self) -> R {
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

/// What PAX records say of an entry, or of all that follow.
#[derive(Debug, Default, Clone)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl Pax {
    /// Takes records of the form `LENGTH KEY=VALUE\n`.
    fn read(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "has a malformed PAX header";
        while !data.is_empty() && data.iter().any(|&b| b != 0) {
            let space = data.iter().position(|&b| b == b' ').ok_or(MALFORMED)?;
            let digits = data.get(..space).and_then(|d| std::str::from_utf8(d).ok());
            let length: usize = digits.and_then(|d| d.parse().ok()).ok_or(MALFORMED)?;
            let record = data.get(space + 1..length).ok_or(MALFORMED)?;
            let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or(MALFORMED)?;
            let (key, value) = record.split_at(equals);
            self.set(key, value.get(1..).unwrap_or_default())?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let text = || std::str::from_utf8(value).map_err(|_| "has a malformed PAX value");
        let number = || text()?.parse::<u64>().map_err(|_| "has a malformed PAX number");
        // An empty value takes the record back.
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| value.to_vec()),
            b"linkpath" => self.link = present.then(|| value.to_vec()),
            b"size" => self.size = present.then(number).transpose()?,
            b"uid" => self.uid = present.then(number).transpose()?,
            b"gid" => self.gid = present.then(number).transpose()?,
            b"mtime" => self.mtime = if present { Some(pax_time(text()?)?) } else { None },
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err("has a malformed extended attribute name");
        }
        if value.len() > MAX_XATTR {
            return Err("has an extended attribute longer than 64 KiB");
        }
        self.xattrs.retain(|(known, _)| known != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// These records, and those of `global` where these say nothing.
    fn over(self, global: &Self) -> Self {
        let mut xattrs = global.xattrs.clone();
        xattrs.retain(|(name, _)| !self.xattrs.iter().any(|(own, _)| own == name));
        xattrs.extend(self.xattrs);
        Self {
            path: self.path.or_else(|| global.path.clone()),
            link: self.link.or_else(|| global.link.clone()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            xattrs,
            sparse: self.sparse || global.sparse,
        }
    }
}

/// Seconds with an optional fraction, possibly negative; nanoseconds count upwards.
fn pax_time(text: &str) -> Result<(i64, u32), &'static str> {
    const MALFORMED: &str = "has a malformed PAX time";
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| MALFORMED)?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(MALFORMED);
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| MALFORMED)?;
    if whole.starts_with('-') && nanos > 0 {
        return Ok((seconds.checked_sub(1).ok_or(MALFORMED)?, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

fn kind(header: &[u8; BLOCK], path: &[u8]) -> Result<Kind, &'static str> {
    let device = || -> Result<(u32, u32), &'static str> {
        let part = |at| unsigned(field(header, at, 8)).and_then(|n| u32::try_from(n).ok());
        part(329).zip(part(337)).ok_or("has a malformed device number")
    };
    match type_flag(header) {
        // Before ustar, directories were files whose name ends in a slash.
        b'\0' | b'0' if path.ends_with(b"/") => Ok(Kind::Directory),
        b'\0' | b'0' | b'7' => Ok(Kind::File),
        b'1' => Ok(Kind::HardLink),
        b'2' => Ok(Kind::Symlink),
        b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor }),
        b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor }),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        b'S' => Err("is a sparse file, which Berth does not unpack"),
        _ => Err("has an unknown type"),
    }
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = terminated(field(header, 0, 100));
    let prefix = terminated(field(header, 345, 155));
    // GNU's own magic ("ustar  ") uses the prefix field for other things.
    if field(header, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

fn id(pax: Option<u64>, header: u64) -> Result<u32, &'static str> {
    u32::try_from(pax.unwrap_or(header)).map_err(|_| "has an owner beyond 32 bits")
}

fn field(header: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    header.get(at..at + len).unwrap_or_default()
}

fn type_flag(header: &[u8; BLOCK]) -> u8 {
    header.get(156).copied().unwrap_or_default()
}

fn terminated(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = terminated(&bytes).len();
    bytes.truncate(length);
    bytes
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(terminated(bytes)).chars().take(MAX_PATH).collect()
}

/// Octal text, or GNU's base 256 when the first bit is set.
fn signed(bytes: &[u8]) -> Option<i64> {
    match bytes.split_first()? {
        (first, rest) if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let top =
                if negative { i64::from(first | 0x80) - 0x100 } else { i64::from(first & 0x7f) };
            rest.iter().try_fold(top, |n, &b| n.checked_mul(256)?.checked_add(i64::from(b)))
        }
        _ => {
            let text = std::str::from_utf8(terminated(bytes)).ok()?.trim_matches(' ');
            if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
        }
    }
}

fn unsigned(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|n| u64::try_from(n).ok())
}

/// The checksum counts its own field as spaces; old tars summed signed bytes.
fn checksum_matches(header: &[u8; BLOCK]) -> bool {
    let Some(wanted) = signed(field(header, 148, 8)) else { return false };
    let byte = |(at, &b): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { b };
    let plain: i64 = header.iter().enumerate().map(byte).map(i64::from).sum();
    let old: i64 = header.iter().enumerate().map(byte).map(|b| i64::from(b.cast_signed())).sum();
    wanted == plain || wanted == old
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn truncated() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the tar stream ends within an entry")
}
