//! One container, from create to the end of its first process.
//!
//! ```text
//! create() --> creating --advance: Ready--> created --start(), advance: Started--> running
//!                 |                           |             |                        |
//!                 +--advance: Err (undone)    +---- its first process ends: stopped -+
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use berth_sys::ns::{self, Kind};
use oci_spec::runtime::Spec;

use crate::cgroup::{Cgroup, Layout};
use crate::error::{Error, ErrorKind, Result, StepExt};
use crate::exit::ExitStatus;
use crate::launch;
use crate::plan::Plan;
use crate::pod::PodNamespaces;
use crate::rootfs::Rootfs;
use crate::talk::{Heard, Talk};
use crate::user::IdMaps;
use crate::wire;

/// What the container's first process gets as descriptors 0, 1 and 2. Ignored where
/// `process.terminal` is true: then all three are the terminal's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stdio<'a> {
    /// `None`: /dev/null.
    pub stdin: Option<BorrowedFd<'a>>,
    /// `None`: /dev/null.
    pub stdout: Option<BorrowedFd<'a>>,
    /// `None`: /dev/null.
    pub stderr: Option<BorrowedFd<'a>>,
}

impl Stdio<'_> {
    pub(crate) fn raw(&self) -> impl Iterator<Item = i32> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten().map(|fd| fd.as_raw_fd())
    }
}

/// What to create.
#[derive(Debug, Clone, Copy)]
pub struct CreateRequest<'a> {
    /// Names the container in messages.
    pub id: &'a str,
    /// Directory that a relative `spec.root.path` starts from.
    pub bundle: &'a Path,
    /// The OCI runtime spec. Namespace entries whose path is `pod:` join the pod's namespaces;
    /// a bind mount whose source is `pod:shm` gets the pod's /dev/shm.
    pub spec: &'a Spec,
    /// The root file system; `None`: the directory `spec.root.path`.
    pub rootfs: Option<&'a Rootfs>,
    /// What the pod shares.
    pub pod: &'a PodNamespaces,
    /// The machine's cgroups. The container's own is `spec.linux.cgroupsPath`.
    pub layout: &'a Layout,
    /// Descriptors of the first process. Only used during the call.
    pub stdio: Stdio<'a>,
}

/// How far a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call `advance` again when a descriptor is readable.
    Pending,
    /// Prepared, waiting at the gate for [`Container::start`]. Said once.
    Ready,
    /// The program was executed. [`Container::sync_fd`] is `None` from now on. Said once.
    Started,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Created,
    Starting,
    Running,
    /// A create that failed, wholly undone.
    Undone,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "started",
            Self::Undone => "gone",
        }
    }
}

/// A container. Dropping it before its end leaves the process running; see [`Container::abort`].
#[derive(Debug)]
pub struct Container {
    talk: Talk,
    cgroup: Cgroup,
    phase: Phase,
    /// Cgroup namespace and the like that an exec must join.
    namespaces: Vec<Kind>,
    /// What its user namespace maps, if it has one.
    maps: Option<IdMaps>,
}

impl Container {
    /// Checks the spec, makes the cgroup with its limits, and starts the child that prepares
    /// everything else; returns as soon as it runs.
    pub fn create(request: &CreateRequest<'_>) -> Result<Self> {
        let plan = Plan::read(request)?;
        let mut warnings = Vec::new();
        let resources = request.spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let cgroup = Cgroup::create(request.layout, &plan.cgroup_path, resources, &mut warnings)?;
        let launched = launch::users(&plan).and_then(|users| {
            let talk = launch::launch(&plan, request, &cgroup, &users)?;
            Ok((talk, users.own().map(|user| user.maps().clone())))
        });
        match launched {
            Ok((mut talk, maps)) => {
                talk.warnings.splice(..0, warnings);
                let namespaces = plan.kinds();
                Ok(Self { talk, cgroup, phase: Phase::Creating, namespaces, maps })
            }
            Err(err) => {
                let _ = cgroup.remove(Duration::from_millis(200));
                Err(err)
            }
        }
    }

    /// [`Container::create`], then waits for [`Progress::Ready`]. After `deadline` the child is
    /// killed and everything undone.
    pub fn create_blocking(request: &CreateRequest<'_>, deadline: Duration) -> Result<Self> {
        let mut container = Self::create(request)?;
        let end = Instant::now() + deadline;
        match container.advance_until(Progress::Ready, end) {
            Ok(()) => Ok(container),
            Err(err) => {
                if err.kind() == ErrorKind::Deadline {
                    container.abort(deadline)?;
                }
                Err(err)
            }
        }
    }

    /// Takes what the child said. Call when [`Container::sync_fd`] or [`Container::pidfd`] is
    /// readable; never blocks. An `Err` before `Ready` means all is undone and the process is
    /// reaped (don't call `exit_status` or `reap`). An `Err` after [`Container::start`]
    /// ([`Error::Exec`], [`Error::Step`]) means the program can't be executed and the process has
    /// ended, but the caller still owns the rest: `reap` it and `delete` the container.
    pub fn advance(&mut self) -> Result<Progress> {
        match self.phase {
            Phase::Creating => match self.talk.hear()? {
                Heard::Nothing => Ok(Progress::Pending),
                Heard::Ready => {
                    self.phase = Phase::Created;
                    Ok(Progress::Ready)
                }
                Heard::Started => Ok(Progress::Pending),
                Heard::Failed(err) => {
                    self.undo(Duration::from_millis(200))?;
                    Err(err)
                }
            },
            Phase::Starting => match self.talk.hear()? {
                Heard::Nothing | Heard::Ready => Ok(Progress::Pending),
                Heard::Started => {
                    self.phase = Phase::Running;
                    Ok(Progress::Started)
                }
                Heard::Failed(err) => {
                    self.phase = Phase::Running;
                    Err(err)
                }
            },
            Phase::Created | Phase::Running | Phase::Undone => Ok(Progress::Pending),
        }
    }

