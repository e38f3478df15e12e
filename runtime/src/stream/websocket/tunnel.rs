//! A stream of bytes through binary messages, however these are cut: SPDY over WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::open;
use crate::stream::server::Socket;

/// The longest message that is sent.
const MAX_SENT: usize = 256 << 10;

/// Both halves of a tunnel.
pub(in crate::stream) async fn tunnel(socket: Socket, early: Bytes) -> (Reader, Writer) {
    let (sink, stream) = open(socket, early.into()).await.split();
    (Reader { stream, message: Bytes::new() }, Writer { sink })
}

/// The bytes of the messages that come.
pub(in crate::stream) struct Reader {
    stream: SplitStream<WebSocketStream<Socket>>,
    message: Bytes,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.message.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.message = bytes,
                Some(Ok(Message::Text(_))) => {
                    let why = "a text message in a tunnel";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.message.len().min(buf.remaining());
        buf.put_slice(self.message.get(..count).unwrap_or_default());
        self.message.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Sends bytes as messages.
pub(in crate::stream) struct Writer {
    sink: SplitSink<WebSocketStream<Socket>, Message>,
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut sink = Pin::new(&mut self.sink);
        ready!(sink.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
        let count = bytes.len().min(MAX_SENT);
        let message = Bytes::copy_from_slice(bytes.get(..count).unwrap_or_default());
        sink.start_send(Message::Binary(message)).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sink).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sink).poll_close(cx).map_err(io::Error::other)
    }
}
