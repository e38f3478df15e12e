//! One pass from a compressed blob to a directory: blob hash, inflate, tar hash, untar.
//!
//! Nothing of the blob is kept: it arrives as a stream of pieces, and both digests are known at
//! the stream's end, before the directory gets its name in the store.

mod apply;
mod archive;
mod compose;
mod decompress;
mod facts;
mod limits;
mod links;
pub(crate) mod listing;
pub(crate) mod node;
mod pipe;
mod tar;
mod walk;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use archive::{
    MemberKind, archive_read_error, diff_id, each_member, each_member_in_place, format_of,
    is_compressed, verify_blob,
};
pub(crate) use facts::Facts;
pub use limits::Limits;
pub(crate) use listing::ListingWriter;
pub use tar::TarError;

use crate::digest::Digest;
use crate::error::{ErrorKind, io_kind};
use crate::progress::Meter;
use crate::snapshot::view::MergedView;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tar stream.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The compression.
    #[error("inflate ({format})")]
    Inflate {
        /// gzip, zstd or none.
        format: &'static str,
        /// What the library says.
        source: std::io::Error,
    },
    /// The blob is not what its digest says.
    #[error("the blob is {actual}, not {wanted}")]
    BlobDigest {
        /// As the manifest says.
        wanted: Digest,
        /// As received.
        actual: Digest,
    },
    /// The blob has another length than the manifest says.
    #[error("the blob has {actual} bytes, not {wanted}")]
    BlobSize {
        /// As the manifest says.
        wanted: u64,
        /// As received (so far).
        actual: u64,
    },
    /// The tar is not what the configuration's diff-id says.
    #[error("the unpacked content is {actual}, not the diff-id {wanted}")]
    DiffId {
        /// As the image's configuration says.
        wanted: Digest,
        /// As unpacked.
        actual: Digest,
    },
    /// An entry that may not be in a layer, or cannot be applied.
    #[error("entry {path:?} {reason}")]
    Entry {
        /// The entry's path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The layer passes one of the limits in the configuration.
    #[error("more than {limit} {what}, the limit image.limits.{key}")]
    Limit {
        /// What there is more of.
        what: &'static str,
        /// The limit's key in the configuration.
        key: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Making an entry failed.
    #[error("{action} {path:?}")]
    Write {
        /// What was being done.
        action: &'static str,
        /// To which path within the layer.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The stream ended because nobody waits for it any more.
    #[error("cancelled")]
    Cancelled,
    /// A thread could not be started or ended badly.
    #[error("the unpacking thread failed: {0}")]
    Thread(String),
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Write { source, .. } => io_kind(source),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Thread(_) => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

/// What a blob must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) limits: Limits,
    /// Told of what has been unpacked.
    pub(crate) meter: Arc<Meter>,
}

/// A piece of the blob, or the word that it is complete: a channel that closes without it was
/// cut short.
pub enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// The stream is complete.
    End,
}

/// What lies below a layer that must be unpacked with regard to it.
pub(crate) struct Below {
    pub(crate) view: MergedView,
    /// What the layer's first, independent unpacking found out.
    pub(crate) facts: Facts,
}

/// What was unpacked.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Inodes made.
    pub(crate) inodes: u64,
}

/// Unpacks the blob that `pieces` brings into `root`, an empty directory, and writes down in
/// `listing` what is there then. Blocks; runs on its own thread with a second one for hashing and
/// inflating.
pub(crate) fn unpack(
    pieces: mpsc::Receiver<Piece>,
    expected: &Expected,
    root: OwnedFd,
    listing: &mut ListingWriter,
    below: Option<Below>,
) -> Result<(Facts, Counts), Error> {
    pipe::run(pieces, expected, |stream| {
        let mut reader = tar::TarReader::new(stream);
        let mut applier = apply::Applier::new(root, listing, below, expected.limits);
        let mut entries = 0;
        while let Some(entry) = reader.next()? {
            entries += 1;
            expected.limits.check_entries(entries)?;
            applier.apply(&entry, &mut reader)?;
        }
        reader.drain()?;
        Ok((applier.finish()?, reader.into_inner()))
    })
}

/// The directories that a layer's tar left out and that are directories below. `None` where that
/// is not all and the layer must be unpacked anew with [`Below`].
pub(crate) fn missing(facts: &Facts, below: &MergedView) -> Result<Option<Vec<Vec<u8>>>, Error> {
    compose::missing(facts, below)
}

/// Makes in `root`, an empty directory, a layer of nothing but these directories as they are
/// below, to lie above the layer that left them out.
pub(crate) fn patch(
    root: &OwnedFd,
    layer: &OwnedFd,
    paths: &[Vec<u8>],
    below: &MergedView,
    listing: &mut ListingWriter,
) -> Result<Counts, Error> {
    compose::patch(root, layer, paths, below, listing)
}

/// An error about an entry itself.
fn entry_error(path: &[u8], reason: &'static str) -> Error {
    Error::Entry { path: String::from_utf8_lossy(path).into_owned(), reason }
}

/// An error of writing the listing.
fn listing_error(source: std::io::Error) -> Error {
    Error::Write { action: "write", path: listing::LISTING.to_owned(), source }
}

/// Makes the error of a system call into one that says what was being done to which path.
fn write_error(action: &'static str, path: &[u8]) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = String::from_utf8_lossy(path).into_owned();
    move |source| Error::Write { action, path: path.clone(), source }
}
