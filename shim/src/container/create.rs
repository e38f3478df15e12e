//! Create: streams, log, child; answered when the child waits at its gate.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_container::{self as engine, CreateRequest, Progress, Rootfs, Stdio};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;

use super::{Container, Phase};
use crate::io::lines::Stream;
use crate::io::log_file::LogFile;
use crate::io::pump::{Pump, Sink};
use crate::poll::{Interest, Token};
use crate::service::Reply;
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

/// Room in a container's output pipes: it goes on writing while the shim is busy elsewhere.
const PIPE_LEN: usize = 1 << 20;

/// Where a container's standard streams are to go, as the request names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) terminal: bool,
    pub(crate) stdin: String,
    /// `crilog:///path` or empty.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What is to be created.
#[derive(Debug)]
pub(crate) struct CreateOrder {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Option<Rootfs>,
    pub(crate) streams: Streams,
}

impl Streams {
    /// The path of the log. `None`: the output is thrown away.
    fn log_path(&self) -> Result<Option<&Path>, Status> {
        let path = match self.stdout.as_str() {
            "" => return Ok(None),
            uri => uri.strip_prefix("crilog://").map(Path::new).filter(|path| path.is_absolute()),
        };
        let known = path.filter(|_| [&self.stdout, ""].contains(&self.stderr.as_str()));
        known.map(Some).ok_or_else(|| {
            Status::invalid(format!(
                "stdout {:?}, stderr {:?}: crilog:///absolute/path for both, or nothing",
                self.stdout, self.stderr
            ))
        })
    }

    /// Whether standard input is kept open for a later attach. A terminal is its own input.
    fn keeps_stdin(&self) -> Result<bool, Status> {
        match self.stdin.as_str() {
            "" => Ok(false),
            "attach:" | "attach:?once=1" => Ok(!self.terminal),
            other => Err(Status::invalid(format!("stdin {other:?}: attach: or nothing"))),
        }
    }
}

/// The ends of a container's pipes: ours, and its own, which are closed here once it has them.
#[derive(Debug, Default)]
struct Pipes {
    read: Vec<(Stream, OwnedFd)>,
    stdin: Option<OwnedFd>,
    own_stdin: Option<OwnedFd>,
    own_outputs: Vec<OwnedFd>,
}

impl Pipes {
    fn new(streams: &Streams) -> Result<Self, Status> {
        let mut pipes = Self::default();
        if streams.keeps_stdin()? {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|error| Status::internal(format!("create: make a pipe: {error}")))?;
            pipes.stdin = Some(write);
            pipes.own_stdin = Some(read);
        }
        // Also without a log: somebody may attach.
        let streams = if streams.terminal { &[][..] } else { &[Stream::Stdout, Stream::Stderr] };
        for stream in streams {
            let (read, write) = output_pipe()
                .map_err(|error| Status::internal(format!("create: make a pipe: {error}")))?;
            // Where the user's share of pipe memory is used up, the default size does.
            let _kept_small = rustix::pipe::fcntl_setpipe_size(&read, PIPE_LEN);
            pipes.read.push((*stream, read));
            pipes.own_outputs.push(write);
        }
        Ok(pipes)
    }
}

/// A pipe whose read end does not block.
pub(crate) fn output_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
}

impl Shim {
    /// Starts a container's child. Answered by [`Shim::container_launch_ready`].
    pub(crate) fn create(&mut self, to: ReplyTo, order: CreateOrder) -> Result<(), Status> {
        if self.find(&order.id).is_ok() {
            return Err(Status::exists(format!("container {:?} exists", order.id)));
        }
        let spec = self.read_spec(&order.bundle)?;
        let process = spec.process().clone().ok_or_else(|| Status::invalid("process: missing"))?;
        let logged = order.streams.log_path()?.is_some();
        let pipes = Pipes::new(&order.streams)?;
        let engine = self.launch(&order, &spec, &pipes)?;
        let Pipes { read, stdin, own_stdin, own_outputs } = pipes;
        drop((own_stdin, own_outputs));

        let number = self.poll.number();
        let container = Container {
            id: order.id,
            bundle: order.bundle,
            streams: order.streams,
            phase: Phase::Creating,
            exit: None,
            log: None,
            engine,
            process: Box::new(process),
            stdin,
            pumps: Vec::new(),
            create_to: Some(to),
            start_to: None,
            start_error: None,
            waits: Vec::new(),
            deletes: Vec::new(),
            tries: 0,
        };
        self.containers.insert(number, container);
        self.register(number, read, logged).or_else(|error| {
            self.give_up_create(number, Status::internal(format!("create: poll: {error}")));
            Ok(())
        })
    }

    fn launch(
        &self,
        order: &CreateOrder,
        spec: &Spec,
        pipes: &Pipes,
    ) -> Result<engine::Container, Status> {
        let request = CreateRequest {
            id: &order.id,
            bundle: &order.bundle,
            spec,
            rootfs: order.rootfs.as_ref(),
            pod: self.pod.namespaces()?,
            layout: &self.layout,
            stdio: Stdio {
                stdin: pipes.own_stdin.as_ref().map(AsFd::as_fd),
                stdout: pipes.own_outputs.first().map(AsFd::as_fd),
                stderr: pipes.own_outputs.get(1).map(AsFd::as_fd),
            },
        };
        engine::Container::create(&request).map_err(|error| status_of("create", &error))
    }

