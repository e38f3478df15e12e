//! Everything one shim has, and who is woken by what.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_container::{ErrorKind, Layout};
use berth_proto::paths::PodPaths;

use crate::container::Container;
use crate::exec::Exec;
use crate::io::pump::{Flow, Pump, Scratch};
use crate::pod::Pod;
use crate::poll::{Interest, Poll, Token};
use crate::service::{self, Reply};
use crate::ttrpc::{Call, Code, ReplyTo, Server, Status};

/// How long an idle shim keeps the buffers of its pumps.
const SCRATCH_KEPT: Duration = Duration::from_secs(1);

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
    pub(crate) scratch: Scratch,
    scratch_used: bool,
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
            scratch: Scratch::default(),
            scratch_used: false,
            ending: false,
        }
    }

    /// Does what `token` was woken for.
    pub(crate) fn woken(&mut self, token: Token, interest: Interest) {
        match token {
            Token::Listener => self.server.accept(&mut self.poll),
            Token::Connection(number) => self.serve(number, interest),
            Token::Process(number) => self.process_ended(number),
            Token::Launch(number) => self.launch_advanced(number),
            Token::Pump(number) => self.turn_pump(number),
            Token::Deadline(number) => self.deadline(number),
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
    }

    /// Answers a call.
    pub(crate) fn reply(&mut self, to: ReplyTo, answer: Result<Reply, Status>) {
        self.server.reply(&self.poll, to, answer.and_then(service::encode));
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
        } else {
            self.go_on_stopping();
        }
    }

    /// Registers a pump of process `owner` and gives its number.
    pub(crate) fn add_pump(&mut self, pump: Pump) -> rustix::io::Result<u64> {
        let number = self.poll.number();
        self.poll.add(&pump, Token::Pump(number), Interest::IN)?;
        self.pumps.insert(number, pump);
        Ok(number)
    }

    fn turn_pump(&mut self, number: u64) {
        if self.turn_pump_once(number) == Flow::Ended {
            self.end_pump(number);
        }
    }

    /// Reads a pump once.
    fn turn_pump_once(&mut self, number: u64) -> Flow {
        let Some(pump) = self.pumps.get_mut(&number) else { return Flow::Empty };
        let log = self.containers.get_mut(&pump.owner).and_then(|c| c.log.as_mut());
        if !std::mem::replace(&mut self.scratch_used, true) {
            self.poll.clear_timers(Token::House);
            self.poll.set_timer(Instant::now() + SCRATCH_KEPT, Token::House);
        }
        pump.turn(&mut self.scratch, log)
    }

    /// Takes what a pump's pipe still holds, then closes it, whoever may have it open.
    pub(crate) fn drain_pump(&mut self, number: u64) {
        /// More than a pipe holds: someone is still writing.
        const LIMIT: usize = 4 << 20;
        let mut taken = 0;
        while let Flow::Some(count) = self.turn_pump_once(number) {
            taken += count;
            if taken > LIMIT {
                break;
            }
        }
        self.end_pump(number);
    }

    fn end_pump(&mut self, number: u64) {
        let Some(pump) = self.pumps.remove(&number) else { return };
        self.poll.remove(&pump);
        let owner = pump.owner;
        let log = self.containers.get_mut(&owner).and_then(|c| c.log.as_mut());
        let captured = pump.finish(log);
        if self.containers.contains_key(&owner) {
            self.container_pump_ended(owner, number);
        } else {
            self.exec_pump_ended(owner, number, captured);
        }
    }

    /// Frees the pumps' buffers once a whole period passed without a turn.
    fn keep_house(&mut self) {
        if std::mem::replace(&mut self.scratch_used, false) {
            self.poll.set_timer(Instant::now() + SCRATCH_KEPT, Token::House);
        } else if self.scratch.is_held() {
            self.scratch.release();
            berth_sys::resident::trim_memory();
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
