//! What can go wrong in a pod's life, and the kind that the front door turns into a gRPC code.

use std::path::PathBuf;
use std::sync::Arc;

use crate::ports::PortError;
use crate::shim::{CgroupError, ShimError};
use crate::store::StoreError;

/// What sort of failure it is: one table in `cri/code.rs` turns it into a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The pod, container or image is not there.
    NotFound,
    /// It is there already.
    Exists,
    /// A field of the request cannot be honoured.
    Invalid,
    /// The thing is in a state that does not allow this.
    NotReady,
    /// Other work is in the way.
    Busy,
    /// The image policy does not let the image be used.
    Refused,
    /// An image volume can't be mounted.
    ImageVolume,
    /// Not done in time.
    Deadline,
    /// As many as there may be are there.
    Full,
    /// A part outside (shim, network plugin) does not answer, or the daemon is draining.
    Unavailable,
    /// Anything else.
    Internal,
}

/// A failure of an operation on a pod or container. Cheap to clone: joined callers share it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No pod has this id, or more than one begins with it.
    #[error("pod sandbox {id:?}: not found")]
    NoPod {
        /// As asked.
        id: String,
    },
    /// No container has this id, or more than one begins with it.
    #[error("container {id:?}: not found")]
    NoContainer {
        /// As asked.
        id: String,
    },
    /// The image is not in the store.
    #[error("image {name:?}: not found")]
    NoImage {
        /// As asked.
        name: String,
    },
    /// A field of the request.
    #[error("{field}: {why} (got {value:?})")]
    Invalid {
        /// The CRI name of the field, dotted.
        field: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The pod or container is in the wrong state.
    #[error("{what} is {state}: {why}")]
    State {
        /// Which pod or container.
        what: String,
        /// The state it is in.
        state: &'static str,
        /// What was to be done.
        why: String,
    },
    /// Work was ended by a newer request.
    #[error("{what}: ended by a newer request")]
    Superseded {
        /// Which work.
        what: String,
    },
    /// The pod has as many requests waiting as it takes.
    #[error("pod sandbox {id}: too many requests are waiting")]
    Busy {
        /// Which pod.
        id: String,
    },
    /// A step took too long.
    #[error("{step}: not done within {seconds} s")]
    Deadline {
        /// Which step.
        step: String,
        /// How long it was given.
        seconds: u64,
    },
    /// The daemon is ending.
    #[error("the daemon is shutting down")]
    Draining,
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// Its name.
        step: &'static str,
        /// Why.
        source: Arc<dyn std::error::Error + Send + Sync>,
        /// What sort of failure the source is.
        kind: Kind,
    },
    /// It is there already, by another request.
    #[error("{what} is there already: {id}")]
    Exists {
        /// What was asked for.
        what: String,
        /// What holds its name.
        id: String,
    },
    /// A record or a directory.
    #[error("{what} {path:?}: {source}")]
    Disk {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: Arc<std::io::Error>,
    },
}

impl Error {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoPod { .. } | Self::NoContainer { .. } | Self::NoImage { .. } => Kind::NotFound,
            Self::Invalid { .. } => Kind::Invalid,
            Self::Exists { .. } => Kind::Exists,
            Self::State { .. } => Kind::NotReady,
            Self::Superseded { .. } | Self::Busy { .. } => Kind::Busy,
            Self::Deadline { .. } => Kind::Deadline,
            Self::Draining => Kind::Unavailable,
            Self::Step { kind, .. } => *kind,
            Self::Disk { .. } => Kind::Internal,
        }
    }

    /// A refused field.
    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::Invalid { field: field.into(), value: value.into(), why: why.into() }
    }

    pub(crate) fn disk(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Disk { what, path: path.into(), source: Arc::new(source) }
    }

    pub(crate) fn store(error: StoreError) -> Self {
        Self::disk(error.what, error.path, error.source)
    }

    pub(crate) fn cgroup(error: CgroupError) -> Self {
        Self::Step { step: "cgroup", kind: Kind::Internal, source: Arc::new(error) }
    }

    pub(crate) fn port(step: &'static str, error: PortError) -> Self {
        Self::Step { step, kind: error.kind, source: Arc::from(error.source) }
    }

    pub(crate) fn shim(step: &'static str, error: ShimError) -> Self {
        Self::Step { step, kind: error.kind(), source: Arc::new(error) }
    }
}

/// The result of an operation.
pub type Result<T> = std::result::Result<T, Error>;
