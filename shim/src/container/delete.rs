//! Delete: removes what a stopped container leaves, trying again while the kernel says busy.

use std::time::{Duration, Instant};

use berth_container::ErrorKind;

use super::Phase;
use crate::poll::Token;
use crate::service::Reply;
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

/// Tries before a caller is told that the cgroup stays busy: about ten seconds in all.
const TRIES: u32 = 200;
/// Between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// Between the first tries, when the kernel is about to be done.
const FIRST_RETRY: Duration = Duration::from_millis(2);

/// When a removal is tried again after it was tried so often.
pub(crate) fn retry_at(tries: u32) -> Instant {
    Instant::now() + if tries < 20 { FIRST_RETRY } else { RETRY }
}

impl Shim {
    /// Forgets a stopped container. Answered when its cgroup is gone.
    pub(crate) fn delete(&mut self, to: ReplyTo, id: &str) -> Result<(), Status> {
        let (number, container) = self.container_mut(id)?;
        if !container.is_settled() {
            let state = container.phase.name();
            return Err(Status::precondition(format!("delete: container {id:?} is {state}")));
        }
        if container.phase == Phase::Ended {
            // Its record cannot be written, but who deletes it knows the exit, and is told again.
            container.phase = Phase::Stopped;
            if let Err(error) = container.engine.reap() {
                crate::log::say(format_args!("container {id}: reap: {error}"));
            }
        }
        container.deletes.push(to);
        if container.deletes.len() == 1 {
            container.tries = 0;
            self.poll.clear_timers(Token::Deadline(number));
            self.go_on_deleting(number);
        }
        Ok(())
    }

    /// Tries to remove what is left of a container that is to be deleted.
    pub(super) fn go_on_deleting(&mut self, number: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let result = match container.engine.delete(Duration::ZERO) {
            Err(error) if error.kind() == ErrorKind::Busy && container.tries < TRIES => {
                container.tries += 1;
                self.poll.set_timer(retry_at(container.tries), Token::Deadline(number));
                return;
            }
            result => result,
        };
        let deletes = std::mem::take(&mut container.deletes);
        let answer = match (result, container.exit) {
            (Err(error), _) => Err(status_of("delete", &error)),
            (Ok(()), exit) => {
                let pid = container.engine.pid();
                self.containers.remove(&number);
                exit.map(|exit| Reply::Deleted { pid, exit })
                    .ok_or_else(|| Status::internal("delete: no exit is known"))
            }
        };
        for to in deletes {
            self.reply(to, answer.clone());
        }
        berth_sys::resident::trim_memory();
    }
}
