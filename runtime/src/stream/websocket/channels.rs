//! Numbered channels over one WebSocket connection.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::open;
use crate::stream::channel::{
    Activity, Delivered, Gone, Input, Output, Presence, Probe, QUEUE, READ, deliver,
};
use crate::stream::server::{Accepted, Socket};

/// Messages that wait for the socket.
const MESSAGES: usize = 4;
/// How long the client has to take the last bytes and to close.
const LINGER: Duration = Duration::from_secs(10);
/// Ends a channel, from v5 on.
const CLOSE: u8 = 255;

/// How a subprotocol writes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream) struct Codec {
    /// Text: a digit for the channel, then base64. Otherwise as the bytes are.
    pub(in crate::stream) base64: bool,
    /// The client ends a channel by 255 and its number.
    pub(in crate::stream) close: bool,
}

/// Sends on one channel.
#[derive(Debug)]
pub(in crate::stream) struct Sender {
    messages: mpsc::Sender<Message>,
    channel: u8,
    base64: bool,
}

impl Sender {
    /// Sends what follows the headroom.
    pub(in crate::stream) async fn send(&mut self, mut piece: Vec<u8>) -> Result<(), Gone> {
        let message = if self.base64 {
            let mut text = String::from(char::from(b'0'.saturating_add(self.channel)));
            STANDARD.encode_string(piece.get(Output::HEADROOM..).unwrap_or_default(), &mut text);
            Message::Text(text.into())
        } else {
            if let Some(first) = piece.first_mut() {
                *first = self.channel;
            }
            Message::Binary(piece.into())
        };
        self.messages.send(message).await.map_err(|_| Gone)
    }
}

/// A connection that is served. Dropped, it is cut off.
pub(in crate::stream) struct Channels {
    messages: mpsc::Sender<Message>,
    codec: Codec,
    presence: Presence,
    reader: JoinSet<()>,
    writer: JoinSet<()>,
}

impl Channels {
    /// Serves a connection. `readable`: for each channel whether the client sends on it. The
    /// inputs are those, in their order.
    pub(in crate::stream) async fn start(
        accepted: Accepted,
        codec: Codec,
        readable: &[bool],
    ) -> (Self, Vec<Input>) {
        let Accepted { socket, early, probe, activity } = accepted;
        let (sink, stream) = open(socket, early.into()).await.split();
        let (tell, presence) = Presence::new();
        let (messages, to_send) = mpsc::channel(MESSAGES);
        let mut inputs = Vec::new();
        let mut senders = Vec::new();
        for wanted in readable {
            let (sender, pieces) = mpsc::channel(QUEUE);
            senders.push(wanted.then_some(sender));
            if *wanted {
                inputs.push(Input::new(pieces, None));
            }
        }
        let demux = Demux { senders, codec, probe, activity: Arc::clone(&activity) };
        let (mut reader, mut writer) = (JoinSet::new(), JoinSet::new());
        reader.spawn(demux.run(stream, tell.clone()));
        writer.spawn(write(sink, to_send, activity, tell));
        (Self { messages, codec, presence, reader, writer }, inputs)
    }

    /// Where the client reads a channel.
    pub(in crate::stream) fn output(&self, channel: u8) -> Output {
        let messages = self.messages.clone();
        Output::WebSocket(Sender { messages, channel, base64: self.codec.base64 })
    }

    /// Tells when the client is gone.
    pub(in crate::stream) fn presence(&self) -> Presence {
        self.presence.clone()
    }

    /// Ends the connection: what was sent is delivered, then the client has a while to close.
    pub(in crate::stream) async fn close(mut self) {
        let last = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let ended = async {
            if self.messages.send(Message::Close(Some(last))).await.is_ok() {
                while self.writer.join_next().await.is_some() {}
                while self.reader.join_next().await.is_some() {}
            }
        };
        let _cut_off = tokio::time::timeout(LINGER, ended).await;
    }
}

async fn write(
    mut sink: SplitSink<WebSocketStream<Socket>, Message>,
    mut messages: mpsc::Receiver<Message>,
    activity: Arc<Activity>,
    tell: watch::Sender<bool>,
) {
    while let Some(message) = messages.recv().await {
        let last = message.is_close();
        let mut sent = sink.feed(message).await;
        if sent.is_ok() && (messages.is_empty() || last) {
            sent = sink.flush().await;
        }
        if sent.is_err() {
            tell.send_replace(true);
            return;
        }
        activity.touch();
        if last {
            return;
        }
    }
}

/// What reads a connection and takes it apart.
struct Demux {
    senders: Vec<Option<mpsc::Sender<Bytes>>>,
    codec: Codec,
    probe: Probe,
    activity: Arc<Activity>,
}

impl Demux {
    async fn run(
        mut self,
        mut stream: SplitStream<WebSocketStream<Socket>>,
        tell: watch::Sender<bool>,
    ) {
        while let Some(Ok(message)) = stream.next().await {
            self.activity.touch();
            let taken = match message {
                Message::Binary(bytes) => self.take(bytes).await,
                Message::Text(text) => self.take(text.into()).await,
                // Pings are answered by the library.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
                // Its answer goes out when the stream is polled again, which then ends.
                Message::Close(_) => Ok(()),
            };
            if taken.is_err() {
                break;
            }
        }
        tell.send_replace(true);
    }

    async fn take(&mut self, mut message: Bytes) -> Result<(), Gone> {
        if message.is_empty() {
            return Ok(());
        }
        let first = message.split_to(1).first().copied().unwrap_or_default();
        if self.codec.close && first == CLOSE {
            let [channel] = message.as_ref() else { return Err(Gone) };
            let ended = self.senders.get_mut(usize::from(*channel)).ok_or(Gone)?;
            *ended = None;
            return Ok(());
        }
        let channel = if self.codec.base64 { first.wrapping_sub(b'0') } else { first };
        // What is sent where nobody reads is dropped, as Kubernetes' own server does.
        let Some(Some(sender)) = self.senders.get(usize::from(channel)) else { return Ok(()) };
        if self.codec.base64 {
            message = STANDARD.decode(&message).map_err(|_| Gone)?.into();
        }
        // A message may be long; what waits is bounded by pieces.
        while !message.is_empty() {
            let piece = message.split_to(message.len().min(READ));
            if deliver(sender, piece, &self.probe).await? == Delivered::Unwanted {
                break;
            }
        }
        Ok(())
    }
}