    /// Opens the gate. The outcome comes by `advance`: [`Progress::Started`] or an error.
    pub fn start(&mut self) -> Result<()> {
        if self.phase != Phase::Created {
            return Err(Error::State { what: "start", state: self.phase.name() });
        }
        let sync = self.talk.sync_fd();
        let sync = sync.ok_or(Error::State { what: "start", state: "stopped" })?;
        match wire::say_go(sync) {
            // It died at the gate; `advance` tells.
            Err(err) if err.kind() != io::ErrorKind::BrokenPipe => {
                return Err(err).step(|| "open the start gate".to_owned());
            }
            _ => {}
        }
        self.phase = Phase::Starting;
        Ok(())
    }

    /// [`Container::start`], then waits for the outcome.
    pub fn start_blocking(&mut self, deadline: Duration) -> Result<()> {
        self.start()?;
        self.advance_until(Progress::Started, Instant::now() + deadline)
    }

    fn advance_until(&mut self, goal: Progress, end: Instant) -> Result<()> {
        loop {
            if self.advance()? == goal {
                return Ok(());
            }
            self.talk.wait(end)?;
        }
    }

    /// Kills the child, waits for its end and undoes everything: a create that must not go on.
    /// A child that a dead volume holds in the kernel makes this fail with
    /// [`crate::ErrorKind::Busy`] after `patience`; the same call may be repeated.
    pub fn abort(&mut self, patience: Duration) -> Result<()> {
        if self.phase == Phase::Undone {
            return Ok(());
        }
        self.cgroup.kill()?;
        let _ = self.talk.signal(9);
        // First: the first process of a PID namespace ends when all others there are reaped.
        self.talk.end_builder(patience)?;
        self.talk.wait_end(patience)?;
        self.undo(patience)
    }

    /// After the first process's end: reaps it and takes its cgroup away.
    fn undo(&mut self, patience: Duration) -> Result<()> {
        self.talk.reap()?;
        self.talk.end_builder(patience)?;
        self.phase = Phase::Undone;
        self.delete(patience)
    }

    /// Process id of the first process, as the host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.talk.pid()
    }

    /// Readable when the first process ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.talk.pidfd()
    }

    /// Readable when the child has something to say; `None` once the program runs or it ended.
    #[must_use]
    pub fn sync_fd(&self) -> Option<BorrowedFd<'_>> {
        // At the gate it has nothing to say, and a dead child's pidfd tells.
        self.talk.sync_fd().filter(|_| matches!(self.phase, Phase::Creating | Phase::Starting))
    }

    /// The terminal's master side, there from [`Progress::Ready`] on where `process.terminal` is
    /// true. Close-on-exec, blocking.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.talk.terminal.take()
    }

    /// What could not be done exactly as asked (a capability the host lacks, an rlimit above the
    /// host's own, an oom_score_adj below the allowed one): one sentence each, for the log.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.talk.warnings)
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Kinds of namespaces that aren't the host's.
    pub(crate) fn namespaces(&self) -> &[Kind] {
        &self.namespaces
    }

    /// What its user namespace maps, if it has one.
    #[must_use]
    pub fn maps(&self) -> Option<&IdMaps> {
        self.maps.as_ref()
    }

    pub(crate) fn is_running(&self) -> Result<bool> {
        Ok(self.phase == Phase::Running && !self.talk.has_ended()?)
    }

    /// Sends `signal` to the first process. Ended already: [`crate::ErrorKind::NotFound`].
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.talk.signal(signal)
    }

    /// Sends SIGKILL to every process of the container, execs included.
    pub fn kill_all(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// How the first process ended, without reaping it; `None` while it runs. Never blocks. After
    /// [`Container::reap`] it answers the same.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        self.talk.exit_status()
    }

    /// Reaps the first process after its end. Never blocks; `None` while it runs.
    pub fn reap(&self) -> Result<Option<ExitStatus>> {
        self.talk.reap()
    }

    /// Removes what is left of a stopped, reaped container: kills what its cgroup still holds,
    /// removes the cgroup and marked empty parents. Idempotent.
    pub fn delete(&self, patience: Duration) -> Result<()> {
        self.cgroup.kill()?;
        self.cgroup.remove(patience)
    }
}

/// Runs `clone` so that its child is born in the PID namespace `fd`: the caller's children go there
/// for that moment. (Only possible for namespaces below the caller's own.)
pub(crate) fn in_pid_namespace<T>(
    fd: BorrowedFd<'_>,
    clone: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let own = ns::current(Kind::Pid)?;
    ns::join(fd, Kind::Pid)?;
    let made = clone();
    ns::join(own.as_fd(), Kind::Pid)?;
    made
}
