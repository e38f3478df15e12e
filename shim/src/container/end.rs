//! The end of a first process: kill the rest, drain its output, write the record, reap, tell.

use std::time::{Duration, Instant};

use berth_proto::exit::{self, ExitRecord};

use super::{Container, Exit, Phase};
use crate::exits;
use crate::poll::Token;
use crate::service::Reply;
use crate::shim::{Shim, unix_nanos};
use crate::ttrpc::{ReplyTo, Status};

/// How long output is waited for after everything in the container was killed. Then what holds a
/// pipe open is outside of it (passed on over a socket) or stuck in the kernel.
const DRAIN: Duration = Duration::from_secs(2);
/// Between tries of a record that cannot be written.
const RECORD_RETRY: Duration = Duration::from_secs(1);

impl Shim {
    /// A container's pidfd is readable.
    pub(crate) fn container_process_ready(&mut self, number: u64) {
        let phase = self.containers.get(&number).map(|container| container.phase);
        if matches!(phase, Some(Phase::Creating | Phase::Starting)) {
            // What the child said before its end comes first.
            self.container_launch_ready(number);
        }
        let phase = self.containers.get(&number).map(|container| container.phase);
        if matches!(phase, Some(Phase::Created | Phase::Starting | Phase::Running)) {
            self.first_process_ended(number, None);
        }
    }

    /// Takes down how the first process ended and goes on to drain its output. `code`: what is
    /// told in place of its own exit code.
    pub(super) fn first_process_ended(&mut self, number: u64, code: Option<u32>) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let status = match container.engine.exit_status() {
            Ok(Some(status)) => Some(status),
            Ok(None) if code.is_none() => return,
            Ok(None) => None,
            Err(error) => {
                crate::log::say(format_args!("container {}: wait: {error}", container.id));
                None
            }
        };
        self.poll.remove(container.engine.pidfd());
        if let Some(sync) = container.engine.sync_fd() {
            self.poll.remove(sync);
        }
        let cgroup = container.engine.cgroup();
        let oom_killed = cgroup.oom_kills().unwrap_or_default() > 0;
        if let Err(error) = cgroup.kill() {
            crate::log::say(format_args!("container {}: kill the rest: {error}", container.id));
        }
        container.exit = Some(Exit {
            // 255: it ended, and nobody can say how.
            code: code.or(status.map(|s| s.code())).unwrap_or(255),
            signal: status.filter(|_| code.is_none()).and_then(|s| s.signal()),
            at: unix_nanos(),
            oom_killed,
        });
        container.phase = Phase::Ended;
        if container.pumps.is_empty() {
            self.settle(number);
        } else {
            self.poll.set_timer(Instant::now() + DRAIN, Token::Deadline(number));
        }
    }

    /// One of the container's outputs ended.
    pub(crate) fn container_pump_ended(&mut self, number: u64, pump: u64) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.pumps.retain(|kept| *kept != pump);
        if container.phase == Phase::Ended && container.pumps.is_empty() {
            self.settle(number);
        }
    }

    /// A container's timer fired: the drain is over, or a try is due.
    pub(crate) fn container_deadline(&mut self, number: u64) {
        let Some(container) = self.containers.get(&number) else { return };
        match container.phase {
            Phase::Ended if container.pumps.is_empty() => self.settle(number),
            // The last one settles the container.
            Phase::Ended => {
                for pump in container.pumps.clone() {
                    self.drain_pump(pump);
                }
            }
            Phase::Stopped => self.go_on_deleting(number),
            _ => {}
        }
    }

    /// All output is in: writes the record, reaps and tells who waits.
    fn settle(&mut self, number: u64) {
        self.poll.clear_timers(Token::Deadline(number));
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(exit) = container.exit else { return };
        if let Some(log) = container.log.as_mut() {
            // What is still untold then is in the record.
            let _untold = log.tell_loss();
        }
        match exits::write(&self.paths, &record(container, exit)) {
            Ok(()) => {
                container.phase = Phase::Stopped;
                container.tries = 0;
                if let Err(error) = container.engine.reap() {
                    crate::log::say(format_args!("container {}: reap: {error}", container.id));
                }
            }
            Err(error) => {
                if container.tries == 0 {
                    crate::log::say(format_args!(
                        "container {}: write its exit record: {error}; it stays unreaped",
                        container.id
                    ));
                }
                container.tries = container.tries.saturating_add(1);
                self.poll.set_timer(Instant::now() + RECORD_RETRY, Token::Deadline(number));
            }
        }
        self.tell(number, exit);
    }

    fn tell(&mut self, number: u64, exit: Exit) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let waits = std::mem::take(&mut container.waits);
        let start = container.start_to.take().zip(container.start_error.take());
        if let Some((to, status)) = start {
            self.reply(to, Err(status));
        }
        // A start that was cut short by a kill started nothing.
        let cut_short = self.containers.get_mut(&number).and_then(|c| c.start_to.take());
        if let Some(to) = cut_short {
            let message = format!("start: the process ended with exit code {}", exit.code);
            self.reply(to, Err(Status::internal(message)));
        }
        for to in waits {
            self.reply(to, Ok(Reply::Waited(exit)));
        }
        self.end_attaches(number);
        self.reap_orphans();
        self.go_on_stopping();
    }

    /// Waits for a container's end. `Some`: it has ended already.
    pub(crate) fn wait(&mut self, to: ReplyTo, id: &str) -> Result<Option<Exit>, Status> {
        let (_, container) = self.container_mut(id)?;
        if container.is_settled() {
            return Ok(container.exit);
        }
        container.waits.push(to);
        Ok(None)
    }
}

fn record(container: &Container, exit: Exit) -> ExitRecord {
    ExitRecord {
        version: exit::VERSION,
        container_id: container.id.clone(),
        exit_code: exit.code,
        signal: exit.signal,
        exited_at: exit.at,
        oom_killed: exit.oom_killed,
        log_bytes_lost: container.log_bytes_lost(),
    }
}
