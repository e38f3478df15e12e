//! How a command ends.

use std::fmt::Display;

use tonic::{Code, Status};

/// What a command gives back; its output is written already.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("configuration")]
    Config(#[from] berth_runtime::config::Error),
    #[error("no daemon answers on {socket}")]
    Unreachable { socket: String, source: tonic::transport::Error },
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("{doing} {what}")]
    Io { doing: &'static str, what: String, source: std::io::Error },
    #[error("{0}")]
    Damaged(String),
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    pub(crate) fn io(doing: &'static str, what: impl Display, source: std::io::Error) -> Self {
        Self::Io { doing, what: what.to_string(), source }
    }

    /// 1 failed, 2 wrong usage (as clap's own), 3 no such image, 4 no daemon, 5 something is
    /// damaged, 130 interrupted.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Refused(status) if status.code() == Code::NotFound => 3,
            Self::Unreachable { .. } => 4,
            Self::Damaged(_) => 5,
            Self::Interrupted => 130,
            Self::Refused(_) | Self::Io { .. } => 1,
        }
    }

    /// The error and its causes in one line.
    pub(crate) fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            // Wrappers repeat their cause's text.
            if !text.ends_with(&next) {
                text.push_str(&format!(": {next}"));
            }
            cause = error.source();
        }
        text
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}
