//! WebSocket (RFC 6455), the client's side.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail, ensure};

use super::upgrade;

/// A connection.
pub struct WebSocket {
    socket: TcpStream,
}

impl WebSocket {
    /// With this subprotocol.
    pub fn open(mut socket: TcpStream, path: &str, protocol: Option<&str>) -> Result<Self> {
        let mut headers = vec![
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            // The example of RFC 6455, 1.3.
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        headers.extend(protocol.map(|protocol| ("Sec-WebSocket-Protocol", protocol)));
        let answer = upgrade(&mut socket, path, &headers)?;
        ensure!(answer.code == 101, "{}", answer.head);
        let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
        ensure!(answer.head.contains(accept), "{}", answer.head);
        if let Some(protocol) = protocol {
            let named = format!("sec-websocket-protocol: {}\r\n", protocol.to_ascii_lowercase());
            ensure!(answer.head.contains(&named), "{}", answer.head);
        }
        Ok(Self { socket })
    }

    /// Sends a binary message.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.frame(0x82, message)?)
    }

    /// Sends a text message.
    pub fn send_text(&mut self, message: &str) -> Result<()> {
        Ok(self.frame(0x81, message.as_bytes())?)
    }

    fn frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            medium @ 126..65536 => {
                frame.push(0x80 | 126);
                frame.extend((medium as u16).to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.socket.write_all(&frame)
    }

    /// The next message. `None`: the connection is closed.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut head = [0; 2];
            match self.socket.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            ensure!(head[1] & 0x80 == 0, "a server does not mask");
            let length = match head[1] {
                126 => u64::from(u16::from_be_bytes(self.bytes()?)),
                127 => u64::from_be_bytes(self.bytes()?),
                short => u64::from(short),
            };
            let mut payload = vec![0; length as usize];
            self.socket.read_exact(&mut payload)?;
            match head[0] {
                0x81 | 0x82 => return Ok(Some(payload)),
                0x88 => {
                    // The other side may be gone before it hears the answer.
                    let _closed = self.frame(0x88, &payload);
                    return Ok(None);
                }
                0x89 => self.frame(0x8a, &payload)?,
                0x8a => {}
                other => bail!("a frame {other:x}"),
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Its messages as one stream of bytes.
    #[must_use]
    pub fn tunnel(self) -> Tunnel {
        Tunnel { socket: self, rest: Vec::new() }
    }
}

/// Bytes through messages.
pub struct Tunnel {
    socket: WebSocket,
    rest: Vec<u8>,
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.socket.next().map_err(io::Error::other)? {
                Some(message) => self.rest = message,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.frame(0x82, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
