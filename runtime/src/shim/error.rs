//! What can go wrong with a shim.

use std::io;

use crate::pod::Kind;

/// A failure to start, reach or ask a shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It could not be started.
    #[error("start shim: {what}: {source}")]
    Launch {
        /// Which part of it.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The start verb said no.
    #[error("start shim: {status}: {stderr}")]
    Refused {
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// Its socket does not answer.
    #[error("connect to shim: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke while it was asked: it died, or was told to.
    #[error("{method}: connection to the shim lost")]
    Gone {
        /// What was asked.
        method: &'static str,
    },
    /// It did not answer in time.
    #[error("{method}: the shim did not answer within {seconds} s")]
    Deadline {
        /// What was asked.
        method: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// It answered with an error. The message is for the user as it stands.
    #[error("{message}")]
    Answer {
        /// What sort of error.
        kind: Kind,
        /// Its words.
        message: String,
    },
    /// It answered something else than was asked for.
    #[error("{method}: the shim's answer cannot be understood")]
    Garbled {
        /// What was asked.
        method: &'static str,
    },
}

impl ShimError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Gone { .. } | Self::Connect(_) => Kind::Unavailable,
            Self::Deadline { .. } => Kind::Deadline,
            Self::Answer { kind, .. } => *kind,
            Self::Launch { .. } | Self::Refused { .. } | Self::Garbled { .. } => Kind::Internal,
        }
    }
}
