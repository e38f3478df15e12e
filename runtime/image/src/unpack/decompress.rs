//! Inflating: the format is told by the first bytes, as containerd does, since media types lie.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// zstd's frames that carry no data begin with 0x184D2A5? in little endian.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
/// 2^27 = 128 MiB of history: what `zstd --long` writes. More would be the blob's choice of our
/// memory.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// A format and a reader of what is within.
pub(super) fn open<'a>(
    mut raw: impl BufRead + 'a,
) -> std::io::Result<(&'static str, Box<dyn Read + 'a>)> {
    let mut head = [0_u8; 4];
    let filled = fill(&mut raw, &mut head)?;
    let head = head.get(..filled).unwrap_or_default().to_vec();
    let format = format(&head);
    let raw = BufReader::new(std::io::Cursor::new(head).chain(raw));
    Ok(match format {
        "gzip" => (format, Box::new(MultiGzDecoder::new(raw))),
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            (format, Box::new(decoder))
        }
        _ => (format, Box::new(raw)),
    })
}

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

fn fill(raw: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match raw.read(rest)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn inflate(bytes: &[u8]) -> std::io::Result<(&'static str, Vec<u8>)> {
        let mut out = Vec::new();
        let (format, mut reader) = open(bytes)?;
        reader.read_to_end(&mut out)?;
        Ok((format, out))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_format_is_told_by_its_magic() {
        let two_members = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(inflate(&two_members).unwrap(), ("gzip", b"one two".to_vec()));
        let frames =
            [zstd::encode_all(&b"one "[..], 3).unwrap(), zstd::encode_all(&b"two"[..], 3).unwrap()];
        assert_eq!(inflate(&frames.concat()).unwrap(), ("zstd", b"one two".to_vec()));
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &frames[0][..]].concat();
        assert_eq!(inflate(&skippable).unwrap(), ("zstd", b"one ".to_vec()));
        for plain in [&b""[..], b"x", b"plain text"] {
            assert_eq!(inflate(plain).unwrap(), ("none", plain.to_vec()));
        }
    }

    #[test]
    fn cut_and_trailing_bytes_are_errors() {
        let whole = gzip(b"some content that compresses to something");
        assert!(inflate(&whole[..whole.len() - 3]).is_err());
        assert!(inflate(&[&whole[..], b"trailing"].concat()).is_err());
        let frame = zstd::encode_all(&b"some content"[..], 3).unwrap();
        assert!(inflate(&frame[..frame.len() - 1]).is_err());
    }
}
