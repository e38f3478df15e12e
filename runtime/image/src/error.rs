//! What can go wrong, as callers tell it apart.

use std::sync::Arc;

use crate::{digest, manifest, policy, reference, registry, snapshot, store, unpack};

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named thing does not exist (here or on the registry).
    NotFound,
    /// A thing of that name exists and differs.
    Exists,
    /// The request, or what the registry or archive holds, is malformed.
    Invalid,
    /// The thing is there, but may not be used yet: try again later.
    NotReady,
    /// The registry wants other or further credentials.
    Unauthorized,
    /// The registry cannot be reached or does not answer as it should: try again later.
    Unavailable,
    /// The image policy does not let the image be used.
    Refused,
    /// The disk has no room or no inodes left.
    Full,
    /// The work was given up because nobody waited for it any more.
    Cancelled,
    /// Anything else, such as a failing disk.
    Internal,
}

/// An error of the image store. [`report`](Error::report) spells the whole chain of causes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no image reference.
    #[error(transparent)]
    Reference(#[from] reference::InvalidReference),
    /// The text is no digest.
    #[error(transparent)]
    Digest(#[from] digest::InvalidDigest),
    /// A pull failed.
    #[error("pull {reference}")]
    Pull {
        /// What was pulled, normalised.
        reference: String,
        /// What went wrong; shared by everyone who waited for this pull.
        source: Arc<Error>,
    },
    /// A push failed.
    #[error("push {reference}")]
    Push {
        /// Where to, normalised.
        reference: String,
        /// What went wrong.
        source: Box<Error>,
    },
    /// An archive could not be imported.
    #[error("import {path}")]
    Import {
        /// The archive.
        path: String,
        /// What went wrong.
        source: Box<Error>,
    },
    /// An archive that came as a stream could not be loaded.
    #[error("load the archive")]
    Load {
        /// What went wrong.
        source: Box<Error>,
    },
    /// An archive's contents are not images that can be imported.
    #[error("{reason}")]
    Archive {
        /// What is wrong with it.
        reason: String,
    },
    /// A layer could not be fetched or unpacked.
    #[error("layer {digest}")]
    Layer {
        /// The digest of the layer's blob.
        digest: digest::Digest,
        /// What went wrong.
        source: Arc<Error>,
    },
    /// The registry's side.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The manifest's or the configuration's contents.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The image policy's word.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The layer's contents, or writing them.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// The store's own records and directories.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Writable layers and reading from images.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// No image has this name.
    #[error("no image {name:?}")]
    NoImage {
        /// As asked for.
        name: String,
    },
    /// A compressed layer is not kept, and no registry is known that has it.
    #[error("the blob of layer {digest} is not kept here; pull or load the image again")]
    NoBlob {
        /// The blob's digest.
        digest: digest::Digest,
    },
    /// What is missing of an image could not be fetched.
    #[error("fetch the compressed layers of image {digest}, which are not kept here")]
    Fetch {
        /// The image's id.
        digest: digest::Digest,
        /// What went wrong.
        source: Box<Error>,
    },
    /// A tag was wanted and a digest given.
    #[error("{reference:?} is not a name with a tag")]
    NotTag {
        /// What was given, normalised.
        reference: String,
    },
    /// The work ended with nobody left to wait for it, or the program is shutting down.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Digest(_) | Self::Archive { .. } => ErrorKind::Invalid,
            Self::Pull { source, .. } | Self::Layer { source, .. } => source.kind(),
            Self::Import { source, .. }
            | Self::Push { source, .. }
            | Self::Load { source }
            | Self::Fetch { source, .. } => source.kind(),
            Self::Registry(error) => error.kind(),
            Self::Manifest(_) => ErrorKind::Invalid,
            Self::Policy(_) => ErrorKind::Refused,
            Self::Unpack(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::NoImage { .. } => ErrorKind::NotFound,
            Self::NoBlob { .. } => ErrorKind::NotReady,
            Self::NotTag { .. } => ErrorKind::Invalid,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// The error and all its causes in one line, for people and for gRPC messages.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // Transparent layers repeat their cause's text.
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }
}

/// Tells a full disk from other I/O errors.
pub(crate) fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Internal,
    }
}
