//! WebSocket: messages whose first byte names a channel, or SPDY's bytes in messages.
//!
//! What the channels mean is said by the subprotocol (`stream::negotiate`): bytes as they are or in
//! base64, and from v5 on the client may end a channel by 255 and its number.

mod channels;
mod tunnel;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::server::Socket;

pub(super) use channels::{Channels, Codec, Sender};
pub(super) use tunnel::tunnel;

/// The longest message that is taken. Clients send what a user typed or a file in parts.
const MAX_MESSAGE: usize = 16 << 20;

/// A socket after the handshake. `early`: what came with the request.
async fn open(socket: Socket, early: Vec<u8>) -> WebSocketStream<Socket> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(socket, early, Role::Server, Some(config)).await
}
