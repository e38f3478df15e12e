//! What a call that failed answers.

use std::fmt;

/// gRPC codes, as far as this server gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// A program could not be executed, as containerd says it.
    Unknown = 2,
    /// A field is malformed.
    InvalidArgument = 3,
    /// A deadline passed.
    DeadlineExceeded = 4,
    /// No such container or process.
    NotFound = 5,
    /// The id is taken.
    AlreadyExists = 6,
    /// A limit of the shim is reached.
    ResourceExhausted = 8,
    /// Not in this state.
    FailedPrecondition = 9,
    /// No such service or method.
    Unimplemented = 12,
    /// Everything else.
    Internal = 13,
}

/// A code with a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
