//! One command inside a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::Process;

use crate::container::{Container, ExitStatus, Progress, Stdio};
use crate::error::{Error, Result};

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
    pid: u32,
    pidfd: OwnedFd,
    sync: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

impl Exec {
    /// Starts the child that joins the container and executes; returns as soon as it runs.
    /// There is no gate. The container must be running.
    pub fn spawn(_container: &Container, _request: &ExecRequest<'_>) -> Result<Self> {
        Err(not_built("exec"))
    }

    /// [`Exec::spawn`], then waits for [`Progress::Started`].
    pub fn spawn_blocking(
        _container: &Container,
        _request: &ExecRequest<'_>,
        _deadline: Duration,
    ) -> Result<Self> {
        Err(not_built("exec"))
    }

    /// Takes what the child said; as [`Container::advance`], without `Ready`. An `Err` means all
    /// is undone and the process is reaped.
    pub fn advance(&mut self) -> Result<Progress> {
        Err(not_built("exec"))
    }

    /// Host process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the process ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when the child has something to say; `None` once the program runs.
    #[must_use]
    pub fn sync_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sync.as_ref().map(AsFd::as_fd)
    }

    /// The terminal's master side, there from [`Progress::Started`] on.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// As [`Container::take_warnings`].
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Sends `signal` to the process.
    pub fn kill(&self, _signal: i32) -> Result<()> {
        Err(not_built("exec"))
    }

    /// Sends SIGKILL to the process and everything it started, also what it orphaned.
    pub fn kill_tree(&self) -> Result<()> {
        Err(not_built("exec"))
    }

    /// How it ended, without reaping it; `None` while it runs.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Err(not_built("exec"))
    }

    /// Reaps it after its end and removes its cgroup where empty; `None` while it runs. Orphans
    /// it left behind stay (they are the container's); the cgroup then goes with the container's.
    pub fn reap(&self) -> Result<Option<ExitStatus>> {
        Err(not_built("exec"))
    }
}

fn not_built(step: &str) -> Error {
    Error::Step { step: step.to_owned(), source: std::io::ErrorKind::Unsupported.into() }
}
