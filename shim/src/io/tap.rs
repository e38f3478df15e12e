//! One who reads a container's output along with its log, and must never hold it up.
//!
//! What a reader's pipe does not take is kept for it, up to a limit; a reader that stays behind
//! further gets no more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// What is kept for a reader whose pipe is full. Enough for a burst of the fastest writers.
const KEPT: usize = 8 << 20;

/// Where a reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It has all there is.
    UpToDate,
    /// Its pipe is full; more waits here.
    Behind,
    /// It hung up.
    Gone,
    /// It was too slow.
    TooSlow,
}

/// A reader.
#[derive(Debug)]
pub(crate) struct Tap {
    /// Names it.
    pub(crate) number: u64,
    /// Its pipe is polled for room.
    pub(crate) polled: bool,
    pipe: OwnedFd,
    kept: Vec<u8>,
    state: State,
}

impl Tap {
    /// Writes to `pipe`, which must be non-blocking.
    pub(crate) fn new(number: u64, pipe: OwnedFd) -> Self {
        Self { number, polled: false, pipe, kept: Vec::new(), state: State::UpToDate }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Passes bytes on, or keeps them.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.state == State::UpToDate && !rest.is_empty() {
            match rustix::io::write(&self.pipe, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.state = State::Behind,
                Err(_) => self.state = State::Gone,
            }
        }
        if self.state == State::Behind {
            if self.kept.len() + rest.len() > KEPT {
                self.state = State::TooSlow;
                self.kept = Vec::new();
            } else {
                self.kept.extend_from_slice(rest);
            }
        }
    }

    /// Its pipe has room, or broke.
    pub(crate) fn flush(&mut self) {
        if self.state == State::Behind {
            self.state = State::UpToDate;
            let kept = std::mem::take(&mut self.kept);
            self.push(&kept);
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn tap() -> (File, Tap) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (read.into(), Tap::new(1, write))
    }

    #[test]
    fn one_that_is_behind_gets_all_in_order() {
        let (mut read, mut tap) = tap();
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for part in sent.chunks(70_000) {
            tap.push(part);
        }
        assert_eq!(tap.state(), State::Behind);
        let mut got = Vec::new();
        let mut buffer = [0; 50_000];
        while got.len() < sent.len() {
            let count = read.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            tap.flush();
        }
        assert_eq!(got, sent);
        assert_eq!(tap.state(), State::UpToDate);
    }

    #[test]
    fn one_that_stays_behind_is_given_up_with_what_was_kept() {
        let (_read, mut tap) = tap();
        for _ in 0..=KEPT / 1_000_000 {
            tap.push(&vec![0; 1_000_000]);
        }
        assert_eq!((tap.state(), tap.kept.capacity()), (State::TooSlow, 0));
        tap.flush();
        assert_eq!(tap.state(), State::TooSlow);
    }

    #[test]
    fn one_that_hung_up_is_seen() {
        let (read, mut tap) = tap();
        tap.push(b"x");
        drop(read);
        tap.push(b"x");
        assert_eq!(tap.state(), State::Gone);
    }
}
