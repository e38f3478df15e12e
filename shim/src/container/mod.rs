//! One container's states, from create to delete.
//!
//! ```text
//! Create                 Start                     pidfd           output drained, record on disk
//!   | Creating --Ready--> Created --> Starting --Started--> Running --> Ended --> Stopped --Delete-->
//!   |    |                   |            |                               ^
//!   |   Err: forgotten       +-- ended ---+-- Err: exit code 128 ---------+
//! ```
//! Create and Start answer when the child says so; other requests go on meanwhile. A client that
//! goes away changes nothing. Wait is answered from the record on; where the record cannot be
//! written (a full disk), it is answered all the same, the process stays unreaped and the record
//! is tried again: who asked knows, and who did not will find a zombie or a file.

mod create;
mod delete;
mod end;
mod start;
mod streams;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use berth_container as engine;
use oci_spec::runtime::Process;

use crate::io::log_file::LogFile;
use crate::shim::Shim;
use crate::ttrpc::{ReplyTo, Status};

pub(crate) use create::{CreateOrder, Streams, exec_process, output_pipe, set_nonblocking};
pub(crate) use delete::retry_at;

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The child prepares itself.
    Creating,
    /// The child waits at its gate.
    Created,
    /// The gate is open, the program not yet executed.
    Starting,
    /// The program runs.
    Running,
    /// The first process ended; its output is drained or its record is not yet on disk.
    Ended,
    /// All is on disk and reaped.
    Stopped,
}

impl Phase {
    /// The word for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Ended | Self::Stopped => "stopped",
        }
    }
}

/// How a first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0-255; 128 + signal number.
    pub(crate) code: u32,
    pub(crate) signal: Option<u32>,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
    pub(crate) oom_killed: bool,
}

/// A container of this pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) streams: Streams,
    pub(crate) phase: Phase,
    /// Set from [`Phase::Ended`] on.
    pub(crate) exit: Option<Exit>,
    /// The log of both streams, if one was asked for.
    pub(crate) log: Option<LogFile>,
    pub(crate) engine: engine::Container,
    /// What an exec starts from: the container's own process.
    pub(crate) process: Box<Process>,
    /// Where a later attach writes what the container reads. None where it reads /dev/null or a
    /// terminal, or where its input was closed.
    pub(crate) stdin: Option<OwnedFd>,
    /// The pumps that still run.
    pumps: Vec<u64>,
    create_to: Option<ReplyTo>,
    start_to: Option<ReplyTo>,
    /// Why the program could not be executed.
    start_error: Option<Status>,
    waits: Vec<ReplyTo>,
    deletes: Vec<ReplyTo>,
    /// Tries of what is tried again: the record, then the removal.
    tries: u32,
}

impl Container {
    /// Process id on the host; 0 once it ended.
    pub(crate) fn pid(&self) -> u32 {
        if self.exit.is_none() { self.engine.pid() } else { 0 }
    }

    /// Bytes of log that are lost.
    pub(crate) fn log_bytes_lost(&self) -> u64 {
        self.log.as_ref().map_or(0, LogFile::lost)
    }

    /// What ended cannot be harmed any more: its record is written or was tried.
    pub(crate) fn is_settled(&self) -> bool {
        self.phase == Phase::Stopped || (self.phase == Phase::Ended && self.tries > 0)
    }

    /// The pumps that still run.
    pub(crate) fn pumps(&self) -> &[u64] {
        &self.pumps
    }

    /// The pump of its standard output, or of its terminal.
    pub(crate) fn first_pump(&self) -> Option<u64> {
        self.pumps.first().copied()
    }
}

impl Shim {
    /// The number of the container with this id.
    pub(crate) fn find(&self, id: &str) -> Result<u64, Status> {
        self.containers
            .iter()
            .find_map(|(number, container)| (container.id == id).then_some(*number))
            .ok_or_else(|| Status::not_found(format!("container {id:?} not found")))
    }

    /// The container with this id.
    pub(crate) fn container(&self, id: &str) -> Result<&Container, Status> {
        let number = self.find(id)?;
        self.containers.get(&number).ok_or_else(|| gone(id))
    }

    /// The container with this id and its number.
    pub(crate) fn container_mut(&mut self, id: &str) -> Result<(u64, &mut Container), Status> {
        let number = self.find(id)?;
        let container = self.containers.get_mut(&number).ok_or_else(|| gone(id))?;
        Ok((number, container))
    }
}

fn gone(id: &str) -> Status {
    Status::not_found(format!("container {id:?} not found"))
}
