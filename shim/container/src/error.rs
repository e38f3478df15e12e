//! What can go wrong, told apart by what a caller does about it.

use std::io;

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

/// How a caller reacts to an [`Error`]; the shim's service maps each to one status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something named by the caller isn't there.
    NotFound,
    /// It is there already.
    Exists,
    /// The request can't be carried out by anyone: a field is malformed or asks for the impossible.
    Invalid,
    /// Not in this state (start of a started container, exec in a stopped one).
    NotReady,
    /// Still in use; the same call may succeed later.
    Busy,
    /// Time ran out.
    Deadline,
    /// The machine or the engine failed.
    Internal,
}

/// An operation of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the OCI spec is malformed, or asks for what this engine doesn't do.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// The field as the OCI runtime spec spells it, e.g. `linux.seccomp`.
        field: String,
        /// What is wrong, with the value.
        reason: String,
    },
    /// A step of the work failed with a system error.
    #[error("{step}: {}", words(source))]
    Step {
        /// What was being done, to what: `mount /x (bind from /y)`.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The container's (or exec's) program can't be executed. The text is what users know from
    /// runc: `exec: "/x": stat /x: no such file or directory`.
    #[error("{message}")]
    Exec {
        /// The whole text.
        message: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The child ended without a word (killed from outside, or by the OOM killer).
    #[error("{step}: the process ended early: {status}")]
    Died {
        /// What it was made for.
        step: String,
        /// How it ended.
        status: crate::exit::ExitStatus,
    },
    /// The container isn't in a state that allows the call.
    #[error("{what}: the container is {state}")]
    State {
        /// The call.
        what: &'static str,
        /// The state it is in.
        state: &'static str,
    },
}

impl Error {
    /// The kind a caller reacts to.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidSpec { .. } => ErrorKind::Invalid,
            Self::State { .. } => ErrorKind::NotReady,
            Self::Step { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => ErrorKind::Exists,
                io::ErrorKind::ResourceBusy => ErrorKind::Busy,
                io::ErrorKind::TimedOut => ErrorKind::Deadline,
                _ => ErrorKind::Internal,
            },
            Self::Exec { .. } => ErrorKind::Invalid,
            Self::Died { .. } => ErrorKind::Internal,
        }
    }
}

/// Names the step a system error happened in.
pub(crate) trait StepExt<T> {
    /// `step` says what was being done, to what.
    fn step(self, step: impl FnOnce() -> String) -> Result<T>;
}

impl<T> StepExt<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Step { step: step(), source })
    }
}

/// A system error as users know it: `permission denied`, without Rust's number behind it.
pub(crate) fn words(err: &io::Error) -> String {
    let text = err.to_string();
    let mut text = match text.find(" (os error ") {
        Some(at) => {
            let (words, number) = text.split_at(at);
            // What follows the number (the kernel's own words) stays.
            format!("{words}{}", number.split_once(')').map_or("", |(_, rest)| rest))
        }
        None => text,
    };
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}
