//! Streams in other hands. A caller of Exec or Attach has a connection of its own; on it come the
//! streams, once, and the end. While it is open it holds what was asked for: a command is killed
//! when it closes, a reader of a container's output is forgotten.
//!
//! ```text
//! Exec, Attach --> held --WaitStreams--> awaited --the end--> answered
//!                    +------the end--> told when asked
//!                    +------the connection closes--> killed, forgotten
//! ```

use std::os::fd::{AsFd, OwnedFd};

use berth_container::Stdio;

use crate::container::{Phase, output_pipe, set_nonblocking};
use crate::exec::{Caller, Opening};
use crate::io::lines::Stream;
use crate::io::pump::Pump;
use crate::io::tap::{State, Tap};
use crate::poll::{Interest, Token};
use crate::service::Reply;
use crate::shim::Shim;
use crate::ttrpc::{ReplyTo, Status};

/// Room in the pipe of one who reads along.
const PIPE_LEN: usize = 1 << 20;

/// Which descriptor is what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Stdin,
    Stdout,
    Stderr,
    Terminal,
}

/// Which streams a caller wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) terminal: bool,
}

/// What a caller is told at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) exit_code: u32,
    /// It read too slowly.
    pub(crate) dropped: bool,
}

/// What a connection holds.
#[derive(Debug)]
pub(crate) struct Leash {
    held: Held,
    waiter: Option<ReplyTo>,
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Held {
    Exec(u64),
    Attach { container: u64, taps: Vec<u64> },
}

impl Leash {
    fn new(held: Held) -> Self {
        Self { held, waiter: None, ending: None }
    }

    fn has_tap(&self, number: u64) -> bool {
        matches!(&self.held, Held::Attach { taps, .. } if taps.contains(&number))
    }
}

/// Our ends of a command's pipes, and its own.
type Pipes = (Vec<(StreamKind, OwnedFd)>, [Option<OwnedFd>; 3]);

fn pipes(wanted: Wanted) -> rustix::io::Result<Pipes> {
    let (mut ours, mut theirs) = (Vec::new(), [None, None, None]);
    let [stdin, stdout, stderr] = &mut theirs;
    if wanted.stdin && !wanted.terminal {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        ours.push((StreamKind::Stdin, write));
        *stdin = Some(read);
    }
    let outputs =
        [(wanted.stdout, StreamKind::Stdout, stdout), (wanted.stderr, StreamKind::Stderr, stderr)];
    for (is_wanted, kind, end) in outputs {
        if is_wanted && !wanted.terminal {
            let (read, write) = output_pipe()?;
            // Where the user's share of pipe memory is used up, the default size does.
            let _kept_small = rustix::pipe::fcntl_setpipe_size(&read, PIPE_LEN);
            ours.push((kind, read));
            *end = Some(write);
        }
    }
    Ok((ours, theirs))
}

impl Shim {
    /// Starts a command whose streams the caller gets. Answered when its program runs, or cannot.
    pub(crate) fn exec_open(
        &mut self,
        to: ReplyTo,
        container: &str,
        argv: Vec<String>,
        wanted: Wanted,
    ) -> Result<(), Status> {
        if argv.is_empty() {
            return Err(Status::invalid("argv: empty"));
        }
        self.check_unheld(to)?;
        let failed = |error| Status::internal(format!("exec: make a pipe: {error}"));
        let (ends, [stdin, stdout, stderr]) = pipes(wanted).map_err(failed)?;
        let stdio = Stdio {
            stdin: stdin.as_ref().map(AsFd::as_fd),
            stdout: stdout.as_ref().map(AsFd::as_fd),
            stderr: stderr.as_ref().map(AsFd::as_fd),
        };
        let connection = to.connection;
        let caller = Caller::Streams { connection, opening: Some(Opening { to, ends }) };
        let number = self.spawn_exec(container, argv, wanted.terminal, stdio, caller)?;
        self.leashes.insert(connection, Leash::new(Held::Exec(number)));
        if let Err(error) = self.poll_exec(number) {
            self.give_up_exec(number, &Status::internal(format!("exec: poll: {error}")));
        }
        Ok(())
    }

