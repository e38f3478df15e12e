//! Everything one shim has, and who is woken by what.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use berth_container::{ErrorKind, Layout};
use berth_proto::paths::PodPaths;

use crate::container::Container;
use crate::exec::Exec;
use crate::io::pump::{Pump, Scratch};
use crate::io::tap::Tap;
use crate::leash::Leash;
use crate::outputs::Rest;
use crate::pod::Pod;
use crate::poll::{Interest, Poll, Token};
use crate::service::{self, Reply};
use crate::ttrpc::{Call, Code, ReplyTo, Server, Status};

/// The state of one shim. The parts of its behaviour stand beside what they are about:
/// [`crate::pod`], [`crate::container`], [`crate::exec`].
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) poll: Poll,
    pub(crate) server: Server,
    pub(crate) paths: PodPaths,
    pub(crate) layout: Layout,
    /// The `oom_score_adj` the shim was started with, which containers get that name none.
    pub(crate) inherited_oom_score: Option<i32>,
    pub(crate) pod: Pod,
    pub(crate) containers: BTreeMap<u64, Container>,
    pub(crate) execs: BTreeMap<u64, Exec>,
    pub(crate) pumps: BTreeMap<u64, Pump>,
    pub(crate) rests: BTreeMap<u64, Rest>,
    pub(crate) leashes: BTreeMap<u64, Leash>,
    /// Readers whose output has ended and who have not got all of it yet.
    pub(crate) last_taps: Vec<Tap>,
    pub(crate) scratch: Scratch,
    /// Since the last look of the house.
    pub(crate) scratch_used: bool,
    pub(crate) scratch_timed: bool,
    /// Shutdown was granted: the loop ends once the answers are written.
    pub(crate) ending: bool,
}

impl Shim {
    pub(crate) fn new(poll: Poll, server: Server, paths: PodPaths, layout: Layout) -> Self {
        Self {
            poll,
            server,
            paths,
            layout,
            inherited_oom_score: None,
            pod: Pod::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            pumps: BTreeMap::new(),
            rests: BTreeMap::new(),
            leashes: BTreeMap::new(),
            last_taps: Vec::new(),
            scratch: Scratch::default(),
            scratch_used: false,
            scratch_timed: false,
            ending: false,
        }
    }

    /// Does what `token` was woken for.
    pub(crate) fn woken(&mut self, token: Token, interest: Interest) {
        match token {
            Token::Listener => self.server.accept(&mut self.poll, interest),
            Token::Connection(number) => self.serve(number, interest),
            Token::Process(number) => self.process_ended(number),
            Token::Launch(number) => self.launch_advanced(number),
            Token::Pump(number) => self.pump_ready(number),
            Token::Deadline(number) => self.deadline(number),
            Token::Tap(number) => self.tap_ready(number),
            Token::House => self.keep_house(),
            // The loop reads them itself.
            Token::Signals => {}
        }
    }

    fn serve(&mut self, connection: u64, interest: Interest) {
        let mut calls = Vec::new();
        self.server.ready(&self.poll, connection, interest, &mut calls);
        for Call { reply_to, service, method, payload } in calls {
            match service::dispatch(self, reply_to, &service, &method, &payload) {
                Ok(None) => {}
                Ok(Some(reply)) => self.reply(reply_to, Ok(reply)),
                Err(status) => self.reply(reply_to, Err(status)),
            }
        }
        self.let_go_of_closed();
    }

    /// Ends what was asked for on connections that are no more.
    pub(crate) fn let_go_of_closed(&mut self) {
        for connection in self.server.take_closed() {
            self.end_leash(connection);
            self.end_execs_of(connection);
        }
    }

    /// Answers a call.
    pub(crate) fn reply(&mut self, to: ReplyTo, answer: Result<Reply, Status>) {
        self.server.reply(&self.poll, to, answer.and_then(service::encode));
    }

    /// Answers a call and hands over descriptors.
    pub(crate) fn reply_with(&mut self, to: ReplyTo, answer: Reply, fds: Vec<OwnedFd>) {
        self.server.reply_with(&self.poll, to, service::encode(answer), fds);
    }

    fn process_ended(&mut self, number: u64) {
        if self.containers.contains_key(&number) {
            self.container_process_ready(number);
        } else if self.execs.contains_key(&number) {
            self.exec_process_ready(number);
        } else {
            self.init_ended(number);
        }
    }

    fn launch_advanced(&mut self, number: u64) {
        if self.containers.contains_key(&number) {
            self.container_launch_ready(number);
        } else {
            self.exec_launch_ready(number);
        }
    }

    fn deadline(&mut self, number: u64) {
        if self.containers.contains_key(&number) {
            self.container_deadline(number);
        } else if self.execs.contains_key(&number) {
            self.exec_deadline(number);
        } else if self.rests.remove(&number).is_some() {
            berth_sys::resident::trim_memory();
        } else {
            self.go_on_stopping();
        }
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn unix_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The engine's error as the status of a call that was doing `what`.
pub(crate) fn status_of(what: &str, error: &berth_container::Error) -> Status {
    let code = match error.kind() {
        // As containerd answers a command that is not there.
        _ if matches!(error, berth_container::Error::Exec { .. }) => Code::Unknown,
        ErrorKind::NotFound | ErrorKind::Internal | ErrorKind::Busy => Code::Internal,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotReady => Code::FailedPrecondition,
        ErrorKind::Deadline => Code::DeadlineExceeded,
    };
    Status::new(code, format!("{what}: {error}"))
}
