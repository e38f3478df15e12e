//! The lives of a pod's containers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_proto::ids::ContainerId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::life::{answer, reply};
use super::{Done, Driver};
use crate::pod::cleanup::Cleanup;
use crate::pod::container::{Container, Creating, Reply, Stopping};
use crate::pod::create::{self, Made};
use crate::pod::exit::{self, Ended};
use crate::pod::halt::{self, Halt};
use crate::pod::policy::{Meets, check_container, container_meets};
use crate::pod::spec::ContainerSpec;
use crate::pod::start::{self, Started};
use crate::pod::state::Phase;
use crate::pod::steps::Cancelled;
use crate::pod::{Error, ExecOutput, Kind, Result, ids, remove};
use crate::shim::{Ends, Exec, ExecResult, Leash, Open, Shim};
use crate::store::ContainerPhase;

/// "No grace" in the form of a long one: further than any clock here goes.
const LONGEST_GRACE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Driver {
    pub(super) fn on_create(&mut self, spec: ContainerSpec, to: Reply<ContainerId>) {
        let checked = self
            .check_ready("no container can be created")
            .and_then(|()| check_container(&spec, &self.env.spec, &self.env.house.host));
        if let Err(error) = checked {
            return reply(to, Err(error));
        }
        let Some(old) = self.containers.values_mut().find(|c| c.spec.key == spec.key) else {
            return self.begin_create(spec, to);
        };
        match container_meets(old.record.phase, *old.spec == spec) {
            Meets::Same => reply(to, Ok(old.record.id.clone())),
            Meets::Join => match &mut old.creating {
                Some(creating) => creating.waiters.push(to),
                None => self.queued.push((spec, to)),
            },
            Meets::Supersede => {
                if let Some(creating) = &old.creating {
                    creating.cancel.send_replace(true);
                }
                self.queued.push((spec, to));
            }
            Meets::Await => self.queued.push((spec, to)),
            Meets::Refuse => {
                let what = format!("container {} (attempt {})", spec.key.name, spec.key.attempt);
                reply(to, Err(Error::Exists { what, id: old.record.id.to_string() }));
            }
        }
    }

    /// Those that waited for another of the same name try again once it has gone.
    pub(super) fn begin_queued(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        for (spec, to) in queued {
            let taken = self.containers.values().any(|c| c.spec.key == spec.key);
            match taken && self.phase() == Phase::Ready {
                true => self.queued.push((spec, to)),
                false => self.on_create(spec, to),
            }
        }
    }

    fn check_ready(&self, why: &str) -> Result<()> {
        match self.phase() {
            Phase::Ready => Ok(()),
            phase => Err(Error::State {
                what: format!("pod sandbox {}", self.env.id),
                state: phase.as_str(),
                why: why.to_owned(),
            }),
        }
    }

    fn begin_create(&mut self, spec: ContainerSpec, to: Reply<ContainerId>) {
        let id = match ids::random() {
            Ok(bytes) => ContainerId::from_random(bytes),
            Err(error) => return reply(to, Err(error)),
        };
        let record = create::intent(&self.env, id.clone(), spec);
        let mut container = Container::new(record.clone());
        let (cancel, cancelled) = Cancelled::new();
        let key = id.clone();
        let begun = self.begin(|env| async move {
            Done::Created(id, Box::new(create::create(&env, record, cancelled).await))
        });
        match begun {
            Ok(()) => {
                container.creating = Some(Creating { waiters: vec![to], cancel });
                self.containers.insert(key, container);
            }
            Err(error) => reply(to, Err(error)),
        }
    }

    pub(super) async fn created(&mut self, id: &ContainerId, made: Made) {
        self.leave_over(made.left).await;
        let ready = self.check_ready("it was stopped while the container was being created");
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = container.creating.take().map(|c| c.waiters);
        let result = match (made.record, made.failure) {
            (Some(record), _) => {
                container.become_recorded(record);
                // Stopped meanwhile: nobody may find it.
                container.doomed = ready.is_err();
                ready.map(|()| id.clone())
            }
            (None, failure) => {
                self.containers.remove(id);
                Err(failure.unwrap_or(Error::Draining))
            }
        };
        match &result {
            Ok(_) => {
                tracing::info!(pod = %self.env.id, container = %id, "container created");
                self.watch_container(id.clone());
            }
            Err(error) => {
                tracing::warn!(pod = %self.env.id, container = %id, %error, "container not created");
                self.relink_if_lost(error);
            }
        }
        self.publish();
        answer(&mut waiters.unwrap_or_default(), &result);
    }

    fn relink_if_lost(&mut self, error: &Error) {
        if error.kind() == Kind::Unavailable {
            self.relink();
        }
    }

    pub(super) fn watch_container(&mut self, id: ContainerId) {
        self.watch(|env| async move {
            let ended = exit::wait(&env, &id).await;
            Done::Ended(id, ended)
        });
    }

    /// A container's first process has ended. Told twice, the first one counts.
    pub(super) async fn ended(&mut self, id: &ContainerId, ended: Ended) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // The record is that of before the StartContainer, which is still to be applied.
        if !container.starting.is_empty() {
            container.early_end = Some(ended);
            return;
        }
        if !container.alive() {
            return;
        }
        let mut record = container.record.clone();
        ended.put_into(&mut record);
        if let Err(error) = self.env.save_container(&record).await {
            // The shim's exit record says it again after a restart.
            tracing::warn!(container = %id, %error, "end not written down");
        }
        self.has_ended(id, record);
    }

    fn has_ended(&mut self, id: &ContainerId, record: crate::store::ContainerRecord) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (code, reason) = (record.exit_code, record.reason.clone());
        tracing::info!(pod = %self.env.id, container = %id, code, reason, "container ended");
        container.become_recorded(record);
        self.publish();
        // Its cgroup is of no more use; a later removal finds nothing to do.
        let id = id.to_string();
        self.watch(|env| async move {
            if let Some(link) = env.link()
                && let Err(error) = link.shim.delete(&id).await
            {
                tracing::debug!(container = id, %error, "ended container not deleted yet");
            }
            Done::Answered { lost: false }
        });
    }

    pub(super) fn on_start(&mut self, id: &ContainerId, to: Reply<()>) {
        let ready = self.check_ready("no container can be started");
        let Some(container) = self.containers.get_mut(id) else {
            return reply(to, Err(Error::NoContainer { id: id.to_string() }));
        };
        if !container.starting.is_empty() {
            return container.starting.push(to);
        }
        let startable = ready.and_then(|()| container.check_startable());
        if let Err(error) = startable {
            return reply(to, Err(error));
        }
        let record = container.record.clone();
        // A stop that comes now has to wait for what becomes of the start.
        container.phase.send_replace(ContainerPhase::Starting);
        container.starting.push(to);
        let key = id.clone();
        let begun = self.begin(|env| async move {
            Done::Started(key, Box::new(start::start(&env, record).await))
        });
        if let (Err(error), Some(container)) = (begun, self.containers.get_mut(id)) {
            container.phase.send_replace(ContainerPhase::Created);
            answer(&mut container.starting, &Err(error));
        }
    }

    pub(super) async fn started(&mut self, id: &ContainerId, started: Started) {
        let mut record = started.record;
        let Some(container) = self.containers.get_mut(id) else { return };
        let early = container.early_end.take();
        let ended = record.phase == ContainerPhase::Exited || early.is_some();
        if let (Some(early), ContainerPhase::Running) = (early, record.phase) {
            early.put_into(&mut record);
        }
        let written = match ended {
            true => self.env.save_container(&record).await,
            false => Ok(()),
        };
        if let Err(error) = written {
            tracing::warn!(container = %id, %error, "end not written down");
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut waiters = std::mem::take(&mut container.starting);
        if ended {
            self.has_ended(id, record);
        } else {
            tracing::info!(pod = %self.env.id, container = %id, "container started");
            container.become_recorded(record);
            self.publish();
        }
        self.leave_over(started.left).await;
        if let Some(error) = &started.failure {
            tracing::warn!(pod = %self.env.id, container = %id, %error, "container not started");
            self.relink_if_lost(error);
        }
        answer(&mut waiters, &started.failure.map_or(Ok(()), Err));
    }

    pub(super) fn on_halt(&mut self, id: &ContainerId, grace: Duration, to: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else { return reply(to, Ok(())) };
        let starting = !container.starting.is_empty();
        if container.record.phase != ContainerPhase::Running && !starting {
            return reply(to, Ok(()));
        }
        self.halt(id, grace, Some(to));
    }

    fn halt(&mut self, id: &ContainerId, grace: Duration, to: Option<Reply<()>>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let now = Instant::now();
        let until = now.checked_add(grace.min(LONGEST_GRACE)).unwrap_or(now);
        if let Some(stopping) = &mut container.stopping {
            stopping.waiters.extend(to);
            stopping.deadline.send_if_modified(|old| {
                let sooner = until < *old;
                *old = until.min(*old);
                sooner
            });
            return;
        }
        let (deadline, watched) = watch::channel(until);
        container.stopping = Some(Stopping { waiters: to.into_iter().collect(), deadline });
        let halt = Halt {
            id: id.to_string(),
            signal: u32::try_from(container.record.stop_signal).unwrap_or(15),
            deadline: watched,
            phase: container.phase.subscribe(),
        };
        let id = id.clone();
        self.watch(|env| async move {
            let result = halt::halt(&env, halt).await;
            Done::Halted(id, result)
        });
    }

    pub(super) fn halted(&mut self, id: &ContainerId, result: &Result<()>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(mut stopping) = container.stopping.take() {
            answer(&mut stopping.waiters, result);
        }
        if let Err(error) = result {
            answer(&mut container.removing, &Err(error.clone()));
            let error = error.clone();
            self.relink_if_lost(&error);
        }
    }

    pub(super) fn on_discard(&mut self, id: &ContainerId, to: Reply<()>) {
        match self.containers.get_mut(id) {
            None => reply(to, Ok(())),
            Some(container) => container.removing.push(to),
        }
    }

    /// Containers that are to go: first to their end, then away.
    pub(super) fn begin_removals(&mut self) {
        let wanted: Vec<_> = self
            .containers
            .values()
            .filter(|c| c.wants_removal())
            .map(|c| c.record.id.clone())
            .collect();
        for id in wanted {
            let Some(container) = self.containers.get(&id) else { continue };
            if container.alive() && !container.doomed {
                if container.stopping.as_ref().is_none_or(|s| *s.deadline.borrow() > Instant::now())
                {
                    self.halt(&id, Duration::ZERO, None);
                }
            } else if self.phase() != Phase::Removing {
                self.begin_removal(&id);
            }
        }
    }

    fn begin_removal(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let record = container.record.clone();
        container.removal_began = true;
        let key = id.clone();
        let begun =
            self.begin(
                |env| async move { Done::Discarded(key, remove::container(&env, record).await) },
            );
        if let (Err(error), Some(container)) = (begun, self.containers.get_mut(id)) {
            container.removal_began = false;
            container.doomed = false;
            answer(&mut container.removing, &Err(error));
        }
    }

    pub(super) async fn discarded(&mut self, id: &ContainerId, result: Result<Vec<Cleanup>>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut waiters = std::mem::take(&mut container.removing);
        container.removal_began = false;
        container.doomed = false;
        let result = match result {
            Ok(left) => {
                tracing::info!(pod = %self.env.id, container = %id, "container removed");
                self.containers.remove(id);
                self.leave_over(left).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.publish();
        answer(&mut waiters, &result);
    }

    fn running(&self, id: &ContainerId) -> Result<()> {
        let container = self.containers.get(id);
        let container = container.ok_or_else(|| Error::NoContainer { id: id.to_string() })?;
        match container.record.phase {
            ContainerPhase::Running => Ok(()),
            _ => Err(container.wrong_state("it is not running")),
        }
    }

    pub(super) fn on_exec(
        &mut self,
        id: &ContainerId,
        argv: Vec<String>,
        timeout: Option<Duration>,
        to: Reply<ExecOutput>,
    ) {
        if let Err(error) = self.running(id) {
            return reply(to, Err(error));
        }
        let exec = Exec { id: id.to_string(), argv, timeout, key: next_key() };
        self.watch(|env| async move {
            let mut to = to;
            let result = match env.shim() {
                Ok(shim) => tokio::select! {
                    done = shim.exec(exec.clone()) => done.map_err(|e| Error::shim("exec", e)),
                    () = to.closed() => return cancel(&shim, &exec).await,
                },
                Err(error) => Err(error),
            };
            let result = result.and_then(|done| exec_output(done, timeout));
            let lost = result.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable);
            reply(to, result);
            Done::Answered { lost }
        });
    }

    pub(super) fn on_open(&mut self, id: &ContainerId, open: Open, to: Reply<(Leash, Ends)>) {
        if let Err(error) = self.running(id) {
            return reply(to, Err(error));
        }
        let id = id.to_string();
        self.watch(|env| async move {
            let opened = Leash::open(&env.paths, &id, open).await;
            reply(to, opened.map_err(|e| Error::shim("open streams", e)));
            // It came by a connection of its own, which says nothing of ours.
            Done::Answered { lost: false }
        });
    }

    pub(super) fn on_reopen_log(&mut self, id: &ContainerId, to: Reply<()>) {
        if let Err(error) = self.running(id) {
            return reply(to, Err(error));
        }
        let id = id.to_string();
        self.watch(|env| async move {
            let result = match env.shim() {
                Ok(shim) => shim.reopen_log(&id).await.map_err(|e| Error::shim("reopen log", e)),
                Err(error) => Err(error),
            };
            let lost = result.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable);
            reply(to, result);
            Done::Answered { lost }
        });
    }
}

/// Numbers commands, whatever pod they run in.
fn next_key() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Nobody waits for the command any more, so nobody would ever end it.
async fn cancel(shim: &Shim, exec: &Exec) -> Done {
    let cancelled = shim.cancel_exec(exec.key).await.map_err(|e| Error::shim("cancel exec", e));
    if let Err(error) = &cancelled {
        tracing::warn!(container = exec.id, %error, "a command is not ended whose caller has gone");
    }
    Done::Answered { lost: cancelled.is_err_and(|e| e.kind() == Kind::Unavailable) }
}

fn exec_output(done: ExecResult, timeout: Option<Duration>) -> Result<ExecOutput> {
    if done.timed_out {
        let seconds = timeout.unwrap_or_default().as_secs();
        return Err(Error::Deadline { step: "exec".to_owned(), seconds });
    }
    Ok(ExecOutput { stdout: done.stdout, stderr: done.stderr, exit_code: done.exit_code })
}
