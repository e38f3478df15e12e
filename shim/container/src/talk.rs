//! The maker's side of a child: its handle, and what it has said so far.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::process::{self, Child};

use crate::error::{Error, Result, StepExt};
use crate::exit::ExitStatus;
use crate::wire::{self, Said};

/// What a round of hearing brought.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing that changes anything.
    Nothing,
    /// It waits at the gate.
    Ready,
    /// Its program runs.
    Started,
    /// It failed, and has ended.
    Failed(Error),
}

/// A child and the conversation with it.
#[derive(Debug)]
pub(crate) struct Talk {
    child: Child,
    /// Builds the child's root, from outside of its user namespace.
    builder: Option<Child>,
    /// Set once it is reaped: the kernel knows nothing of it then.
    reaped: Cell<Option<ExitStatus>>,
    sync: Option<OwnedFd>,
    executing: bool,
    failure: Option<Error>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
}

impl Talk {
    pub(crate) fn new(child: Child, sync: OwnedFd) -> Self {
        Self {
            child,
            builder: None,
            reaped: Cell::new(None),
            sync: Some(sync),
            executing: false,
            failure: None,
            terminal: None,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn with_builder(self, builder: Child) -> Self {
        Self { builder: Some(builder), ..self }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    pub(crate) fn sync_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sync.as_ref().map(AsFd::as_fd)
    }

    /// Takes all it said until now. A failure is passed on only after its end, so that whoever
    /// hears of it can clean up at once.
    pub(crate) fn hear(&mut self) -> Result<Heard> {
        while let Some(sync) = &self.sync {
            let said = match wire::hear(sync.as_fd()) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                other => other.step(|| "hear the child".to_owned())?,
            };
            match said {
                Said::Warning(text) => self.warnings.push(text),
                Said::Terminal(master) => self.terminal = Some(master),
                Said::Ready => {
                    // Its work is done, and its last step was to say so.
                    self.reap_builder()?;
                    return Ok(Heard::Ready);
                }
                Said::Born(_) => {}
                Said::Executing => self.executing = true,
                // The first one is the cause; who waits for that one fails, too.
                Said::Failed(failure) if self.failure.is_none() => {
                    self.failure = Some(failure.into());
                }
                Said::Failed(_) => {}
                Said::End => {
                    self.sync = None;
                    // Both have closed it, so both are ending. Reaped first: the first process of
                    // a PID namespace ends when all others there are gone.
                    self.reap_builder()?;
                    if self.executing && self.failure.is_none() {
                        return Ok(Heard::Started);
                    }
                }
            }
        }
        match self.exit_status()? {
            None => Ok(Heard::Nothing),
            Some(status) => {
                self.sync = None;
                let step = "prepare the process".to_owned();
                Ok(Heard::Failed(self.failure.take().unwrap_or(Error::Died { step, status })))
            }
        }
    }

    /// Until something may be heard. Past `end`: [`crate::ErrorKind::Deadline`].
    pub(crate) fn wait(&self, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        let fds: Vec<BorrowedFd<'_>> = self.sync_fd().into_iter().chain([self.pidfd()]).collect();
        let step = || "wait for the process".to_owned();
        if left.is_zero() || !process::wait_readable(&fds, Some(left)).step(step)? {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).step(step);
        }
        Ok(())
    }

    /// Until its end. Past `patience`: [`crate::ErrorKind::Busy`].
    pub(crate) fn wait_end(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        let step = || format!("wait for the end of process {}", self.pid());
        while !self.has_ended()? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::ResourceBusy)).step(step);
            }
            process::wait_readable(&[self.pidfd()], Some(left)).step(step)?;
        }
        Ok(())
    }

    pub(crate) fn has_ended(&self) -> Result<bool> {
        Ok(self.exit_status()?.is_some())
    }

    pub(crate) fn exit_status(&self) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.reaped.get() {
            return Ok(Some(status));
        }
        let status = process::peek_exit(self.pidfd());
        Ok(status.step(|| format!("look at process {}", self.pid()))?.map(ExitStatus::from))
    }

    /// Waits for the end of the builder, which is on its way there.
    pub(crate) fn reap_builder(&mut self) -> Result<()> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        match process::wait(builder.pidfd.as_fd()) {
            // ECHILD: taken for an orphan and reaped.
            Err(err) if err.raw_os_error() != Some(10) => {
                Err(err).step(|| format!("wait for process {}", builder.pid))
            }
            _ => Ok(()),
        }
    }

    /// Kills the builder. `Busy`: it is stuck in the kernel longer than `patience`.
    pub(crate) fn end_builder(&mut self, patience: Duration) -> Result<()> {
        let Some(builder) = &self.builder else { return Ok(()) };
        let step = || format!("wait for the end of process {}", builder.pid);
        // ESRCH: it is reaped.
        let _ = process::signal(builder.pidfd.as_fd(), 9);
        if !process::wait_readable(&[builder.pidfd.as_fd()], Some(patience)).step(step)? {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy)).step(step);
        }
        self.reap_builder()
    }

    pub(crate) fn reap(&self) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.reaped.get() {
            return Ok(Some(status));
        }
        let status = process::reap(self.pidfd()).step(|| format!("reap process {}", self.pid()))?;
        self.reaped.set(status.map(ExitStatus::from));
        Ok(self.reaped.get())
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let sent = process::signal(self.pidfd(), signal).map_err(|err| match err.raw_os_error() {
            // ESRCH
            Some(3) => io::Error::new(io::ErrorKind::NotFound, "process has ended"),
            _ => err,
        });
        sent.step(|| format!("send signal {signal} to process {}", self.pid()))
    }
}