    /// Gives the caller what a running container writes from now on, and its input.
    pub(crate) fn attach(&mut self, to: ReplyTo, id: &str, wanted: Wanted) -> Result<(), Status> {
        self.check_unheld(to)?;
        let (number, container) = self.container_mut(id)?;
        if container.phase != Phase::Running {
            let state = container.phase.name();
            return Err(Status::precondition(format!("attach: container {id:?} is {state}")));
        }
        let failed = |error| Status::internal(format!("attach: {error}"));
        let mut ends = Vec::new();
        let (terminal, keeps) = (container.streams.terminal, !container.streams.stdin.is_empty());
        let once = container.streams.stdin.ends_with("once=1");
        if wanted.stdin && !terminal {
            let input = match &container.stdin {
                // With the only writing end goes the input's end.
                Some(_) if once => container.stdin.take(),
                Some(stdin) => Some(stdin.try_clone().map_err(failed)?),
                None => None,
            };
            ends.extend(input.map(|input| (StreamKind::Stdin, input)));
        }
        let mut taps = Vec::new();
        for pump in container.pumps().to_vec() {
            self.tap(pump, wanted, terminal && keeps, &mut ends, &mut taps).map_err(failed)?;
        }
        self.leashes.insert(to.connection, Leash::new(Held::Attach { container: number, taps }));
        let (kinds, fds) = ends.into_iter().unzip();
        self.reply_with(to, Reply::Opened(kinds), fds);
        Ok(())
    }

    /// Adds what one of a container's outputs gives.
    fn tap(
        &mut self,
        pump: u64,
        wanted: Wanted,
        typed: bool,
        ends: &mut Vec<(StreamKind, OwnedFd)>,
        taps: &mut Vec<u64>,
    ) -> std::io::Result<()> {
        let tap = self.poll.number();
        let Some(pump) = self.pumps.get_mut(&pump) else { return Ok(()) };
        if rustix::termios::isatty(&*pump) {
            ends.push((StreamKind::Terminal, pump.as_fd().try_clone_to_owned()?));
            if typed && wanted.stdin {
                ends.push((StreamKind::Stdin, pump.as_fd().try_clone_to_owned()?));
            }
        }
        let kind = match pump.stream {
            Stream::Stdout if wanted.stdout => StreamKind::Stdout,
            Stream::Stderr if wanted.stderr => StreamKind::Stderr,
            _ => return Ok(()),
        };
        let (read, write) = output_pipe()?;
        set_nonblocking(&write)?;
        let _kept_small = rustix::pipe::fcntl_setpipe_size(&read, PIPE_LEN);
        pump.taps.push(Tap::new(tap, write));
        ends.push((kind, read));
        taps.push(tap);
        Ok(())
    }

    fn check_unheld(&self, to: ReplyTo) -> Result<(), Status> {
        if self.leashes.contains_key(&to.connection) {
            return Err(Status::exists("this connection carries streams already"));
        }
        Ok(())
    }

    /// Waits for the end of what the caller's connection holds. `Some`: it has ended.
    pub(crate) fn wait_streams(&mut self, to: ReplyTo) -> Result<Option<Ending>, Status> {
        let leash = self.leashes.get_mut(&to.connection);
        let leash = leash.ok_or_else(|| Status::not_found("this connection carries no streams"))?;
        leash.waiter = Some(to);
        self.tell_ending(to.connection);
        Ok(None)
    }

    /// What a connection holds has ended.
    pub(crate) fn end_streams(&mut self, connection: u64, ending: Ending) {
        if let Some(leash) = self.leashes.get_mut(&connection) {
            leash.ending = Some(ending);
            self.tell_ending(connection);
        }
    }

    /// A container has ended; who is attached to it is told.
    pub(crate) fn end_attaches(&mut self, number: u64) {
        let ending = Ending { exit_code: 0, dropped: false };
        let held = |leash: &Leash| matches!(leash.held, Held::Attach { container, .. } if container == number);
        let ended: Vec<u64> =
            self.leashes.iter().filter(|(_, leash)| held(leash)).map(|(c, _)| *c).collect();
        for connection in ended {
            self.end_streams(connection, ending);
        }
    }

