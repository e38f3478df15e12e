//! What can go wrong, and of which kind it is.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::builtin::{KernelError, LeaseError};
use crate::plugin::Verb;

/// The kinds a caller acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The attachment is already there.
    Exists,
    /// There is no such attachment.
    NotFound,
    /// A field of the request cannot be used.
    Invalid,
    /// There is no usable network configuration, or the daemon is going down.
    NotReady,
    /// A `del` ended it.
    Cancelled,
    /// A plugin took longer than its deadline.
    Deadline,
    /// Anything else: a plugin failed, a record could not be written.
    Internal,
}

/// Why no network can be given to pods now. `message` is made for Status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// One CamelCase word for machines.
    pub reason: &'static str,
    /// One sentence for people; names the file or directory at fault.
    pub message: String,
    /// There is no configuration at all, rather than one that can't be used.
    pub(crate) absent: bool,
}

impl NotReady {
    /// The reason given for every kind of missing or unusable configuration.
    pub const REASON: &'static str = "NetworkPluginNotReady";

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { reason: Self::REASON, message: message.into(), absent: false }
    }

    pub(crate) fn absent(message: impl Into<String>) -> Self {
        Self { absent: true, ..Self::new(message) }
    }
}

/// A failed operation on an attachment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable configuration.
    #[error("network not ready: {0}")]
    NotReady(#[from] NotReady),
    /// A field of the attachment cannot be used.
    #[error("attachment: {field} {value:?} {why}")]
    Invalid {
        /// The field's name in [`Attachment`](crate::Attachment).
        field: &'static str,
        /// What it held.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A record of this id and interface exists: `del` it first.
    #[error("interface {ifname} of {id} is already attached")]
    Exists {
        /// The attachment's id.
        id: String,
        /// Its interface.
        ifname: String,
    },
    /// A plugin failed during ADD or CHECK. What ADD had done was undone, or its record is kept for
    /// `del`.
    #[error("network {network:?}: plugin {plugin:?} {verb}: {source}")]
    Plugin {
        /// The network's name.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// What it was asked for.
        verb: Verb,
        /// How it failed.
        source: Box<PluginError>,
    },
    /// All plugins succeeded, yet the interface has no address.
    #[error("network {network:?}: the plugins gave interface {ifname} no address")]
    NoAddress {
        /// The network's name.
        network: String,
        /// The interface asked for.
        ifname: String,
    },
    /// Plugins failed during DEL; the others ran. The record is kept: `del` can be called again.
    #[error("network {network:?}: {}", list("DEL", .failures))]
    Detach {
        /// The network's name.
        network: String,
        /// Each plugin that failed, in the order they ran; never empty.
        failures: Vec<(String, PluginError)>,
    },
    /// The built-in network can't give what is asked for.
    #[error("built-in network: {0}")]
    Lease(#[from] LeaseError),
    /// The built-in network could not be made or taken away.
    #[error("built-in network {network:?}: {source}")]
    Builtin {
        /// Its name.
        network: String,
        /// What the kernel refused.
        source: KernelError,
    },
    /// There is no record of a completed `add`.
    #[error("interface {ifname} of {id} is not attached")]
    NotAttached {
        /// The attachment's id.
        id: String,
        /// Its interface.
        ifname: String,
    },
    /// Plugins failed during GC; the others ran.
    #[error("network {network:?}: {}", list("GC", .failures))]
    Collect {
        /// The network's name.
        network: String,
        /// Each plugin that failed, in the order they ran; never empty.
        failures: Vec<(String, PluginError)>,
    },
    /// A `del` of the same attachment ended this `add`; it was undone.
    #[error("attaching {ifname} of {id} was ended by its removal")]
    Cancelled {
        /// The attachment's id.
        id: String,
        /// Its interface.
        ifname: String,
    },
    /// The record of an attachment could not be read, written or removed.
    #[error("{doing} {path:?}: {source}", path = path.display())]
    Record {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// [`Networks::close`](crate::Networks::close) was called, or a task of this crate died.
    #[error("networks are closed")]
    Closed,
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotReady(_) | Self::Closed => ErrorKind::NotReady,
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::Plugin { source, .. } => source.kind(),
            Self::NotAttached { .. } => ErrorKind::NotFound,
            Self::Lease(LeaseError::Exists { .. }) => ErrorKind::Exists,
            Self::Lease(LeaseError::Foreign { .. }) => ErrorKind::Invalid,
            Self::Detach { failures, .. } | Self::Collect { failures, .. } => {
                failures.first().map_or(ErrorKind::Internal, |(_, e)| e.kind())
            }
            Self::NoAddress { .. }
            | Self::Record { .. }
            | Self::Lease(_)
            | Self::Builtin { .. } => ErrorKind::Internal,
        }
    }
}

fn list(verb: &str, failures: &[(String, PluginError)]) -> String {
    let each = failures.iter().map(|(plugin, e)| format!("plugin {plugin:?} {verb}: {e}"));
    each.collect::<Vec<_>>().join("; ")
}

/// How one run of a plugin failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// No directory holds a file of that name.
    #[error("not found in {dirs:?}")]
    NotFound {
        /// The directories, in the order searched.
        dirs: Vec<PathBuf>,
    },
    /// It could not be run at all.
    #[error("run {path:?}: {source}", path = path.display())]
    Run {
        /// The plugin's file, or its input.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long; its process group was killed.
    #[error("not done after {after:?}: killed{stderr}")]
    Deadline {
        /// The time it had.
        after: Duration,
        /// What it said meanwhile.
        stderr: Stderr,
    },
    /// The attachment was removed meanwhile; its process group was killed.
    #[error("stopped")]
    Stopped,
    /// It answered with an error (CNI specification, section 5, "Error").
    #[error("{msg}{} (code {code}){stderr}", colon(.details))]
    Refused {
        /// The CNI error code; 100 and above are the plugin's own.
        code: u32,
        /// The plugin's short message.
        msg: String,
        /// The plugin's longer message; may be empty.
        details: String,
        /// What it wrote to standard error.
        stderr: Stderr,
    },
    /// It ended with a failure and without an error object.
    #[error("ended with {status}, its output was {output:?}{stderr}")]
    Crashed {
        /// How it ended.
        status: ExitStatus,
        /// The beginning of its standard output.
        output: String,
        /// What it wrote to standard error.
        stderr: Stderr,
    },
    /// It succeeded with an answer that is not a CNI result.
    #[error("its answer is no CNI result: {why}; it was {output:?}{stderr}")]
    Rubbish {
        /// What is wrong with it.
        why: String,
        /// The beginning of its standard output.
        output: String,
        /// What it wrote to standard error.
        stderr: Stderr,
    },
}

impl PluginError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Deadline { .. } => ErrorKind::Deadline,
            Self::Stopped => ErrorKind::Cancelled,
            _ => ErrorKind::Internal,
        }
    }
}

fn colon(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(": {details}") }
}

/// The beginning of what a plugin wrote to standard error. Shown after "; stderr: ", or not at
/// all when it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stderr(pub String);

impl fmt::Display for Stderr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; stderr: {}", self.0) }
    }
}
