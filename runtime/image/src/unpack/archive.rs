//! Tars that are archives of images: read member by member, never unpacked by name.

use std::io::{BufRead, Read, Seek};

use tokio::sync::mpsc;

use super::tar::{Kind, TarError, TarReader};
use super::{Error, Piece, decompress};
use crate::digest::Digest;

/// A member, without its content.
pub(crate) struct Member {
    /// As the tar has it.
    pub(crate) path: String,
    pub(crate) kind: MemberKind,
}

pub(crate) enum MemberKind {
    File { size: u64 },
    Directory,
    SymLink { target: String },
    HardLink { target: String },
    Other,
}

/// Shows every member of a tar, which may be compressed, with its content. Reads to the end of
/// the stream, so that a checksum there counts.
pub(crate) fn each_member(
    raw: impl BufRead,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<(), crate::Error>,
) -> Result<(), crate::Error> {
    let plain = decompress::Inflater::open(raw).map_err(archive_read_error)?;
    let mut reader = TarReader::new(std::io::BufReader::with_capacity(256 << 10, plain));
    while let Some(entry) = reader.next().map_err(Error::from)? {
        visit(member(&entry), &mut Content(&mut reader))?;
    }
    reader.drain().map_err(Error::from)?;
    Ok(())
}

/// Shows every member of a plain tar and where its content begins.
pub(crate) fn each_member_in_place(
    file: impl BufRead + Seek,
    mut visit: impl FnMut(Member, u64) -> Result<(), crate::Error>,
) -> Result<(), crate::Error> {
    let mut reader = TarReader::new(file);
    while let Some(entry) = reader.next().map_err(Error::from)? {
        let at = reader.inner_mut().stream_position().map_err(archive_read_error)?;
        visit(member(&entry), at)?;
    }
    Ok(())
}

/// The digest of the tar in a blob, which may be compressed.
pub(crate) fn diff_id(raw: impl BufRead) -> Result<Digest, crate::Error> {
    let mut plain = decompress::Inflater::open(raw).map_err(archive_read_error)?;
    let format = plain.format();
    let mut hasher = Digest::of(b"").hasher();
    let mut piece = vec![0_u8; 256 << 10];
    loop {
        let read = plain.read(&mut piece);
        let count = read.map_err(|source| Error::Inflate { format, source })?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(piece.get(..count).unwrap_or_default());
    }
}

/// Reads a blob to its end, merely to see that it is the one of this digest and size.
pub(crate) fn verify_blob(
    mut pieces: mpsc::Receiver<Piece>,
    digest: &Digest,
    size: u64,
) -> Result<(), crate::Error> {
    let mut hasher = digest.hasher();
    let mut read = 0_u64;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Data(data)) => {
                read = read.saturating_add(data.len() as u64);
                hasher.update(&data);
            }
            Some(Piece::End) => break,
            None => return Err(Error::Cancelled.into()),
        }
        if read > size {
            break;
        }
    }
    if read != size {
        return Err(Error::BlobSize { wanted: size, actual: read }.into());
    }
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(());
    }
    Err(Error::BlobDigest { wanted: digest.clone(), actual }.into())
}

/// gzip, zstd or none, by the first bytes.
pub(crate) fn format_of(head: &[u8]) -> &'static str {
    decompress::format(head)
}

pub(crate) fn is_compressed(head: &[u8]) -> bool {
    format_of(head) != "none"
}

/// An archive that cannot be read on.
pub(crate) fn archive_read_error(error: std::io::Error) -> crate::Error {
    Error::from(TarError::from(error)).into()
}

fn member(entry: &super::tar::Entry) -> Member {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kind = match entry.kind {
        Kind::File => MemberKind::File { size: entry.size },
        Kind::Directory => MemberKind::Directory,
        Kind::Symlink => MemberKind::SymLink { target: text(&entry.link) },
        Kind::HardLink => MemberKind::HardLink { target: text(&entry.link) },
        _ => MemberKind::Other,
    };
    Member { path: text(&entry.path), kind }
}

/// The content of the member at hand.
struct Content<'a, R>(&'a mut TarReader<R>);

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let found = self.0.content().map_err(|error| match error {
            TarError::Io(source) => source,
            error => std::io::Error::other(error),
        })?;
        let count = found.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), found.get(..count)) {
            to.copy_from_slice(from);
        }
        self.0.consume(count);
        Ok(count)
    }
}