    /// Answers who waits, once the last of the output is in its pipe.
    fn tell_ending(&mut self, connection: u64) {
        let Some(leash) = self.leashes.get_mut(&connection) else { return };
        if self.last_taps.iter().any(|tap| leash.has_tap(tap.number)) {
            return;
        }
        if let Some(ending) = leash.ending
            && let Some(to) = leash.waiter.take()
        {
            self.reply(to, Ok(Reply::StreamsEnded(ending)));
        }
    }

    /// The connection is gone, and with it who asked.
    pub(crate) fn end_leash(&mut self, connection: u64) {
        let Some(leash) = self.leashes.remove(&connection) else { return };
        match leash.held {
            Held::Exec(number) => {
                if let Some(exec) = self.execs.get(&number) {
                    exec.kill();
                }
            }
            Held::Attach { taps, .. } => {
                for pump in self.pumps.values_mut() {
                    forget(&self.poll, &mut pump.taps, |tap| taps.contains(&tap.number));
                }
                forget(&self.poll, &mut self.last_taps, |tap| taps.contains(&tap.number));
            }
        }
    }

    /// Looks after those who read a pump along, after it was read.
    pub(crate) fn settle_taps(&mut self, pump: u64) {
        let Some(pump) = self.pumps.get_mut(&pump) else { return };
        let too_slow = settle(&self.poll, &mut pump.taps);
        self.drop_slow(&too_slow);
    }

    /// A reader that was behind has room.
    pub(crate) fn tap_ready(&mut self, number: u64) {
        let in_pumps = self.pumps.values_mut().map(|pump| &mut pump.taps);
        for taps in in_pumps.chain([&mut self.last_taps]) {
            if let Some(tap) = taps.iter_mut().find(|tap| tap.number == number) {
                tap.flush();
                settle(&self.poll, taps);
            }
        }
        // Whoever has all of an output that ended is done.
        forget(&self.poll, &mut self.last_taps, |tap| tap.state() == State::UpToDate);
        let held = self.leashes.iter().find(|(_, leash)| leash.has_tap(number));
        if let Some(connection) = held.map(|(connection, _)| *connection) {
            self.tell_ending(connection);
        }
    }

    fn drop_slow(&mut self, taps: &[u64]) {
        let slow = |leash: &Leash| taps.iter().any(|tap| leash.has_tap(*tap));
        let slow: Vec<u64> =
            self.leashes.iter().filter(|(_, leash)| slow(leash)).map(|(c, _)| *c).collect();
        for connection in slow {
            self.end_streams(connection, Ending { exit_code: 0, dropped: true });
        }
    }

    /// A pump has ended. Who is behind still gets what is kept.
    pub(crate) fn end_taps(&mut self, pump: &mut Pump) {
        let behind = std::mem::take(&mut pump.taps).into_iter();
        self.last_taps.extend(behind.filter(|tap| tap.state() == State::Behind));
    }
}

/// Polls those that are behind, and no others; forgets those that get no more, and names those
/// of them that were too slow.
fn settle(poll: &crate::poll::Poll, taps: &mut Vec<Tap>) -> Vec<u64> {
    let mut too_slow = Vec::new();
    for tap in &mut *taps {
        let behind = tap.state() == State::Behind;
        if behind && !tap.polled {
            let token = Token::Tap(tap.number);
            match poll.add(&*tap, token, Interest::OUT) {
                Ok(()) => tap.polled = true,
                Err(error) => crate::log::say(format_args!("poll a reader: {error}")),
            }
        } else if !behind && tap.polled {
            poll.remove(&*tap);
            tap.polled = false;
        }
        if tap.state() == State::TooSlow {
            too_slow.push(tap.number);
        }
    }
    taps.retain(|tap| matches!(tap.state(), State::UpToDate | State::Behind));
    too_slow
}

fn forget(poll: &crate::poll::Poll, taps: &mut Vec<Tap>, which: impl Fn(&Tap) -> bool) {
    for tap in taps.iter().filter(|tap| which(tap) && tap.polled) {
        poll.remove(tap);
    }
    taps.retain(|tap| !which(tap));
}
