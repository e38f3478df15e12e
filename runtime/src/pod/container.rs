//! One container as its pod's driver knows it.

use std::sync::Arc;

use berth_proto::ids::ContainerId;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::exit::Ended;
use super::spec::ContainerSpec;
use super::{ContainerSnapshot, ContainerState, Error, Result};
use crate::store::{ContainerPhase, ContainerRecord};

/// Where a result goes. Its caller may be gone.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub record: ContainerRecord,
    pub spec: Arc<ContainerSpec>,
    /// Follows the record's phase, after it was written.
    pub phase: watch::Sender<ContainerPhase>,
    /// An end that came while StartContainer was under way.
    pub early_end: Option<Ended>,
    pub creating: Option<Creating>,
    pub starting: Vec<Reply<()>>,
    pub stopping: Option<Stopping>,
    pub removing: Vec<Reply<()>>,
    /// Whether the removal's own work has begun.
    pub removal_began: bool,
    /// Made while its pod was being stopped: to be taken away without anybody asking.
    pub doomed: bool,
}

/// A CreateContainer under way.
#[derive(Debug)]
pub(crate) struct Creating {
    pub waiters: Vec<Reply<ContainerId>>,
    pub cancel: watch::Sender<bool>,
}

/// A StopContainer under way.
#[derive(Debug)]
pub(crate) struct Stopping {
    pub waiters: Vec<Reply<()>>,
    pub deadline: watch::Sender<Instant>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Self {
        Self {
            spec: Arc::new(record.spec.clone()),
            phase: watch::Sender::new(record.phase),
            record,
            early_end: None,
            creating: None,
            starting: Vec::new(),
            stopping: None,
            removing: Vec::new(),
            removal_began: false,
            doomed: false,
        }
    }

    /// Takes over what has been written down, and says so to those who wait for a phase.
    pub(crate) fn become_recorded(&mut self, record: ContainerRecord) {
        let phase = record.phase;
        self.record = record;
        self.phase.send_replace(phase);
    }

    /// Whether it has processes, or may come to have.
    pub(crate) fn alive(&self) -> bool {
        use ContainerPhase::{Created, Running, Starting};
        matches!(self.record.phase, Created | Starting | Running)
    }

    /// Whether an operation on it is under way that its pod's removal has to wait for.
    pub(crate) fn busy(&self) -> bool {
        self.creating.is_some() || !self.starting.is_empty() || self.removal_began || self.doomed
    }

    /// Whether its removal is asked for and can begin.
    pub(crate) fn wants_removal(&self) -> bool {
        let asked = !self.removing.is_empty() || self.doomed;
        asked && !self.removal_began && self.creating.is_none() && self.starting.is_empty()
    }

    /// Only a created container can be started.
    pub(crate) fn check_startable(&self) -> Result<()> {
        match self.record.phase {
            ContainerPhase::Created if self.removing.is_empty() && !self.doomed => Ok(()),
            _ => Err(self.wrong_state("only a created container can be started")),
        }
    }

    /// It is in the wrong state for what is asked.
    pub(crate) fn wrong_state(&self, why: &str) -> Error {
        Error::State {
            what: format!("container {}", self.record.id),
            state: match self.record.phase {
                ContainerPhase::Making => "being created",
                ContainerPhase::Created => "created",
                ContainerPhase::Starting => "being started",
                ContainerPhase::Running => "running",
                ContainerPhase::Exited => "exited",
                ContainerPhase::Removing => "being removed",
            },
            why: why.to_owned(),
        }
    }

    /// None while it is being made: nobody sees half a container.
    pub(crate) fn snapshot(&self) -> Option<Arc<ContainerSnapshot>> {
        let record = &self.record;
        let state = match record.phase {
            ContainerPhase::Making => return None,
            _ if self.doomed => return None,
            ContainerPhase::Created | ContainerPhase::Starting => ContainerState::Created,
            ContainerPhase::Running => ContainerState::Running,
            ContainerPhase::Exited | ContainerPhase::Removing => ContainerState::Exited,
        };
        let running = state == ContainerState::Running;
        let created = state == ContainerState::Created;
        Some(Arc::new(ContainerSnapshot {
            id: record.id.clone(),
            pod: record.pod.clone(),
            spec: self.spec.clone(),
            state,
            created_at: record.created_at,
            started_at: if created { 0 } else { record.started_at },
            finished_at: record.finished_at,
            exit_code: record.exit_code,
            reason: record.reason.clone(),
            message: record.message.clone(),
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            volume_images: record.volume_images.clone(),
            log_path: record.log_path.clone(),
            user: record.user.clone(),
            stop_signal: record.stop_signal,
            pid: (running || created).then_some(record.pid).filter(|pid| *pid != 0),
            log_bytes_lost: record.log_bytes_lost,
        }))
    }
}
