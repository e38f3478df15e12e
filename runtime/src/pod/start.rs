//! StartContainer, as a list of steps.

use super::cleanup::{Cleanup, run_all};
use super::house::PodEnv;
use super::steps::{Cancelled, Steps};
use super::{Error, Result};
use crate::clock;
use crate::store::{ContainerPhase, ContainerRecord};

/// What became of it: running, or ended before it began.
pub(crate) struct Started {
    /// Running; or Exited with 128, `StartError` and the message.
    pub record: ContainerRecord,
    /// Why it could not be.
    pub failure: Option<Error>,
    /// What of it could not be ended.
    pub left: Vec<Cleanup>,
}

/// The exit code of a container whose program could not be started.
const START_ERROR: i32 = 128;

/// Starts a created container; one that cannot be started has ended.
pub(crate) async fn start(env: &PodEnv, mut record: ContainerRecord) -> Started {
    // Nothing cancels a start: a stop waits for it, then signals what it has started.
    let (_keep, never) = Cancelled::new();
    let mut steps = Steps::new(env, never);
    let Err(error) = attempt(&mut steps, env, &mut record).await else {
        return Started { record, failure: None, left: Vec::new() };
    };
    let undo = Cleanup::Task { container: record.id.clone() };
    let left = run_all(env, [undo]).await;
    record.phase = ContainerPhase::Exited;
    record.started_at = 0;
    record.finished_at = clock::now();
    record.exit_code = START_ERROR;
    record.pid = 0;
    "StartError".clone_into(&mut record.reason);
    record.message = error.to_string();
    Started { record, failure: Some(error), left }
}

async fn attempt(steps: &mut Steps<'_>, env: &PodEnv, record: &mut ContainerRecord) -> Result<()> {
    record.phase = ContainerPhase::Starting;
    // Before the program can end: a start is never later than its finish.
    record.started_at = clock::now();
    steps.step("start.record", None, env.save_container(record)).await?;
    let pid = steps.step("start.task", None, open_gate(env, record)).await?;
    if pid != 0 {
        record.pid = pid;
    }
    record.phase = ContainerPhase::Running;
    steps.step("start.commit", None, env.save_container(record)).await
}

async fn open_gate(env: &PodEnv, record: &ContainerRecord) -> Result<u32> {
    let started = env.shim()?.start(record.id.as_str()).await;
    started.map_err(|e| Error::shim("start the container", e))
}
