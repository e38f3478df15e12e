//! Connections into a pod: to a port of its localhost, by IPv4, then by IPv6.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channel::{Input, Output, READ};
use super::negotiate::{self, TUNNEL, Upgrade};
use super::server::{Accepted, Socket};
use super::spdy::{Session, Stream};
use super::websocket::{self, Channels};
use super::{Forward, netns};

/// How long the second stream of a connection may take to come.
const PAIR: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(30);
/// WebSocket's channels come in pairs, and their numbers fit one byte.
const MAX_PORTS: usize = 100;

/// Why this promise cannot be kept over that protocol.
pub(super) fn cannot(forward: &Forward, upgrade: &Upgrade) -> Option<&'static str> {
    match upgrade {
        Upgrade::WebSocket(protocol, _) if *protocol != Some(TUNNEL) => match forward.ports.len() {
            0 => Some("over WebSocket the request must name its ports"),
            count if count > MAX_PORTS => Some("over WebSocket 100 ports are the most"),
            _ => None,
        },
        _ => None,
    }
}

/// Serves one client.
pub(super) async fn serve(forward: Forward, accepted: Accepted, upgrade: Upgrade) {
    let forward = Arc::new(forward);
    match upgrade {
        Upgrade::WebSocket(Some(TUNNEL), _) => {
            let Accepted { socket, early, probe, activity } = accepted;
            let (reader, writer) = websocket::tunnel(socket, early).await;
            let session = Session::start(
                Box::new(reader),
                Box::new(writer),
                bytes::Bytes::new(),
                probe,
                activity,
            );
            if let Ok(session) = session {
                pairs(forward, session).await;
            }
        }
        Upgrade::Spdy(_) => {
            if let Ok(session) = start(accepted) {
                pairs(forward, session).await;
            }
        }
        Upgrade::WebSocket(protocol, _) => channels(forward, accepted, protocol).await,
    }
}

/// SPDY directly over a connection.
pub(super) fn start(accepted: Accepted) -> Result<Session, super::spdy::Error> {
    let Accepted { socket, early, probe, activity } = accepted;
    match socket {
        Socket::Plain(stream) => {
            let (reader, writer) = stream.into_split();
            Session::start(Box::new(reader), Box::new(writer), early, probe, activity)
        }
        tls @ Socket::Tls(_) => {
            let (reader, writer) = tokio::io::split(tls);
            Session::start(Box::new(reader), Box::new(writer), early, probe, activity)
        }
    }
}

/// The streams of a connection that came so far.
struct Half {
    stream: Stream,
    since: Instant,
}

/// Each connection is a pair of streams with one request id.
async fn pairs(forward: Arc<Forward>, mut session: Session) {
    let mut waiting: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let oldest = waiting.values().map(|half| half.since + PAIR).min();
        tokio::select! {
            stream = session.accept() => {
                let Some(stream) = stream else { break };
                // One that is dropped is reset.
                let Some(label) = Label::read(&stream) else { continue };
                match waiting.remove(&label.request) {
                    Some(half) if is_data(&half.stream) != label.data => {
                        let (data, error) =
                            if label.data { (stream, half.stream) } else { (half.stream, stream) };
                        connections.spawn(one(Arc::clone(&forward), label.port, data, error));
                    }
                    Some(twice) => {
                        waiting.insert(label.request, twice);
                    }
                    None => {
                        let since = Instant::now();
                        waiting.insert(label.request, Half { stream, since });
                    }
                }
            }
            Some(_ended) = connections.join_next() => {}
            () = until(oldest) => waiting.retain(|_, half| half.since.elapsed() < PAIR),
        }
    }
    drop(connections);
    session.close().await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a stream's headers say.
struct Label {
    request: String,
    port: u16,
    data: bool,
}

