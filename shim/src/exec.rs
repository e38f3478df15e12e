//! A command inside a running container. ExecSync: its output captured, its time limited. Exec: its
//! streams in the caller's hands ([`crate::leash`]).
//!
//! ```text
//! spawn --> launching --Started--> running --pidfd--> draining --> answered
//!               +--Err: answered       +--time is up: the whole tree is killed
//! ```
//! When the command ended, children of it may hold its pipes open: they are read for
//! [`DRAIN`] more and then closed. Such children belong to the container and live on.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_container::{self as engine, ExecRequest, ExitStatus, Progress, Stdio};

use crate::container::{Phase, exec_process, output_pipe};
use crate::io::pump::{Capture, Pump, Sink};
use crate::leash::{Ending, StreamKind};
use crate::poll::{Interest, Token};
use crate::service::Reply;
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

/// How long pipes are read that the command's children keep open after its end.
const DRAIN: Duration = Duration::from_millis(500);
/// Kept bytes per stream where the request names no limit.
const DEFAULT_OUTPUT: usize = 16 << 20;

/// What to execute.
#[derive(Debug)]
pub(crate) struct ExecOrder {
    pub(crate) container_id: String,
    pub(crate) argv: Vec<String>,
    /// `None`: no limit.
    pub(crate) timeout: Option<Duration>,
    /// Kept bytes per stream. 0: 16 MiB.
    pub(crate) max_output: usize,
    /// By which it is cancelled. 0: it is not.
    pub(crate) key: u64,
}

/// Who is told what.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Of ExecSync: everything, at the end.
    Waits { to: ReplyTo, key: u64 },
    /// Of Exec: its streams once the program runs; its end by the leash.
    Streams { connection: u64, opening: Option<Opening> },
}

/// What the caller gets when the program runs.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) to: ReplyTo,
    pub(crate) ends: Vec<(StreamKind, OwnedFd)>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExecOutcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: u32,
    pub(crate) timed_out: bool,
    /// Not 0: more output is kept under this number.
    pub(crate) rest_id: u64,
}

/// A running one.
#[derive(Debug)]
pub(crate) struct Exec {
    engine: engine::Exec,
    caller: Caller,
    /// The program was executed.
    started: bool,
    status: Option<ExitStatus>,
    stdout: Option<u64>,
    stderr: Option<u64>,
    outcome: ExecOutcome,
}

impl Exec {
    /// Kills it with its tree.
    pub(crate) fn kill(&self) {
        if self.status.is_some() {
            return;
        }
        if let Err(error) = self.engine.kill_tree() {
            crate::log::say(format_args!("exec: kill: {error}"));
        }
    }

    /// Its process id until it is reaped.
    pub(crate) fn unreaped_pid(&self) -> Option<u32> {
        self.status.is_none().then(|| self.engine.pid())
    }
}

impl Shim {
    /// Starts a command. Answered when it ended.
    pub(crate) fn exec_sync(&mut self, to: ReplyTo, order: ExecOrder) -> Result<(), Status> {
        if order.argv.is_empty() {
            return Err(Status::invalid("argv: empty"));
        }
        let pipe = || output_pipe().map_err(|error| Status::internal(format!("exec: {error}")));
        let ((out, out_end), (err, err_end)) = (pipe()?, pipe()?);
        let stdio =
            Stdio { stdin: None, stdout: Some(out_end.as_fd()), stderr: Some(err_end.as_fd()) };
        let caller = Caller::Waits { to, key: order.key };
        let number = self.spawn_exec(&order.container_id, order.argv, false, stdio, caller)?;
        drop((out_end, err_end));
        let limit = if order.max_output == 0 { DEFAULT_OUTPUT } else { order.max_output };
        let sink = || Sink::Capture(Capture::new(limit));
        let registered = self
            .add_pump(Pump::new(out, number, sink()))
            .and_then(|out| Ok((out, self.add_pump(Pump::new(err, number, sink()))?)))
            .and_then(|pumps| self.register_exec(number, pumps));
        if let Err(error) = registered {
            self.give_up_exec(number, &Status::internal(format!("exec: poll: {error}")));
            return Ok(());
        }
        if let Some(timeout) = order.timeout {
            self.poll.set_timer(Instant::now() + timeout, Token::Deadline(number));
        }
        Ok(())
    }

