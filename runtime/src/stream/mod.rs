//! Streams: Exec, Attach and PortForward. An RPC hands out a URL; whoever asks for it over HTTP
//! gets the streams of a process, or connections into a pod.
//!
//! ```text
//! RPC -> token -> HTTP request -> upgrade -> SPDY/3.1 or WebSocket -> channels
//!                                                                       |
//!    shim: pipe ends or the terminal's master, once, by SCM_RIGHTS -> command: pumps
//!    a socket that was made in the pod's network namespace         -> forward: pumps
//! ```
//! - `token`: one-use tokens. `server`: HTTP and TLS. `negotiate`: which protocol; pure.
//! - [`spdy`], `websocket`: the protocols. `channel`: one stream of bytes in either of them.
//! - `command`: exec and attach; `pipe`: a process's end; `status`: what the error channel says.
//! - `forward`: connections into a pod; `netns`: sockets there.
//!
//! Every queue is bounded, so that a slow client slows its process, and nobody else. A client that
//! is gone takes its exec with it: the connection to the shim on which that was asked for ends.

mod channel;
mod command;
mod forward;
mod negotiate;
mod netns;
mod pipe;
mod server;
pub mod spdy;
mod status;
mod tls;
mod token;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config;
use crate::pod::{self, Roster};

/// Why streams cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be had.
    #[error("serve streams on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate or the key can't be used.
    #[error("stream.{key}: {file}: {reason}")]
    Tls {
        /// Which of the two keys.
        key: &'static str,
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Which streams of a process a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its input.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its other output.
    pub stderr: bool,
    /// It runs on a terminal.
    pub tty: bool,
}

/// A client may have these streams of a process.
#[derive(Debug)]
pub struct Command {
    /// The container's full id.
    pub container: String,
    /// Some: of this command, to be executed in it. None: of its first process.
    pub argv: Option<Vec<String>>,
    /// Which.
    pub wanted: Wanted,
}

/// A client may connect to ports of this pod.
#[derive(Debug)]
pub struct Forward {
    /// The pod's full id.
    pub pod: String,
    /// Its network namespace; None: the host's.
    pub netns: Option<PathBuf>,
    /// What a WebSocket's channels connect to; over SPDY each connection names its port.
    pub ports: Vec<u16>,
}

/// What a token stands for.
#[derive(Debug)]
enum Promise {
    Command(Command),
    Forward(Forward),
}

impl Promise {
    /// The first part of its path.
    fn kind(&self) -> &'static str {
        match self {
            Self::Command(Command { argv: Some(_), .. }) => "exec",
            Self::Command(_) => "attach",
            Self::Forward(_) => "portforward",
        }
    }
}

/// The streaming server.
pub struct Streams {
    base: String,
    tokens: token::Tokens<Promise>,
    tls: Option<tokio_rustls::TlsAcceptor>,
    idle: Duration,
}

impl Streams {
    /// Takes the address of the configuration. Nothing is answered before [`Self::serve`].
    pub async fn bind(config: &config::Stream) -> Result<(Arc<Self>, TcpListener), Error> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let failed = |source| Error::Bind { address: config.address, source };
        let (listener, address) = server::bind(config.address).await.map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let streams = Self {
            base: format!("{scheme}://{address}"),
            tokens: token::Tokens::default(),
            tls,
            idle: Duration::from_secs(config.idle_timeout_seconds),
        };
        Ok((Arc::new(streams), listener))
    }

    /// Serves until the future is dropped; its streams end with it.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, roster: &Arc<Roster>) {
        server::serve(listener, self, roster).await;
    }

    /// The URL of an exec or an attach.
    pub fn command(&self, command: Command) -> pod::Result<String> {
        self.promise(Promise::Command(command))
    }

    /// The URL of a port-forward.
    pub fn forward(&self, forward: Forward) -> pod::Result<String> {
        self.promise(Promise::Forward(forward))
    }

    fn promise(&self, promise: Promise) -> pod::Result<String> {
        let kind = promise.kind();
        let token = self.tokens.give(promise).map_err(|error| pod::Error::Step {
            step: "stream",
            kind: match error {
                token::Error::Full => pod::Kind::Full,
                token::Error::Random(_) => pod::Kind::Internal,
            },
            source: Arc::new(error),
        })?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }
}
