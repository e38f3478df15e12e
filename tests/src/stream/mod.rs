//! Clients of the streaming server, written from the protocols' documents and from nothing of ours.
//!
//! - [`spdy`], [`websocket`]: the two protocols, blocking.
//! - [`Remote`]: an exec or attach over either, by the names of its channels.
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::large_enum_variant,
    clippy::should_implement_trait,
    reason = "clients in tests: what cannot be fails the test"
)]

pub mod spdy;
pub mod websocket;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::node::Node;
use spdy::Spdy;
use websocket::WebSocket;

/// No answer may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The channels of an exec, as WebSocket numbers them.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// Errors and, at the end, the status.
pub const ERROR: u8 = 3;
/// Sizes of the terminal.
pub const RESIZE: u8 = 4;

const NAMES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];

/// A URL's address and path.
pub fn split_url(url: &str) -> Result<(SocketAddr, &str)> {
    let rest = url.split_once("://").context("a scheme")?.1;
    let (address, _) = rest.split_once('/').context("a path")?;
    Ok((address.parse()?, &rest[address.len()..]))
}

/// What an upgrade was answered with.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub code: u16,
    /// Lines of the head, in small letters.
    pub head: String,
}

/// Asks to turn a connection into something else.
pub fn upgrade(socket: &mut TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut text = format!("POST {path} HTTP/1.1\r\nHost: stream\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    socket.write_all((text + "\r\n").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        ensure!(socket.read(&mut byte)? == 1, "the answer ends early");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let code = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok(Answer { code, head })
}

enum Wire {
    Spdy(Spdy, [u32; 5]),
    WebSocket(WebSocket),
}

/// An exec or attach.
pub struct Remote {
    wire: Wire,
    /// What came on each channel so far.
    pub got: [Vec<u8>; 5],
    ended: [bool; 5],
    over: bool,
}

impl Remote {
    /// Over SPDY in this version of the protocol; opens these channels and the one for errors.
    pub fn spdy(node: &Node, url: &str, version: &str, channels: &[u8]) -> Result<Self> {
        let (address, path) = split_url(url)?;
        let mut spdy = Spdy::open(node.host().connect(address)?, path, &[version])?;
        let mut streams = [0; 5];
        for channel in [ERROR].iter().chain(channels) {
            let channel = usize::from(*channel);
            streams[channel] = spdy.stream(&[("streamtype", NAMES[channel])])?;
        }
        Ok(Self::new(Wire::Spdy(spdy, streams)))
    }

    /// Over WebSocket in this version of the protocol.
    pub fn websocket(node: &Node, url: &str, version: &str) -> Result<Self> {
        let (address, path) = split_url(url)?;
        let socket = WebSocket::open(node.host().connect(address)?, path, Some(version))?;
        Ok(Self::new(Wire::WebSocket(socket)))
    }

    fn new(wire: Wire) -> Self {
        Self { wire, got: Default::default(), ended: [false; 5], over: false }
    }

    /// Sends on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        match &mut self.wire {
            Wire::Spdy(spdy, streams) => spdy.data(streams[usize::from(channel)], bytes, false),
            Wire::WebSocket(socket) => socket.send(&[&[channel], bytes].concat()),
        }
    }

    /// Ends a channel.
    pub fn end(&mut self, channel: u8) -> Result<()> {
        match &mut self.wire {
            Wire::Spdy(spdy, streams) => spdy.data(streams[usize::from(channel)], b"", true),
            Wire::WebSocket(socket) => socket.send(&[255, channel]),
        }
    }

    /// Takes what comes next; false: nothing will.
    pub fn step(&mut self) -> Result<bool> {
        if self.over {
            return Ok(false);
        }
        match &mut self.wire {
            Wire::Spdy(spdy, streams) => match spdy.next()? {
                Some(spdy::Event::Data { stream, bytes, fin }) => {
                    let channel = streams.iter().position(|of| *of == stream);
                    let channel = channel.context("data of a stream that is ours")?;
                    self.got[channel].extend(bytes);
                    self.ended[channel] |= fin;
                }
                Some(spdy::Event::Reset { stream, .. }) => {
                    if let Some(channel) = streams.iter().position(|of| *of == stream) {
                        self.ended[channel] = true;
                    }
                }
                Some(_) => {}
                None => self.over = true,
            },
            Wire::WebSocket(socket) => match socket.next()? {
                Some(message) => {
                    let (channel, bytes) = message.split_first().context("a channel")?;
                    let channel = usize::from(*channel);
                    self.got.get_mut(channel).context("a channel")?.extend(bytes);
                }
                None => self.over = true,
            },
        }
        Ok(!self.over)
    }

    /// Waits until a channel carried this text.
    pub fn until(&mut self, channel: u8, text: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let got = String::from_utf8_lossy(&self.got[usize::from(channel)]).into_owned();
            if got.contains(text) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{text:?} does not come: {got:?}");
            ensure!(self.step()?, "ended without {text:?}: {got:?} {:?}", self.error());
        }
    }

    /// Takes all that comes.
    pub fn finish(&mut self) -> Result<()> {
        while self.step()? {}
        Ok(())
    }

    /// Text of a channel.
    #[must_use]
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.got[usize::from(channel)]).into_owned()
    }

    /// What the error channel said.
    #[must_use]
    pub fn error(&self) -> String {
        self.text(ERROR)
    }

    /// Whether a channel's end came (SPDY only).
    #[must_use]
    pub fn has_ended(&self, channel: u8) -> bool {
        self.ended[usize::from(channel)]
    }

    /// The exit code that the status tells.
    pub fn exit_code(&self) -> Result<i32> {
        let status: Value = serde_json::from_str(&self.error()).context(self.error())?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        if status["reason"] != "NonZeroExitCode" {
            bail!("{status}");
        }
        let cause = &status["details"]["causes"][0];
        ensure!(cause["reason"] == "ExitCode", "{status}");
        Ok(cause["message"].as_str().context("a code")?.parse()?)
    }
}
