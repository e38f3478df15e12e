//! Inflating: the format is told by the first bytes, as containerd does, since media types lie.

mod gzip;

use std::io::{self, BufRead, Read};

use gzip::Gzip;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// zstd's frames that carry no data begin with 0x184D2A5? in little endian.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// 2^27 = 128 MiB of history: what `zstd --long` writes. More would be the blob's choice of our
/// memory.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// A compressed stream as what is within.
pub(super) enum Inflater<'a, R: BufRead> {
    Gzip(Box<Gzip<Joined<R>>>),
    Zstd(zstd::stream::read::Decoder<'a, Joined<R>>),
    Plain(Joined<R>),
}

impl<R: BufRead> Inflater<'_, R> {
    /// Looks at the stream's beginning to know its format.
    pub(super) fn open(mut raw: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(4);
        raw.by_ref().take(4).read_to_end(&mut head)?;
        let format = format(&head);
        let raw = Joined { head, at: 0, raw };
        Ok(match format {
            "gzip" => Self::Gzip(Box::new(Gzip::new(raw))),
            "zstd" => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(raw)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
            _ => Self::Plain(raw),
        })
    }

    /// gzip, zstd or none.
    pub(super) fn format(&self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Zstd(_) => "zstd",
            Self::Plain(_) => "none",
        }
    }

    /// What was compressed, as far as it has been read.
    pub(super) fn raw(&self) -> &R {
        match self {
            Self::Gzip(gzip) => &gzip.raw().raw,
            Self::Zstd(decoder) => &decoder.get_ref().raw,
            Self::Plain(joined) => &joined.raw,
        }
    }

    /// Fills the buffer as far as the stream goes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl<R: BufRead> Read for Inflater<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Plain(raw) => raw.read(buffer),
        }
    }
}

/// The bytes that were looked at, then the rest, which is not copied.
pub(super) struct Joined<R> {
    head: Vec<u8>,
    at: usize,
    raw: R,
}

impl<R: BufRead> Read for Joined<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = buffer.len().min(available.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), available.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Joined<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.head.get(self.at..) {
            Some(rest) if !rest.is_empty() => Ok(rest),
            _ => self.raw.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        if self.at < self.head.len() {
            self.at += count;
        } else {
            self.raw.consume(count);
        }
    }
}

/// What the first bytes say.
pub(super) fn format(head: &[u8]) -> &'static str {
    let skippable = head.first().is_some_and(|b| b & 0xf0 == 0x50)
        && head.get(1..).is_some_and(|rest| rest.starts_with(ZSTD_SKIPPABLE));
    if head.starts_with(GZIP_MAGIC) {
        "gzip"
    } else if head.starts_with(ZSTD_MAGIC) || skippable {
        "zstd"
    } else {
        "none"
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use super::*;

    fn inflate(bytes: &[u8]) -> io::Result<(&'static str, Vec<u8>)> {
        let whole = collect(bytes)?;
        // The same in pieces as small as they come.
        for capacity in [1, 3, 7] {
            assert_eq!(collect(BufReader::with_capacity(capacity, bytes))?, whole, "{capacity}");
        }
        Ok(whole)
    }

    fn collect(raw: impl BufRead) -> io::Result<(&'static str, Vec<u8>)> {
        let mut out = Vec::new();
        let mut reader = Inflater::open(raw)?;
        reader.read_to_end(&mut out)?;
        Ok((reader.format(), out))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    #[test]
    fn each_format_is_told_by_its_magic() {
        let skippable = [0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        let (one, two) = (&b"one "[..], &b"two"[..]);
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("gzip", [gzip(one), gzip(two)].concat()),
            ("gzip", [gzip(one), gzip(b""), gzip(two)].concat()),
            ("zstd", [frame(one), frame(two)].concat()),
            ("zstd", [&skippable[..], &frame(one), &skippable, &frame(two), &skippable].concat()),
            ("none", b"one two".to_vec()),
        ];
        for (format, bytes) in cases {
            assert_eq!(inflate(&bytes).unwrap(), (format, b"one two".to_vec()), "{format}");
        }
        for plain in [&b""[..], b"x", b"plain"] {
            assert_eq!(inflate(plain).unwrap(), ("none", plain.to_vec()));
        }
    }

    #[test]
    fn a_gzip_header_may_have_all_that_rfc_1952_allows() {
        let whole = gzip(b"content");
        // FHCRC, FEXTRA, FNAME and FCOMMENT.
        let mut header = whole[..10].to_vec();
        header[3] = 0b11110;
        header.extend_from_slice(&[3, 0, 9, 9, 9]);
        header.extend_from_slice(b"name\0comment\0");
        header.extend_from_slice(&[0, 0]);
        let rich = [&header, &whole[10..]].concat();
        assert_eq!(inflate(&rich).unwrap().1, b"content");
        for cut in 2..rich.len() {
            assert!(inflate(&rich[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn padding_of_zeros_is_passed_over_after_gzip() {
        let padded = [gzip(b"one "), gzip(b"two"), vec![0; 1000]].concat();
        assert_eq!(inflate(&padded).unwrap().1, b"one two");
    }

    #[test]
    fn cut_changed_and_trailing_bytes_are_errors() {
        let whole = gzip(b"some content that compresses to something, something");
        for cut in 2..whole.len() {
            assert!(inflate(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let flip = |at: usize| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            inflate(&flipped)
        };
        // The method, reserved flags, the checksum, the length.
        for at in [2, whole.len() - 8, whole.len() - 1] {
            assert!(flip(at).is_err(), "flipped at {at}");
        }
        let zeros = [0; 9];
        for trailing in [&b"trailing"[..], &[&zeros[..], b"x"].concat(), b"\x1f", b"\x1f\x8c"] {
            assert!(inflate(&[&whole[..], trailing].concat()).is_err(), "{trailing:?}");
        }
        let frame = frame(b"some content");
        for cut in 5..frame.len() {
            assert!(inflate(&frame[..cut]).is_err(), "cut at {cut}");
        }
        assert!(inflate(&[&frame[..], b"trailing"].concat()).is_err());
    }
}
