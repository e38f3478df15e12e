//! HTTP: a URL with a token becomes a stream.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::channel::{Activity, Probe};
use super::negotiate::{self, Refusal, Upgrade};
use super::{Promise, Streams, command, forward};
use crate::pod::Roster;

/// Connections at once; further ones wait in the backlog.
const CONNECTIONS: usize = 4096;
/// What the kernel takes from a client while nobody here reads, because a process does not. TCP tells
/// of a client's end behind all that it sent: one that has sent more is not seen to hang up.
const AHEAD: usize = 4 << 20;
/// How long a client may take for the handshake of TLS, and for the head of its request.
const HEAD: Duration = Duration::from_secs(10);

/// A client's connection.
#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has become a stream.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) socket: Socket,
    /// What came with the request.
    pub(super) early: Bytes,
    pub(super) probe: Probe,
    pub(super) activity: Arc<Activity>,
}

type Body = Full<Bytes>;
type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What becomes of the connection after its request.
#[derive(Clone, Default)]
struct Then(Arc<Mutex<Option<Session>>>);

impl Then {
    fn set(&self, session: Session) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves until the future is dropped; its streams end with it.
pub(super) async fn serve(listener: TcpListener, streams: &Arc<Streams>, roster: &Arc<Roster>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(streams), Arc::clone(roster)));
                }
                // Out of descriptors, most likely: they come back as connections end.
                Err(error) => {
                    tracing::warn!(%error, "a stream was not accepted");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
}

/// One connection's whole life: a request, then what it becomes.
async fn connection(stream: TcpStream, streams: Arc<Streams>, roster: Arc<Roster>) {
    let Ok(probe) = prepare(&stream) else { return };
    let probe = Arc::new(Mutex::new(Some(probe)));
    let socket = match &streams.tls {
        None => Socket::Plain(stream),
        Some(tls) => match tokio::time::timeout(HEAD, tls.accept(stream)).await {
            Ok(Ok(stream)) => Socket::Tls(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a stream's TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    let then = Then::default();
    let service = service_fn(|request: Request<Incoming>| {
        let probe = probe.lock().unwrap_or_else(PoisonError::into_inner).take();
        let response = respond(request, &streams, &roster, probe, &then);
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a request for a stream broke off");
        return;
    }
    if let Some(session) = then.take() {
        session.await;
    }
}

fn prepare(stream: &TcpStream) -> io::Result<Probe> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    Ok(Probe::new(Some(rustix::io::fcntl_dupfd_cloexec(stream, 3)?)))
}

fn respond(
    mut request: Request<Incoming>,
    streams: &Arc<Streams>,
    roster: &Arc<Roster>,
    probe: Option<Probe>,
    then: &Then,
) -> Response<Body> {
    if ![Method::GET, Method::POST].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
    }
    let promise = match request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'))
    {
        Some((kind, token)) => streams.tokens.take(token).filter(|p| p.kind() == kind),
        None => None,
    };
    let (Some(promise), Some(probe)) = (promise, probe) else {
        return plain(StatusCode::NOT_FOUND, "no such stream: each URL is good once, for a minute");
    };
    let (spdy, socket) = match &promise {
        Promise::Forward(_) => (negotiate::FORWARD, negotiate::FORWARD_SOCKET),
        Promise::Command(_) => (negotiate::COMMAND, negotiate::COMMAND_SOCKET),
    };
    let upgrade = match negotiate::upgrade(request.headers(), spdy, socket) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refuse(&refusal),
    };
    if let Promise::Forward(ports) = &promise
        && let Some(why) = forward::cannot(ports, &upgrade)
    {
        return plain(StatusCode::BAD_REQUEST, why);
    }
    let response = switching(&upgrade);
    let upgrading = hyper::upgrade::on(&mut request);
    let (roster, idle) = (Arc::clone(roster), streams.idle);
    then.set(Box::pin(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Socket>>() else { return };
        let activity = Arc::new(Activity::new());
        let (socket, early) = (parts.io.into_inner(), parts.read_buf);
        let accepted = Accepted { socket, early, probe, activity: Arc::clone(&activity) };
        let session: Session = match promise {
            Promise::Command(promise) => {
                Box::pin(command::serve(roster, promise, accepted, upgrade))
            }
            Promise::Forward(promise) => Box::pin(forward::serve(promise, accepted, upgrade)),
        };
        tokio::select! {
            () = session => {}
            () = activity.idle(idle) => tracing::info!(after = ?idle, "an idle stream is ended"),
        }
    }));
    response
}

fn plain(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = code;
    // One connection, one request: what it might become is bound to it.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    let Refusal::Protocol { known, .. } = refusal else {
        return plain(StatusCode::BAD_REQUEST, &refusal.to_string());
    };
    let mut response = plain(StatusCode::FORBIDDEN, &refusal.to_string());
    for name in *known {
        response.headers_mut().append(
            hyper::header::HeaderName::from_static(negotiate::ACCEPTED_VERSIONS),
            HeaderValue::from_static(name),
        );
    }
    response
}

fn switching(upgrade: &Upgrade) -> Response<Body> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match upgrade {
        Upgrade::Spdy(protocol) => {
            headers.insert(UPGRADE, HeaderValue::from_static(negotiate::SPDY));
            if let Some(protocol) = protocol {
                let name = hyper::header::HeaderName::from_static(negotiate::STREAM_VERSION);
                headers.insert(name, HeaderValue::from_static(protocol));
            }
        }
        Upgrade::WebSocket(protocol, key) => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            if let Some(protocol) = protocol {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    response
}

/// Opens the address; answers the one that it became.
pub(super) async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    // Inherited by connections. Without the right to pass net.core.rmem_max it is that much.
    let ahead = sockopt::set_socket_recv_buffer_size_force(&listener, AHEAD);
    if ahead.is_err() {
        sockopt::set_socket_recv_buffer_size(&listener, AHEAD)?;
    }
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
