//! One container, from create to the end of its first process.
//!
//! ```text
//! create() --> creating --advance: Ready--> created --start(), advance: Started--> running
//!                 |                           |             |                        |
//!                 +--advance: Err (undone)    +---- its first process ends: stopped -+
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, CloneArgs, Exit};
use berth_sys::sock;
use oci_spec::runtime::Spec;

use crate::cgroup::{Cgroup, Layout};
use crate::child::{self, Given};
use crate::error::{Error, ErrorKind, Result, StepExt};
use crate::plan::{Place, Plan, invalid};
use crate::pod::PodNamespaces;
use crate::talk::{Heard, Talk};
use crate::wire::{self, ChildEnd};

/// What becomes the container's root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// This host directory, bound recursively. `spec.root.path` says nothing then.
    Directory(PathBuf),
    /// Layers joined by overlayfs, mounted in the container's own mount namespace only.
    Overlay(Overlay),
}

/// An overlay mount. All paths absolute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlay {
    /// Lower directories, top first; at least one.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; none: read only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Further options, each `key` or `key=value` (`volatile`, `index=off`, `metacopy=off`).
    pub options: Vec<String>,
    /// Mount by mount(2) with one option text, as kernels before 6.7 need (found out by itself),
    /// also where the kernel takes layers one by one.
    pub by_path: bool,
}

impl Rootfs {
    /// Reads a mount in containerd's form: type `overlay` with options `lowerdir=a:b`,
    /// `upperdir=`, `workdir=` and others, or type `bind` with the directory as source.
    pub fn from_mount(kind: &str, source: &str, options: &[String]) -> Result<Self> {
        let rootfs = match kind {
            "bind" | "rbind" => Self::Directory(PathBuf::from(source)),
            "overlay" => Self::Overlay(Overlay::parse(options)?),
            _ => return Err(invalid("rootfs", format!("type {kind:?} is not supported"))),
        };
        let relative = match &rootfs {
            Self::Directory(path) => Some(path).filter(|path| path.is_relative()),
            Self::Overlay(overlay) => overlay.paths().find(|path| path.is_relative()),
        };
        match relative {
            Some(path) => Err(invalid("rootfs", format!("{path:?} is not an absolute path"))),
            None => Ok(rootfs),
        }
    }
}

impl Overlay {
    fn parse(options: &[String]) -> Result<Self> {
        let mut overlay = Self::default();
        let (mut upper, mut work) = (None, None);
        for option in options {
            match option.split_once('=') {
                Some(("lowerdir", all)) => {
                    overlay.lower = all.split(':').map(PathBuf::from).collect();
                }
                Some(("upperdir", path)) => upper = Some(PathBuf::from(path)),
                Some(("workdir", path)) => work = Some(PathBuf::from(path)),
                _ => overlay.options.push(option.clone()),
            }
        }
        if overlay.lower.is_empty() {
            return Err(invalid("rootfs", "an overlay without lowerdir"));
        }
        overlay.upper = match (upper, work) {
            (Some(upper), Some(work)) => Some((upper, work)),
            (None, None) => None,
            _ => return Err(invalid("rootfs", "upperdir and workdir come together")),
        };
        Ok(overlay)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lower.iter().chain(self.upper.iter().flat_map(|(upper, work)| [upper, work]))
    }
}

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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// The code as shells and Kubernetes count: 0-255, 128 + signal number.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Code(code) => u32::from(code),
            Self::Signal(signal) => 128 + u32::from(signal),
        }
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(self) -> Option<u32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(u32::from(signal)),
        }
    }
}

impl From<Exit> for ExitStatus {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Code(code),
            Exit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
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
}

