//! Start and signals.

use berth_container as engine;

use super::Phase;
use crate::service::Reply;
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

/// The exit code of a container whose program could not be executed.
const START_FAILED: u32 = 128;

impl Shim {
    /// Opens a container's gate. Answered when its program runs, or cannot.
    pub(crate) fn start(&mut self, to: ReplyTo, id: &str) -> Result<(), Status> {
        let (number, container) = self.container_mut(id)?;
        if container.phase != Phase::Created {
            let state = container.phase.name();
            return Err(Status::precondition(format!("start: container {id:?} is {state}")));
        }
        container.engine.start().map_err(|error| status_of("start", &error))?;
        container.phase = Phase::Starting;
        container.start_to = Some(to);
        self.poll_launch(number)
            .map_err(|error| Status::internal(format!("start: poll the child: {error}")))
    }

    pub(super) fn started(&mut self, number: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.phase = Phase::Running;
        let pid = container.engine.pid();
        if let Some(to) = container.start_to.take() {
            self.reply(to, Ok(Reply::Started { pid }));
        }
    }

    /// The program cannot be executed; the process has ended. The answer waits for the record.
    pub(super) fn start_failed(&mut self, number: u64, error: &engine::Error) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.start_error = Some(status_of("start", error));
        // One that was killed meanwhile ended by that.
        let killed = matches!(error, engine::Error::Died { .. });
        self.first_process_ended(number, (!killed).then_some(START_FAILED));
    }

    /// Sends a signal to the first process, or to all.
    pub(crate) fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Status> {
        let container = self.container(id)?;
        if container.exit.is_some() {
            return Err(Status::not_found(format!("container {id:?}: process already finished")));
        }
        let killed = if !all {
            container.engine.kill(signal)
        } else if signal == KILL {
            container.engine.kill_all()
        } else {
            return signal_all(&container.engine, signal);
        };
        killed.map_err(|error| match error.kind() {
            engine::ErrorKind::NotFound => {
                Status::not_found(format!("container {id:?}: process already finished"))
            }
            _ => status_of("kill", &error),
        })
    }
}

const KILL: i32 = 9;

/// A signal to each process of a container. New ones may be born meanwhile, as with any signal
/// but SIGKILL, which is sent until none is left.
fn signal_all(container: &engine::Container, number: i32) -> Result<(), Status> {
    let signal = rustix::process::Signal::from_named_raw(number)
        .ok_or_else(|| Status::invalid(format!("signal {number}: unknown")))?;
    let pids = container.cgroup().pids().map_err(|error| status_of("kill", &error))?;
    for pid in pids {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // One that ended meanwhile is fine.
            let _ended = rustix::process::kill_process(pid, signal);
        }
    }
    Ok(())
}
