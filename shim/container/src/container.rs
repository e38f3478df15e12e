//! One container, from create to the end of its first process.
//!
//! ```text
//! create() --> creating --advance: Ready--> created --start(), advance: Started--> running
//!                 |                           |             |                        |
//!                 +--advance: Err (undone)    +---- its first process ends: stopped -+
//! ```

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;

use crate::cgroup::{Cgroup, Layout};
use crate::error::{Error, Result};
use crate::pod::PodNamespaces;

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
}

impl Rootfs {
    /// Reads a mount in containerd's form: type `overlay` with options `lowerdir=a:b`,
    /// `upperdir=`, `workdir=` and others, or type `bind` with the directory as source.
    pub fn from_mount(kind: &str, source: &str, options: &[String]) -> Result<Self> {
        let _ = (source, options);
        Err(Error::InvalidSpec {
            field: "rootfs".into(),
            reason: format!("type {kind:?}: not built yet"),
        })
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

/// What to create.
#[derive(Debug, Clone, Copy)]
pub struct CreateRequest<'a> {
    /// Names the container in hooks' state and in messages.
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

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A container. Dropping it before its end leaves the process running; see [`Container::abort`].
#[derive(Debug)]
pub struct Container {
    pid: u32,
    pidfd: OwnedFd,
    sync: Option<OwnedFd>,
    cgroup: Cgroup,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

impl Container {
    /// Checks the spec, makes the cgroup with its limits, and starts the child that prepares
    /// everything else; returns as soon as it runs.
    pub fn create(_request: &CreateRequest<'_>) -> Result<Self> {
        Err(not_built("create"))
    }

    /// [`Container::create`], then waits for [`Progress::Ready`]. After `deadline` the child is
    /// killed and everything undone.
    pub fn create_blocking(_request: &CreateRequest<'_>, _deadline: Duration) -> Result<Self> {
        Err(not_built("create"))
    }

    /// Takes what the child said. Call when [`Container::sync_fd`] or [`Container::pidfd`] is
    /// readable; never blocks. An `Err` before `Ready` means all is undone and the process is
    /// reaped (don't call `exit_status` or `reap`). An `Err` after [`Container::start`]
    /// ([`Error::Exec`], [`Error::Step`]) means the program can't be executed and the process has
    /// ended, but the caller still owns the rest: `reap` it and `delete` the container.
    pub fn advance(&mut self) -> Result<Progress> {
        Err(not_built("create"))
    }

    /// Opens the gate. The outcome comes by `advance`: [`Progress::Started`] or an error.
    pub fn start(&mut self) -> Result<()> {
        Err(not_built("start"))
    }

    /// [`Container::start`], then waits for the outcome.
    pub fn start_blocking(&mut self, _deadline: Duration) -> Result<()> {
        Err(not_built("start"))
    }

    /// Kills the child, waits for its end and undoes everything: a create that must not go on.
    /// A child that a dead volume holds in the kernel makes this fail with
    /// [`crate::ErrorKind::Busy`] after `patience`; the same call may be repeated.
    pub fn abort(&mut self, _patience: Duration) -> Result<()> {
        Err(not_built("abort"))
    }

    /// Process id of the first process, as the host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the first process ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when the child has something to say; `None` once the program runs.
    #[must_use]
    pub fn sync_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sync.as_ref().map(AsFd::as_fd)
    }

    /// The terminal's master side, there from [`Progress::Ready`] on where `process.terminal` is
    /// true. Close-on-exec, blocking.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// What could not be done exactly as asked (a capability the host lacks, an rlimit above the
    /// host's own, an oom_score_adj below the allowed one): one sentence each, for the log.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Sends `signal` to the first process. Ended already: [`crate::ErrorKind::NotFound`].
    pub fn kill(&self, _signal: i32) -> Result<()> {
        Err(not_built("kill"))
    }

    /// Sends SIGKILL to every process of the container, execs included.
    pub fn kill_all(&self) -> Result<()> {
        Err(not_built("kill"))
    }

    /// How the first process ended, without reaping it; `None` while it runs. Never blocks.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Err(not_built("wait"))
    }

    /// Reaps the first process after its end. Never blocks; `None` while it runs.
    pub fn reap(&self) -> Result<Option<ExitStatus>> {
        Err(not_built("wait"))
    }

    /// Removes what is left of a stopped, reaped container: kills what its cgroup still holds,
    /// removes the cgroup and marked empty parents. Idempotent.
    pub fn delete(&self, _patience: Duration) -> Result<()> {
        Err(not_built("delete"))
    }
}

fn not_built(step: &str) -> Error {
    Error::Step { step: step.to_owned(), source: std::io::ErrorKind::Unsupported.into() }
}