impl Label {
    fn read(stream: &Stream) -> Option<Self> {
        let port = stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        let data = match stream.headers.get("streamType")? {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        // Old clients name none; they open the error stream and then the one for data.
        let request = stream.headers.get("requestID").map_or_else(
            || format!("stream {}", if data { stream.id.saturating_sub(2) } else { stream.id }),
            str::to_owned,
        );
        Some(Self { request, port, data })
    }
}

fn is_data(stream: &Stream) -> bool {
    stream.headers.get("streamType") == Some("data")
}

async fn one(forward: Arc<Forward>, port: u16, data: Stream, error: Stream) {
    connect_and_pump(&forward, port, data.input, data.output, error.output).await;
}

/// Each port is a pair of channels, connected at once; each begins with its port.
async fn channels(forward: Arc<Forward>, accepted: Accepted, protocol: Option<&'static str>) {
    let readable: Vec<bool> = forward.ports.iter().flat_map(|_| [true, false]).collect();
    let codec = negotiate::codec(protocol);
    let (channels, inputs) = Channels::start(accepted, codec, &readable).await;
    let mut presence = channels.presence();
    let mut connections = JoinSet::new();
    for (index, (port, input)) in forward.ports.iter().copied().zip(inputs).enumerate() {
        let Ok(number) = u8::try_from(index * 2) else { break };
        let (mut data, mut error) = (channels.output(number), channels.output(number + 1));
        let forward = Arc::clone(&forward);
        connections.spawn(async move {
            for output in [&mut data, &mut error] {
                if output.send_bytes(&port.to_le_bytes()).await.is_err() {
                    return;
                }
            }
            connect_and_pump(&forward, port, input, data, error).await;
        });
    }
    tokio::select! {
        () = presence.ended() => {}
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
    drop(connections);
    channels.close().await;
}

async fn connect_and_pump(
    forward: &Forward,
    port: u16,
    input: Input,
    mut data: Output,
    mut error: Output,
) {
    match connect(forward, port).await {
        Ok(socket) => {
            let lost = data.lost();
            tokio::select! {
                () = pump(socket, input, &mut data, &mut error) => {}
                () = lost => {}
            }
        }
        Err(why) => {
            let pod = &forward.pod;
            tracing::info!(%pod, port, error = %why, "a port cannot be forwarded");
            let text = format!("error forwarding port {port} to pod {pod}: {why}");
            let _gone = error.send_bytes(text.as_bytes()).await;
        }
    }
    data.finish().await;
    error.finish().await;
}

async fn connect(forward: &Forward, port: u16) -> io::Result<TcpStream> {
    let limit = || io::Error::new(io::ErrorKind::TimedOut, "the connection takes too long");
    let tried = tokio::time::timeout(CONNECT, async {
        let (v4, v6) = netns::sockets(forward.netns.as_deref()).await?;
        match (v4.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await, v6) {
            (Err(first), Some(v6)) => {
                let second = v6.connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await;
                second.map_err(|_| first)
            }
            (first, _) => first,
        }
    });
    tried.await.unwrap_or_else(|_| Err(limit()))
}

/// Until both directions have ended, each by itself.
async fn pump(socket: TcpStream, mut input: Input, data: &mut Output, error: &mut Output) {
    let (mut from, mut to) = socket.into_split();
    let halves = data.ends_by_halves();
    let up = async {
        let mut open = true;
        // What the pod takes no more is dropped, so that it holds up nobody.
        while let Some(piece) = input.next().await {
            open = open && to.write_all(&piece).await.is_ok();
        }
        let _closed = to.shutdown().await;
    };
    let down = async {
        loop {
            if from.readable().await.is_err() {
                break;
            }
            let mut piece = Vec::with_capacity(Output::HEADROOM + PIECE);
            piece.resize(Output::HEADROOM, 0);
            match from.read_buf(&mut piece).await {
                Ok(count) if count > 0 => {
                    if data.send(piece).await.is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        data.finish().await;
        // Clients wait for this before they close their own end.
        error.finish().await;
    };
    if halves {
        tokio::join!(up, down);
    } else {
        // A client that cannot end its half is done when the pod is.
        tokio::select! {
            () = down => {}
            () = async { up.await; std::future::pending().await } => {}
        }
    }
}

/// What is read from a pod at a time.
const PIECE: usize = 4 * READ;
