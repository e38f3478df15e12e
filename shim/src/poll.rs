//! The poll loop's ground: one epoll instance, tokens and timers.
//!
//! A token names who is woken. Numbers are never used twice in a shim's life, so an event that
//! was already fetched for something closed meanwhile finds nobody and is dropped.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io;

pub(crate) use rustix::event::epoll::EventFlags as Interest;

/// Who is woken by a descriptor or a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Token {
    /// The listening socket.
    Listener,
    /// A connection of the ttrpc server.
    Connection(u64),
    /// A process descriptor: a container's first process, an exec's, the pod's init.
    Process(u64),
    /// A container that is being created or started.
    Launch(u64),
    /// An output stream of a process.
    Pump(u64),
    /// A deadline or retry of a process.
    Deadline(u64),
    /// Housekeeping of the whole shim.
    House,
    /// Signals sent to the shim.
    Signals,
    /// A reader of a container's output that was behind.
    Tap(u64),
}

impl Token {
    const KIND_BITS: u32 = 4;

    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Connection(n) => (1, n),
            Self::Process(n) => (2, n),
            Self::Launch(n) => (3, n),
            Self::Pump(n) => (4, n),
            Self::Deadline(n) => (5, n),
            Self::House => (6, 0),
            Self::Signals => (7, 0),
            Self::Tap(n) => (8, n),
        };
        (number << Self::KIND_BITS) | kind
    }

    fn decode(data: u64) -> Self {
        let number = data >> Self::KIND_BITS;
        match data & ((1 << Self::KIND_BITS) - 1) {
            0 => Self::Listener,
            1 => Self::Connection(number),
            2 => Self::Process(number),
            3 => Self::Launch(number),
            4 => Self::Pump(number),
            5 => Self::Deadline(number),
            6 => Self::House,
            7 => Self::Signals,
            _ => Self::Tap(number),
        }
    }
}

/// The epoll instance and the timers.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
    timers: BTreeMap<(Instant, Token), ()>,
    last_number: u64,
}

impl Poll {
    /// Makes an empty one. Errors: `epoll_create1(2)`.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, timers: BTreeMap::new(), last_number: 0 })
    }

    /// A number that no token of this shim had before.
    pub(crate) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Wakes `token` when `fd` is ready for `interest`.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest)
    }

    /// Replaces the interest of an added descriptor.
    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest)
    }

    /// Forgets a descriptor. To be called before it is closed: a copy of it elsewhere (in a child
    /// between fork and exec) would keep it registered.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Only a descriptor that was never added can fail here, which asks for nothing.
        let _not_added = epoll::delete(&self.epoll, fd);
    }

    /// Wakes `token` once at `at`.
    pub(crate) fn set_timer(&mut self, at: Instant, token: Token) {
        self.timers.insert((at, token), ());
    }

    /// Drops every timer of `token`.
    pub(crate) fn clear_timers(&mut self, token: Token) {
        self.timers.retain(|(_, owner), ()| *owner != token);
    }

    /// Sleeps until something is due and puts who is to be woken into `woken` (emptied first):
    /// ready descriptors with their events, then due timers with no events.
    pub(crate) fn wait(&mut self, woken: &mut Vec<(Token, Interest)>) -> io::Result<()> {
        woken.clear();
        let timeout = self
            .timers
            .keys()
            .next()
            .map(|(at, _)| timespec(at.saturating_duration_since(Instant::now())));
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 32];
        let ready = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        woken.extend(ready.iter().map(|e| (Token::decode(e.data.u64()), e.flags)));
        let now = Instant::now();
        while let Some(((at, token), ())) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, token), ());
                break;
            }
            woken.push((token, Interest::empty()));
        }
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        let tokens = [
            Token::Listener,
            Token::Connection(1),
            Token::Process(u64::from(u32::MAX)),
            Token::Launch(3),
            Token::Pump(4),
            Token::Deadline(5),
            Token::House,
            Token::Signals,
            Token::Tap(u64::MAX >> Token::KIND_BITS),
        ];
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn a_ready_descriptor_and_a_due_timer_are_both_woken() {
        let mut poll = Poll::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        poll.add(&reader, Token::Pump(7), Interest::IN).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        poll.set_timer(Instant::now(), Token::House);
        poll.set_timer(Instant::now() + Duration::from_secs(3600), Token::Deadline(1));
        let mut woken = Vec::new();
        poll.wait(&mut woken).unwrap();
        assert_eq!(woken, [(Token::Pump(7), Interest::IN), (Token::House, Interest::empty())]);
    }

    #[test]
    fn a_cleared_timer_and_a_removed_descriptor_wake_nobody() {
        let mut poll = Poll::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        poll.add(&reader, Token::Pump(7), Interest::IN).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        poll.remove(&reader);
        poll.set_timer(Instant::now(), Token::Deadline(1));
        poll.clear_timers(Token::Deadline(1));
        poll.set_timer(Instant::now() + Duration::from_millis(1), Token::House);
        let mut woken = Vec::new();
        while woken.is_empty() {
            poll.wait(&mut woken).unwrap();
        }
        assert_eq!(woken, [(Token::House, Interest::empty())]);
    }
}