    /// Starts the child of a command and gives its number.
    pub(crate) fn spawn_exec(
        &mut self,
        container_id: &str,
        argv: Vec<String>,
        terminal: bool,
        stdio: Stdio<'_>,
        caller: Caller,
    ) -> Result<u64, Status> {
        let number = self.poll.number();
        let container = self.container(container_id)?;
        if container.phase != Phase::Running {
            let state = container.phase.name();
            let text = format!("exec: container {container_id:?} is {state}");
            return Err(Status::precondition(text));
        }
        let process = exec_process(&container.process, argv, terminal);
        let request = ExecRequest { id: &format!("exec-{number}"), process: &process, stdio };
        let engine = engine::Exec::spawn(&container.engine, &request)
            .map_err(|error| status_of("exec failed", &error))?;
        let exec = Exec {
            engine,
            caller,
            started: false,
            status: None,
            stdout: None,
            stderr: None,
            outcome: ExecOutcome::default(),
        };
        self.execs.insert(number, exec);
        Ok(number)
    }

    fn register_exec(&mut self, number: u64, (out, err): (u64, u64)) -> rustix::io::Result<()> {
        let Some(exec) = self.execs.get_mut(&number) else { return Ok(()) };
        exec.stdout = Some(out);
        exec.stderr = Some(err);
        self.poll_exec(number)
    }

    /// Polls for the child's words and for its end.
    pub(crate) fn poll_exec(&self, number: u64) -> rustix::io::Result<()> {
        let Some(exec) = self.execs.get(&number) else { return Ok(()) };
        self.poll.add(exec.engine.pidfd(), Token::Process(number), Interest::IN)?;
        match exec.engine.sync_fd() {
            Some(sync) => self.poll.add(sync, Token::Launch(number), Interest::IN),
            None => Ok(()),
        }
    }

    /// The child said something.
    pub(crate) fn exec_launch_ready(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if let Some(sync) = exec.engine.sync_fd() {
            self.poll.remove(sync);
        }
        let progress = exec.engine.advance();
        // They were said when the container was created with the same settings; a probe would say
        // them again for ever.
        drop(exec.engine.take_warnings());
        let again = match progress {
            Ok(Progress::Pending) => exec.engine.sync_fd(),
            Ok(_) => {
                exec.started = true;
                let terminal = exec.engine.take_terminal();
                self.hand_over(number, terminal);
                None
            }
            Err(error) => {
                self.exec_failed(number, &error);
                return;
            }
        };
        let polled = again.map(|sync| self.poll.add(sync, Token::Launch(number), Interest::IN));
        if let Some(Err(error)) = polled {
            self.give_up_exec(number, &Status::internal(format!("exec: poll: {error}")));
        }
    }