    fn read_spec(&self, bundle: &Path) -> Result<Spec, Status> {
        let path = bundle.join("config.json");
        let bytes = fs::read(&path)
            .map_err(|error| Status::invalid(format!("read {}: {error}", path.display())))?;
        let mut spec: Spec = serde_json::from_slice(&bytes)
            .map_err(|error| Status::invalid(format!("parse {}: {error}", path.display())))?;
        let mut process = spec.process().clone();
        if let Some(process) = process.as_mut().filter(|p| p.oom_score_adj().is_none()) {
            // Else it would inherit the shim's own, which keeps it from being killed.
            process.set_oom_score_adj(self.inherited_oom_score);
        }
        spec.set_process(process);
        Ok(spec)
    }

    fn register(
        &mut self,
        number: u64,
        read: Vec<(Stream, OwnedFd)>,
        logged: bool,
    ) -> rustix::io::Result<()> {
        self.poll_launch(number)?;
        if let Some(container) = self.containers.get(&number) {
            let token = Token::Process(number);
            self.poll.add(container.engine.pidfd(), token, Interest::IN)?;
        }
        for (stream, source) in read {
            let sink = if logged { Pump::log(stream) } else { Sink::Discard };
            let pump = self.add_pump(Pump::new(source, number, sink).of(stream))?;
            if let Some(container) = self.containers.get_mut(&number) {
                container.pumps.push(pump);
            }
        }
        Ok(())
    }

    /// Polls for the child's next word.
    pub(super) fn poll_launch(&self, number: u64) -> rustix::io::Result<()> {
        match self.containers.get(&number).and_then(|c| c.engine.sync_fd()) {
            Some(sync) => self.poll.add(sync, Token::Launch(number), Interest::IN),
            None => Ok(()),
        }
    }

    /// The child said something, or ended.
    pub(crate) fn container_launch_ready(&mut self, number: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        // The engine closes the descriptor when the child's last word is in.
        if let Some(sync) = container.engine.sync_fd() {
            self.poll.remove(sync);
        }
        let progress = container.engine.advance();
        for warning in container.engine.take_warnings() {
            crate::log::say(format_args!("container {}: {warning}", container.id));
        }
        match (progress, container.phase) {
            (Ok(Progress::Pending), _) => {
                if let Err(error) = self.poll_launch(number) {
                    crate::log::say(format_args!("poll a child: {error}"));
                }
            }
            (Ok(Progress::Ready), _) => self.created(number),
            (Ok(Progress::Started), _) => self.started(number),
            (Err(error), Phase::Creating) => self.create_failed(number, &error),
            (Err(error), _) => self.start_failed(number, &error),
        }
    }

    /// All is prepared. The log is opened last: a create that fails leaves none behind.
    fn created(&mut self, number: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        match container.streams.log_path().and_then(|path| path.map(open_log).transpose()) {
            Ok(log) => container.log = log,
            Err(status) => {
                self.give_up_create(number, status);
                return;
            }
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        if let Some(terminal) = container.engine.take_terminal() {
            let sink =
                if container.log.is_some() { Pump::log(Stream::Stdout) } else { Sink::Discard };
            let pumped = set_nonblocking(&terminal)
                .and_then(|()| self.add_pump(Pump::new(terminal, number, sink)));
            match pumped {
                Ok(pump) => {
                    if let Some(container) = self.containers.get_mut(&number) {
                        container.pumps.push(pump);
                    }
                }
                Err(error) => {
                    let text = format!("create: read the terminal: {error}");
                    self.give_up_create(number, Status::internal(text));
                    return;
                }
            }
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.phase = Phase::Created;
        let pid = container.engine.pid();
        if let Some(to) = container.create_to.take() {
            self.reply(to, Ok(Reply::Created { pid }));
        }
    }

    /// The engine has undone everything already.
    fn create_failed(&mut self, number: u64, error: &engine::Error) {
        self.forget_create(number, status_of("create", error));
    }

    /// Kills a child that must not go on. Its end comes as an error of `advance`; the answer is
    /// given now, since that error would not say why.
    fn give_up_create(&mut self, number: u64, status: Status) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        if let Err(error) = container.engine.abort(std::time::Duration::from_secs(1)) {
            crate::log::say(format_args!("container {}: undo create: {error}", container.id));
        }
        self.forget_create(number, status);
    }

    fn forget_create(&mut self, number: u64, status: Status) {
        let Some(mut container) = self.containers.remove(&number) else { return };
        self.poll.remove(container.engine.pidfd());
        for pump in std::mem::take(&mut container.pumps) {
            if let Some(pump) = self.pumps.remove(&pump) {
                self.poll.remove(&pump);
            }
        }
        for to in container.waits.drain(..).chain(container.create_to.take()) {
            self.reply(to, Err(status.clone()));
        }
        self.go_on_stopping();
    }
}

fn open_log(path: &Path) -> Result<LogFile, Status> {
    LogFile::open(path)
        .map_err(|error| Status::internal(format!("create: open log {}: {error}", path.display())))
}

/// The process an exec starts from: the container's own with other arguments.
pub(crate) fn exec_process(own: &Process, argv: Vec<String>, terminal: bool) -> Process {
    let mut process = own.clone();
    process.set_args(Some(argv)).set_terminal(Some(terminal)).set_console_size(None);
    let mut env = process.env().clone().unwrap_or_default();
    // What programs ask before they use a terminal; containerd says the same.
    if terminal && !env.iter().any(|one| one.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
        process.set_env(Some(env));
    }
    process
}
