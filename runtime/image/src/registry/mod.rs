//! Speaking with registries: where to ask ([`hosts`]), how ([`client`]), for what ([`source`],
//! [`beside`]).

#[allow(dead_code, reason = "the policy that uses it is being built")]
pub(crate) mod beside;
mod client;
mod hosts;
mod source;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use source::{Fetched, Source};

use crate::digest::Digest;
use crate::error::ErrorKind;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// The directory with a `hosts.toml` per registry, in containerd's format, re-read at each
    /// pull. `None`: every registry is asked directly.
    pub config_path: Option<PathBuf>,
    /// To connect, TLS handshake included.
    pub connect_timeout: Duration,
    /// From sending a request to the head of its answer.
    pub response_timeout: Duration,
    /// A body that brings nothing for this long has stalled.
    pub stall_timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            config_path: None,
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// What a caller gives to be let in; as in CRI's AuthConfig. Never stored, never logged.
///
/// Nothing is sent with them yet: a registry that asks for them is told apart by
/// [`ErrorKind::Unauthorized`].
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// A user's name, with `password`.
    pub username: String,
    /// The password of `username`.
    pub password: String,
    /// To be exchanged for an access token.
    pub identity_token: String,
    /// A bearer token as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What went wrong between this machine and a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `hosts.toml` cannot be used.
    #[error("registry configuration {path}: {reason}")]
    Hosts {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No host may be asked for this.
    #[error("no host for {registry} has the capability {capability:?}")]
    NoHost {
        /// The registry as in the reference.
        registry: String,
        /// `pull` or `resolve`.
        capability: &'static str,
    },
    /// TLS could not be set up.
    #[error("TLS for {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What failed.
        reason: String,
    },
    /// The request could not be sent or answered.
    #[error("{url}: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// All that is known.
        reason: String,
    },
    /// The host refused.
    #[error("{url}: {status}{detail}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status with its reason.
        status: hyper::StatusCode,
        /// The registry's own words, if any.
        detail: String,
    },
    /// The host answered with something other than asked for.
    #[error("{url}: {reason}")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The bytes are not those of the digest.
    #[error("{url}: the content is {actual}, not {wanted}")]
    WrongDigest {
        /// What was asked for.
        url: String,
        /// The digest asked for or announced.
        wanted: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A body stopped coming.
    #[error("{url}: no data for {seconds} s")]
    Stalled {
        /// What was asked for.
        url: String,
        /// The limit that passed.
        seconds: u64,
    },
    /// All hosts failed.
    #[error("{}", .attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllHosts {
        /// One error per host asked, in order; at least one.
        attempts: Vec<Error>,
    },
}

impl Error {
    /// What a caller can do about it. Of several hosts, the one that got furthest speaks.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Hosts { .. } | Self::NoHost { .. } => ErrorKind::Invalid,
            Self::Status { status, .. } => match status.as_u16() {
                404 => ErrorKind::NotFound,
                401 | 403 => ErrorKind::Unauthorized,
                _ => ErrorKind::Unavailable,
            },
            Self::Tls { .. } | Self::Transport { .. } | Self::Stalled { .. } => {
                ErrorKind::Unavailable
            }
            Self::BadAnswer { .. } | Self::WrongDigest { .. } => ErrorKind::Invalid,
            Self::AllHosts { attempts } => kind_of_all(attempts),
        }
    }
}

/// A definite answer says more than an unreachable host, whichever came first.
fn kind_of_all(attempts: &[Error]) -> ErrorKind {
    let kinds: Vec<_> = attempts.iter().map(Error::kind).collect();
    [ErrorKind::Unauthorized, ErrorKind::Invalid, ErrorKind::Unavailable]
        .into_iter()
        .find(|kind| kinds.contains(kind))
        .unwrap_or(ErrorKind::NotFound)
}