    /// The engine has undone everything already.
    fn exec_failed(&mut self, number: u64, error: &engine::Error) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let waits = matches!(exec.caller, Caller::Waits { .. });
        if let (engine::Error::Died { status, .. }, true) = (error, waits) {
            // Killed at its time limit or with its container, no matter how far it was.
            exec.status = Some(*status);
            self.answer_exec(number);
        } else {
            self.forget_exec(number, Err(status_of("exec failed", error)));
        }
    }

    pub(crate) fn give_up_exec(&mut self, number: u64, status: &Status) {
        if let Some(exec) = self.execs.get(&number) {
            // It is reaped as an orphan.
            if let Err(error) = exec.engine.kill_tree() {
                crate::log::say(format_args!("exec: kill: {error}"));
            }
        }
        self.forget_exec(number, Err(status.clone()));
    }

    /// The command's pidfd is readable.
    pub(crate) fn exec_process_ready(&mut self, number: u64) {
        if self.execs.get(&number).is_some_and(|exec| !exec.started) {
            // What the child said before its end comes first.
            self.exec_launch_ready(number);
        }
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if exec.status.is_some() {
            return;
        }
        let status = match exec.engine.exit_status() {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(error) => {
                crate::log::say(format_args!("exec: wait: {error}"));
                ExitStatus::Code(255)
            }
        };
        exec.status = Some(status);
        self.poll.remove(exec.engine.pidfd());
        if let Err(error) = exec.engine.reap() {
            crate::log::say(format_args!("exec: reap: {error}"));
        }
        if exec.stdout.is_none() && exec.stderr.is_none() {
            self.answer_exec(number);
        } else {
            self.poll.clear_timers(Token::Deadline(number));
            self.poll.set_timer(Instant::now() + DRAIN, Token::Deadline(number));
        }
    }

    /// One output ended.
    pub(crate) fn exec_pump_ended(&mut self, number: u64, pump: u64, captured: Vec<u8>) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if exec.stdout == Some(pump) {
            exec.stdout = None;
            exec.outcome.stdout = captured;
        } else if exec.stderr == Some(pump) {
            exec.stderr = None;
            exec.outcome.stderr = captured;
        }
        if exec.status.is_some() && exec.stdout.is_none() && exec.stderr.is_none() {
            self.answer_exec(number);
        }
    }

    /// Its time is up, or what holds its pipes was waited for long enough.
    pub(crate) fn exec_deadline(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if exec.status.is_some() {
            let pumps = [exec.stdout, exec.stderr];
            for pump in pumps.into_iter().flatten() {
                self.drain_pump(pump);
            }
            return;
        }
        exec.outcome.timed_out = true;
        if let Err(error) = exec.engine.kill_tree() {
            crate::log::say(format_args!("exec: kill at its time limit: {error}"));
        }
    }

    /// Kills a command whose caller has gone. Its end comes as any other.
    pub(crate) fn cancel_exec(&self, of: ReplyTo, key: u64) {
        let named = |exec: &&Exec| match exec.caller {
            Caller::Waits { to, key: own } => to.connection == of.connection && own == key,
            Caller::Streams { .. } => false,
        };
        if let Some(exec) = self.execs.values().find(named).filter(|_| key != 0) {
            exec.kill();
        }
    }

    /// Kills the commands whose callers were on this connection.
    pub(crate) fn end_execs_of(&self, connection: u64) {
        for exec in self.execs.values() {
            if matches!(exec.caller, Caller::Waits { to, .. } if to.connection == connection) {
                exec.kill();
            }
        }
    }

    /// Hands the caller of Exec its streams.
    fn hand_over(&mut self, number: u64, terminal: Option<OwnedFd>) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let Caller::Streams { opening, .. } = &mut exec.caller else { return };
        let Some(Opening { to, mut ends }) = opening.take() else { return };
        ends.extend(terminal.map(|terminal| (StreamKind::Terminal, terminal)));
        let (kinds, fds) = ends.into_iter().unzip();
        self.reply_with(to, Reply::Opened(kinds), fds);
    }

    fn answer_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let mut outcome = std::mem::take(&mut exec.outcome);
        outcome.exit_code = exec.status.map_or(255, ExitStatus::code);
        outcome.rest_id = self.keep_rest(&mut outcome.stdout, &mut outcome.stderr);
        self.forget_exec(number, Ok(Reply::Executed(outcome)));
    }

    fn forget_exec(&mut self, number: u64, answer: Result<Reply, Status>) {
        self.poll.clear_timers(Token::Deadline(number));
        let Some(exec) = self.execs.remove(&number) else { return };
        self.poll.remove(exec.engine.pidfd());
        for pump in [exec.stdout, exec.stderr].into_iter().flatten() {
            if let Some(pump) = self.pumps.remove(&pump) {
                self.poll.remove(&pump);
            }
        }
        match (exec.caller, answer) {
            (Caller::Waits { to, .. }, answer) => self.reply(to, answer),
            (Caller::Streams { opening: Some(opening), connection }, Err(status)) => {
                self.leashes.remove(&connection);
                self.reply(opening.to, Err(status));
            }
            (Caller::Streams { connection, .. }, answer) => {
                let exit_code = match answer {
                    Ok(Reply::Executed(outcome)) => outcome.exit_code,
                    _ => 255,
                };
                self.end_streams(connection, Ending { exit_code, dropped: false });
            }
        }
        self.reap_orphans();
        self.go_on_stopping();
    }
}
