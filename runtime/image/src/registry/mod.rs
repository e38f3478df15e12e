//! Speaking with registries: where to ask ([`hosts`]), how ([`client`]), for what ([`source`],
//! [`beside`]).

mod auth;
pub(crate) mod beside;
mod body;
mod challenge;
mod client;
mod connect;
mod credentials;
mod download;
mod hosts;
mod net;
pub(crate) mod push;
mod source;
mod tls;
mod tries;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::Proxies;
pub use credentials::Credentials;
pub(crate) use net::{Budget, Net};
pub(crate) use source::{Fetched, Source};

use crate::digest::Digest;
use crate::error::ErrorKind;

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The directory with a `hosts.toml` per registry, in containerd's format, re-read at each
    /// pull. `None`: every registry is asked directly.
    pub config_path: Option<PathBuf>,
    /// Docker's `config.json` with credentials for all pulls of the node, re-read at each pull.
    /// One that is not there is well.
    pub auth_file: Option<PathBuf>,
    /// To connect, unless `hosts.toml` says otherwise.
    pub connect_timeout: Duration,
    /// From sending a request to the head of its answer, TLS handshake included.
    pub response_timeout: Duration,
    /// A body that brings nothing for this long has stalled.
    pub stall_timeout: Duration,
    /// So has one that brings fewer bytes per second over such a span.
    pub min_rate: u64,
    /// How often all hosts are asked again that did not serve but may yet.
    pub retries: u32,
    /// Before the first of these; doubles with each.
    pub retry_pause: Duration,
    /// For so long a host that failed is asked after the others.
    pub avoid_for: Duration,
    /// Connections to one host at a time, over all pulls; at least one.
    pub connections_per_host: usize,
    /// Bytes per second that all pulls together may receive.
    pub bandwidth: Option<u64>,
    /// Fetch large layers in several ranges at once.
    pub chunks: Option<Chunks>,
    /// What is kept of downloads that are broken off.
    pub resume: Resume,
    /// Proxies; the environment's by default.
    pub proxies: Proxies,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            config_path: None,
            auth_file: None,
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            min_rate: 1 << 10,
            retries: 4,
            retry_pause: Duration::from_millis(250),
            avoid_for: Duration::from_secs(30),
            connections_per_host: 8,
            bandwidth: None,
            chunks: None,
            resume: Resume::default(),
            proxies: Proxies::from_env(),
        }
    }
}

/// A layer in several ranges at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Bytes per request; a layer of no more than two such is fetched in one. At least 64 KiB.
    pub size: u32,
    /// Chunks in memory at a time, over all pulls; at least one.
    pub count: usize,
}

impl Chunks {
    fn size(self) -> u64 {
        u64::from(self.size.max(64 << 10))
    }

    fn step(self) -> usize {
        usize::try_from(self.size()).unwrap_or(usize::MAX)
    }

    fn count(self) -> usize {
        self.count.max(1)
    }
}

/// What is kept of downloads that are broken off, so that a later one goes on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// A download is kept from here on: quick ones are not worth a second copy on disk.
    pub after: Duration,
    /// All that is kept, together; 0 keeps nothing.
    pub max_bytes: u64,
    /// Nothing is kept longer.
    pub max_age: Duration,
}

impl Default for Resume {
    fn default() -> Self {
        let (after, max_age) = (Duration::from_secs(3), Duration::from_secs(24 * 3600));
        Self { after, max_bytes: 8 << 30, max_age }
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
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
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
    #[error("{url}: stalled, {brought} bytes in {:.1} s", .span.as_secs_f32())]
    Stalled {
        /// What was asked for.
        url: String,
        /// What was waited.
        span: Duration,
        /// What that brought.
        brought: u64,
    },
    /// The file with the node's credentials cannot be used.
    #[error("registry credentials {path}: {reason}")]
    AuthFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob is neither kept here nor known to come from a registry.
    #[error("{digest} is not kept here, and no registry is known that has it")]
    NotKept {
        /// The blob.
        digest: Digest,
    },
    /// A push by digest of an image with another.
    #[error("the image's manifest is {actual}, not {wanted}")]
    OtherDigest {
        /// The digest in the reference.
        wanted: Digest,
        /// The image's own.
        actual: Digest,
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
            Self::Hosts { .. } | Self::AuthFile { .. } | Self::NoHost { .. } => ErrorKind::Invalid,
            Self::Status { status, .. } => match status.as_u16() {
                404 => ErrorKind::NotFound,
                401 | 403 => ErrorKind::Unauthorized,
                _ => ErrorKind::Unavailable,
            },
            Self::Tls { .. } | Self::Transport { .. } | Self::Stalled { .. } => {
                ErrorKind::Unavailable
            }
            Self::NotKept { .. } => ErrorKind::NotFound,
            Self::BadAnswer { .. } | Self::WrongDigest { .. } | Self::OtherDigest { .. } => {
                ErrorKind::Invalid
            }
            Self::AllHosts { attempts } => kind_of_all(attempts),
        }
    }
}

impl Error {
    /// Whether the same host may serve a little later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 429)
            }
            Self::Transport { .. } | Self::Stalled { .. } => true,
            _ => false,
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

/// Whatever a `hosts.toml` says, it is read or refused.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_hosts(text: &str) {
    let _ = hosts::parse(text, std::path::Path::new("/"), "registry.test");
}
