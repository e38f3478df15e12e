//! One command inside a running container.
//!
//! Its child is made in the container's PID namespace and the container's cgroups, joins the other
//! namespaces by the first process's handle, and becomes the program. On machines that can, it
//! gets a cgroup of its own below the container's, in the one hierarchy that kills whole trees.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, CloneArgs};
use berth_sys::root::Root;
use berth_sys::sock;
use oci_spec::runtime::Process;

use crate::cgroup::Cgroup;
use crate::child::{self, program};
use crate::container::{Container, Progress, Stdio, in_pid_namespace};
use crate::error::{Error, ErrorKind, Result, StepExt};
use crate::exit::ExitStatus;
use crate::plan::invalid;
use crate::plan::process::ProcessPlan;
use crate::talk::{Heard, Talk};
use crate::user::{self, IdMaps};
use crate::wire::{ChildEnd, Doing, Work};

/// What to execute.
#[derive(Debug, Clone, Copy)]
pub struct ExecRequest<'a> {
    /// Names the exec's own cgroup; unique within the container; letters, digits, `-` and `_`.
    pub id: &'a str,
    /// The process: args, env, cwd, user, capabilities, terminal. The caller fills it in full
    /// (normally the container's own `process` with other args).
    pub process: &'a Process,
    /// Descriptors of the process. Only used during the call. Ignored with a terminal.
    pub stdio: Stdio<'a>,
}

/// A running exec.
#[derive(Debug)]
pub struct Exec {
    talk: Talk,
    /// Its own, below the container's.
    cgroup: Cgroup,
    running: bool,
}

impl Exec {
    /// Starts the child that joins the container and executes; returns as soon as it runs.
    /// There is no gate. The container must be running.
    pub fn spawn(container: &Container, request: &ExecRequest<'_>) -> Result<Self> {
        let plan = ProcessPlan::read(request.process, "process")?;
        plan.check_ids(container.maps(), "process")?;
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if request.id.is_empty() || !request.id.bytes().all(good) {
            return Err(invalid("exec id", format!("{:?}", request.id)));
        }
        if !container.is_running()? {
            return Err(Error::State { what: "exec", state: "not running" });
        }
        let cgroup = container.cgroup().child(&format!("exec-{}", request.id));
        cgroup.make_plain()?;
        match Self::launch(container, &plan, request.stdio, &cgroup) {
            Ok(talk) => Ok(Self { talk, cgroup, running: false }),
            Err(err) => {
                let _ = cgroup.remove(Duration::from_millis(200));
                Err(err)
            }
        }
    }

    fn launch(
        container: &Container,
        plan: &ProcessPlan,
        stdio: Stdio<'_>,
        cgroup: &Cgroup,
    ) -> Result<Talk> {
        let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
        let first = container.pidfd();
        let mut keep = vec![0, 1, 2, theirs.as_raw_fd(), first.as_raw_fd()];
        keep.extend(stdio.raw());
        let cgroup_fd = cgroup.open_v2()?;
        let args = CloneArgs {
            namespaces: 0,
            cgroup: cgroup_fd.as_ref().map(AsFd::as_fd),
            keep: Some(&keep),
            sibling: false,
        };
        let kinds = container.namespaces();
        let clone = || {
            process::spawn(&args, || {
                let end = ChildEnd::new(theirs);
                let joined = Joined { first, kinds, maps: container.maps() };
                match run(plan, stdio, &joined, &[container.cgroup(), cgroup], &end) {
                    Ok(never) => match never {},
                    Err(failure) => {
                        end.failed(&failure);
                        1
                    }
                }
            })
        };
        let made =
            if kinds.contains(&Kind::Pid) { in_pid_namespace(first, clone) } else { clone() };
        Ok(Talk::new(made.step(|| "clone the exec's process".to_owned())?, ours))
    }

    /// [`Exec::spawn`], then waits for [`Progress::Started`].
    pub fn spawn_blocking(
        container: &Container,
        request: &ExecRequest<'_>,
        deadline: Duration,
    ) -> Result<Self> {
        let mut exec = Self::spawn(container, request)?;
        let end = Instant::now() + deadline;
        while exec.advance()? != Progress::Started {
            if let Err(err) = exec.talk.wait(end) {
                if err.kind() == ErrorKind::Deadline {
                    exec.kill_tree()?;
                    exec.talk.wait_end(deadline)?;
                    exec.reap()?;
                }
                return Err(err);
            }
        }
        Ok(exec)
    }

    /// Takes what the child said; as [`Container::advance`], without `Ready`. An `Err` means all
    /// is undone and the process is reaped.
    pub fn advance(&mut self) -> Result<Progress> {
        if self.running {
            return Ok(Progress::Pending);
        }
        match self.talk.hear()? {
            Heard::Nothing | Heard::Ready => Ok(Progress::Pending),
            Heard::Started => {
                self.running = true;
                Ok(Progress::Started)
            }
            Heard::Failed(err) => {
                self.talk.reap()?;
                self.cgroup.remove(Duration::from_millis(200))?;
                Err(err)
            }
        }
    }

    /// Host process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.talk.pid()
    }

    /// Readable when the process ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.talk.pidfd()
    }

    /// Readable when the child has something to say; `None` once the program runs.
    #[must_use]
    pub fn sync_fd(&self) -> Option<BorrowedFd<'_>> {
        self.talk.sync_fd()
    }

    /// The terminal's master side, there from [`Progress::Started`] on.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.talk.terminal.take()
    }

    /// As [`Container::take_warnings`].
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.talk.warnings)
    }

    /// Sends `signal` to the process.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.talk.signal(signal)
    }

    /// Sends SIGKILL to the process and everything it started, also what it orphaned.
    pub fn kill_tree(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// How it ended, without reaping it; `None` while it runs.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        self.talk.exit_status()
    }

    /// Reaps it after its end and removes its cgroup where empty; `None` while it runs. Orphans
    /// it left behind stay (they are the container's); the cgroup then goes with the container's.
    pub fn reap(&self) -> Result<Option<ExitStatus>> {
        let status = self.talk.reap()?;
        if status.is_some() && self.cgroup.pids()?.is_empty() {
            // Busy: something was born after the look. It goes with the container's then.
            let _ = self.cgroup.remove(Duration::from_millis(20));
        }
        Ok(status)
    }
}

/// The container that an exec joins.
struct Joined<'a> {
    /// Its first process.
    first: BorrowedFd<'a>,
    kinds: &'a [Kind],
    maps: Option<&'a IdMaps>,
}

/// The child's whole life.
fn run(
    plan: &ProcessPlan,
    stdio: Stdio<'_>,
    container: &Joined<'_>,
    cgroups: &[&Cgroup],
    end: &ChildEnd,
) -> Work<Infallible> {
    child::begin(plan, stdio, cgroups, container.maps, end)?;
    let kinds = container.kinds.iter().copied();
    let joined: Vec<Kind> = kinds.filter(|kind| *kind != Kind::Pid).collect();
    ns::join_process(container.first, &joined)
        .doing(|| "join the container's namespaces".to_owned())?;
    if container.maps.is_some() {
        user::become_root()?;
    }
    program::let_go(end);
    if plan.terminal.is_some() {
        let root = Root::new(child::open_dir("/")?);
        let pty = child::terminal::make(&root)?;
        child::terminal::announce(&pty, plan, end)?;
        child::terminal::adopt(&pty.slave, plan)?;
    }
    let env = program::become_process(plan, end)?;
    program::execute(plan, &env, end)
}