impl Container {
    /// Checks the spec, makes the cgroup with its limits, and starts the child that prepares
    /// everything else; returns as soon as it runs (on v1 after it was moved into its cgroups).
    pub fn create(request: &CreateRequest<'_>) -> Result<Self> {
        let plan = Plan::read(request)?;
        let mut warnings = Vec::new();
        let resources = request.spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let cgroup = Cgroup::create(request.layout, &plan.cgroup_path, resources, &mut warnings)?;
        match Self::launch(&plan, request, &cgroup) {
            Ok(mut talk) => {
                talk.warnings = warnings;
                let namespaces = plan.namespaces.kinds();
                Ok(Self { talk, cgroup, phase: Phase::Creating, namespaces })
            }
            Err(err) => {
                let _ = cgroup.remove(Duration::from_millis(200));
                Err(err)
            }
        }
    }

    /// Clones the child and moves it into its cgroups; kills it where that fails.
    fn launch(plan: &Plan<'_>, request: &CreateRequest<'_>, cgroup: &Cgroup) -> Result<Talk> {
        let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
        let mut keep = vec![0, 1, 2, theirs.as_raw_fd(), request.pod.mnt().as_raw_fd()];
        keep.extend(request.stdio.raw());
        keep.extend(plan.namespaces.join.iter().filter_map(|(_, place)| match place {
            Place::Pod(fd) => Some(fd.as_raw_fd()),
            Place::Path(_) => None,
        }));
        let cgroup_fd = cgroup.open_v2()?;
        let new_pid = plan.namespaces.makes(Kind::Pid);
        let args = CloneArgs {
            namespaces: if new_pid { Kind::Pid.flag() } else { 0 },
            cgroup: cgroup_fd.as_ref().map(AsFd::as_fd),
            keep: Some(&keep),
        };
        let clone = || {
            process::spawn(&args, || {
                let given = Given {
                    small_ns: request.pod.mnt(),
                    layout: request.layout,
                    stdio: request.stdio,
                    end: ChildEnd::new(theirs),
                };
                child::run(plan, &given)
            })
        };
        let made = match plan.namespaces.join.iter().find(|(kind, _)| *kind == Kind::Pid) {
            Some((_, Place::Pod(fd))) => in_pid_namespace(*fd, clone),
            Some((_, Place::Path(path))) => {
                let fd =
                    ns::open(path).step(|| format!("join the pid namespace {}", path.display()))?;
                in_pid_namespace(fd.as_fd(), clone)
            }
            None => clone(),
        };
        let talk = Talk::new(made.step(|| "clone the container's first process".to_owned())?, ours);
        let moved = cgroup.enter_v1(talk.pid()).and_then(|()| talk.say_moved());
        match moved {
            Ok(()) => Ok(talk),
            // A child that failed at once is gone from under the move; its own words say why.
            Err(_) if talk.has_ended()? => Ok(talk),
            Err(err) => {
                let _ = talk.signal(9);
                let _ = process::wait(talk.pidfd());
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
        self.talk.wait_end(patience)?;
        self.undo(patience)
    }

    /// After the first process's end: reaps it and takes its cgroup away.
    fn undo(&mut self, patience: Duration) -> Result<()> {
        self.talk.reap()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, source: &str, options: &[&str]) -> Result<Rootfs> {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        Rootfs::from_mount(kind, source, &options)
    }

    #[test]
    fn mounts_in_containerds_form_are_read() {
        let options = ["index=off", "lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "volatile"];
        let want = Overlay {
            lower: vec!["/a".into(), "/b".into()],
            upper: Some(("/u".into(), "/w".into())),
            options: vec!["index=off".into(), "volatile".into()],
            by_path: false,
        };
        assert_eq!(of("overlay", "overlay", &options).unwrap(), Rootfs::Overlay(want));
        assert_eq!(of("bind", "/r", &["rbind"]).unwrap(), Rootfs::Directory("/r".into()));
    }

    #[test]
    fn unusable_mounts_are_refused() {
        for (kind, source, options) in [
            ("ext4", "/dev/x", &[][..]),
            ("overlay", "overlay", &["upperdir=/u"]),
            ("overlay", "overlay", &["lowerdir=/a", "upperdir=/u"]),
            ("overlay", "overlay", &["lowerdir=/a:b"]),
            ("bind", "r", &[]),
        ] {
            let err = of(kind, source, options).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Invalid, "{kind} {options:?}: {err}");
        }
    }
}
