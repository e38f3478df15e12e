//! The listening socket and its connections.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::conn::{Closed, Conn};
use super::frame::{self, Frame, MAX_PAYLOAD};
use super::message::{Request, Response, RpcStatus};
use super::status::{Code, Status};
use crate::poll::{Interest, Poll, Token};

/// More clients than any daemon with its tools has; the rest waits in the listen queue's place.
const MAX_CONNECTIONS: usize = 256;

/// When a client is looked for again after there was no room for one.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Where the answer of one call goes. Answering a client that has gone is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) connection: u64,
    stream: u32,
}

/// A call that came in.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) reply_to: ReplyTo,
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
}

/// The server's sockets.
#[derive(Debug)]
pub(crate) struct Server {
    listener: OwnedFd,
    connections: BTreeMap<u64, Conn>,
    /// Those that closed since somebody asked.
    closed: Vec<u64>,
}

impl Server {
    /// Serves on a listening, non-blocking socket. Errors: `epoll_ctl(2)`.
    pub(crate) fn new(listener: OwnedFd, poll: &Poll) -> rustix::io::Result<Self> {
        poll.add(&listener, Token::Listener, Interest::IN)?;
        Ok(Self { listener, connections: BTreeMap::new(), closed: Vec::new() })
    }

    /// Takes the next client in. One per wake-up: the socket stays ready while more wait.
    pub(crate) fn accept(&mut self, poll: &mut Poll, interest: Interest) {
        if interest.is_empty() {
            let _polled = poll.modify(&self.listener, Token::Listener, Interest::IN);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => {
                // No descriptor or memory is free. The socket stays ready, so look again later.
                crate::log::say(format_args!("accept a client: {error}"));
                let _polled = poll.modify(&self.listener, Token::Listener, Interest::empty());
                poll.set_timer(Instant::now() + ACCEPT_AGAIN, Token::Listener);
                return;
            }
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            crate::log::say(format_args!("a client is turned away: {MAX_CONNECTIONS} are served"));
            return;
        }
        let number = poll.number();
        match poll.add(&socket, Token::Connection(number), Interest::IN) {
            Ok(()) => {
                self.connections.insert(number, Conn::new(socket));
            }
            Err(error) => crate::log::say(format_args!("poll a client: {error}")),
        }
    }

    /// Reads and writes what connection `number` is ready for; whole calls go to `calls`.
    pub(crate) fn ready(
        &mut self,
        poll: &Poll,
        number: u64,
        interest: Interest,
        calls: &mut Vec<Call>,
    ) {
        let Some(conn) = self.connections.get_mut(&number) else { return };
        let mut frames = Vec::new();
        let mut open = Ok(());
        if interest.contains(Interest::OUT) {
            open = conn.flush();
        }
        if interest.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
            open = open.and(conn.receive(&mut frames));
        }
        self.settle(poll, number, open);
        for frame in frames {
            self.take(poll, number, frame, calls);
        }
    }

    fn take(&mut self, poll: &Poll, connection: u64, frame: Frame, calls: &mut Vec<Call>) {
        let (stream, refusal) = match frame {
            Frame::Request { stream, payload } => match Request::decode(&payload[..]) {
                Ok(Request { service, method, payload }) => {
                    let reply_to = ReplyTo { connection, stream };
                    calls.push(Call { reply_to, service, method, payload });
                    return;
                }
                Err(error) => (stream, Status::invalid(format!("malformed request: {error}"))),
            },
            Frame::Oversize { stream, length } => (stream, oversize("request", length)),
            Frame::Unsupported { stream } => {
                (stream, Status::new(Code::Unimplemented, "streams are not supported"))
            }
        };
        self.reply(poll, ReplyTo { connection, stream }, Err(refusal));
    }

    /// The connections that closed since this was asked last.
    pub(crate) fn take_closed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.closed)
    }

    /// Answers a call.
    pub(crate) fn reply(&mut self, poll: &Poll, to: ReplyTo, answer: Result<Vec<u8>, Status>) {
        self.reply_with(poll, to, answer, Vec::new());
    }

    /// Answers a call and hands over descriptors. They are closed here, whoever takes them.
    pub(crate) fn reply_with(
        &mut self,
        poll: &Poll,
        to: ReplyTo,
        answer: Result<Vec<u8>, Status>,
        fds: Vec<OwnedFd>,
    ) {
        let Some(conn) = self.connections.get_mut(&to.connection) else { return };
        let frame = frame::encode_response(to.stream, &response(answer)).or_else(|length| {
            let refusal = response(Err(oversize("response", length)));
            frame::encode_response(to.stream, &refusal)
        });
        let open = frame.map_err(|_| Closed).and_then(|frame| conn.send(frame, fds));
        self.settle(poll, to.connection, open);
    }

    /// Sets what a connection is polled for after something was done with it.
    fn settle(&mut self, poll: &Poll, number: u64, open: Result<(), Closed>) {
        let Some(conn) = self.connections.get(&number) else { return };
        let interest = if conn.has_queued() { Interest::IN | Interest::OUT } else { Interest::IN };
        let polled = open.map(|()| poll.modify(conn, Token::Connection(number), interest));
        if !matches!(polled, Ok(Ok(()))) {
            poll.remove(conn);
            self.connections.remove(&number);
            self.closed.push(number);
        }
    }
}

fn response(answer: Result<Vec<u8>, Status>) -> Response {
    match answer {
        Ok(payload) => Response { status: None, payload },
        Err(Status { code, message }) => {
            let status = RpcStatus { code: code as i32, message };
            Response { status: Some(status), payload: Vec::new() }
        }
    }
}

fn oversize(what: &str, length: usize) -> Status {
    let message = format!("{what} of {length} bytes is longer than {MAX_PAYLOAD}");
    Status::new(Code::ResourceExhausted, message)
}
