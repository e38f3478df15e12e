//! One client: what it sent so far, what it has not yet taken.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::sock;
use rustix::io::{self, Errno};

use super::frame::{Decoder, Frame};

/// What is read per wake-up. Level-triggered polling brings the rest, in turn with the others.
const READ_LEN: usize = 4 << 10;
/// A client that lets this much pile up is dead to us. More than two of the longest replies.
const MAX_QUEUED: usize = 64 << 20;

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Closed;

#[derive(Debug)]
pub(crate) struct Conn {
    socket: OwnedFd,
    decoder: Decoder,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Bytes of the queue's front that are written.
    written: usize,
    queued: usize,
}

impl Conn {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let (decoder, queue) = (Decoder::default(), VecDeque::new());
        Self { socket, decoder, queue, written: 0, queued: 0 }
    }

    /// Reads once and gives what became whole. A client that shuts down its sending side has
    /// gone: clients of ttrpc keep theirs open as long as they wait for an answer.
    pub(crate) fn receive(&mut self, frames: &mut Vec<Frame>) -> Result<(), Closed> {
        let mut buffer = [0_u8; READ_LEN];
        let mut input = match io::read(&self.socket, &mut buffer) {
            Ok(0) => return Err(Closed),
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(_) => return Err(Closed),
        };
        while let Some(frame) = self.decoder.feed(&mut input) {
            frames.push(frame);
        }
        Ok(())
    }

    /// Queues a frame, with descriptors for its first byte, and writes what the socket takes.
    pub(crate) fn send(&mut self, frame: Vec<u8>, fds: Vec<OwnedFd>) -> Result<(), Closed> {
        self.queued += frame.len();
        self.queue.push_back((frame, fds));
        if self.queued > MAX_QUEUED {
            return Err(Closed);
        }
        self.flush()
    }

    /// Writes what the socket takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        while let Some((front, fds)) = self.queue.front_mut() {
            let rest = front.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                self.queue.pop_front();
                self.written = 0;
                continue;
            }
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let written = sock::send_some(self.socket.as_fd(), rest, &borrowed);
            match written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
                Ok(count) => {
                    fds.clear();
                    self.written += count;
                    self.queued = self.queued.saturating_sub(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }

    /// Something waits for the socket to take it.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
