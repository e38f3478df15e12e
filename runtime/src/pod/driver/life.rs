//! The pod's own life: run, stop, remove, a shim's death, leftovers.

use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Driver, Message, RETRY, Retry};
use crate::pod::cleanup::Cleanup;
use crate::pod::container::{Container, Reply};
use crate::pod::house::{Link, PodEnv};
use crate::pod::run::{self, Ran};
use crate::pod::state::Phase;
use crate::pod::steps::Cancelled;
use crate::pod::stop::{self, Stopped};
use crate::pod::{Error, Result, remove};
use crate::shim::Shim;
use crate::store::{ContainerPhase, PodPhase, PodRecord};

/// Between two tries to reach a shim that lives and does not answer.
const RELINK_PAUSE: Duration = Duration::from_secs(2);

/// Answers everybody. Callers that have gone need none.
pub(super) fn answer<T: Clone>(waiters: &mut Vec<Reply<T>>, result: &Result<T>) {
    for waiter in waiters.drain(..) {
        let _ = waiter.send(result.clone());
    }
}

/// Answers one caller, who may have gone.
pub(super) fn reply<T>(to: Reply<T>, result: Result<T>) {
    let _ = to.send(result);
}

impl Driver {
    pub(super) fn handle(&mut self, message: Message) {
        match message {
            Message::Run(to) => self.on_run(to),
            Message::Stop(to) => self.on_stop(to),
            Message::Remove(to) => self.on_remove(to),
            Message::Create(spec, to) => self.on_create(*spec, to),
            Message::Start(id, to) => self.on_start(&id, to),
            Message::Halt(id, grace, to) => self.on_halt(&id, grace, to),
            Message::Discard(id, to) => self.on_discard(&id, to),
            Message::Exec(id, argv, timeout, to) => self.on_exec(&id, argv, timeout, to),
            Message::Open(id, open, to) => self.on_open(&id, open, to),
            Message::ReopenLog(id, to) => self.on_reopen_log(&id, to),
        }
    }

    pub(super) async fn apply(&mut self, done: Done) {
        match done {
            Done::Ran(ran) => self.ran(*ran),
            Done::Stopped(stopped) => self.stopped(*stopped).await,
            Done::Removed(record) => self.removed(*record),
            Done::Created(id, made) => self.created(&id, *made).await,
            Done::Started(id, started) => self.started(&id, *started).await,
            Done::Ended(id, Some(ended)) => self.ended(&id, ended).await,
            Done::Ended(_, None) => self.relink(),
            Done::Halted(id, result) => self.halted(&id, &result),
            Done::Discarded(id, result) => self.discarded(&id, result).await,
            Done::ShimDied => self.shim_died(),
            Done::Relinked(linked) => self.relinked(linked),
            Done::Retried(left) => self.retried(left).await,
            Done::Answered { lost: true } => self.relink(),
            Done::Answered { lost: false } => {}
        }
    }

    fn on_run(&mut self, to: Reply<berth_proto::ids::PodId>) {
        match self.phase() {
            Phase::Making => self.run_waiters.push(to),
            Phase::Ready => reply(to, Ok(self.env.id.clone())),
            _ => reply(to, Err(remove::gone(self.env.id.as_str()))),
        }
        if self.phase() == Phase::Making && self.run_cancel.is_none() {
            self.begin_run();
        }
    }

    fn begin_run(&mut self) {
        let (cancel, cancelled) = Cancelled::new();
        let record = self.record.clone();
        let begun = self.begin(|env| async move {
            Done::Ran(Box::new(run::run(&env, record, cancelled).await))
        });
        match begun {
            Ok(()) => self.run_cancel = Some(cancel),
            Err(error) => {
                answer(&mut self.run_waiters, &Err(error));
                self.become_phase(Phase::Gone);
            }
        }
    }

    fn ran(&mut self, ran: Ran) {
        self.record = ran.record;
        self.run_cancel = None;
        let Some(error) = ran.failure else {
            self.become_phase(Phase::Ready);
            self.watch_shim();
            self.publish();
            answer(&mut self.run_waiters, &Ok(self.env.id.clone()));
            self.begin_stop_if_wanted();
            return;
        };
        tracing::warn!(pod = %self.env.id, %error, "pod sandbox not made");
        self.become_phase(Phase::Gone);
        self.plan_retry();
        answer(&mut self.run_waiters, &Err(error));
        answer(&mut self.stop_waiters, &Ok(()));
        answer(&mut self.remove_waiters, &Ok(()));
    }

    fn on_stop(&mut self, to: Reply<()>) {
        match self.phase() {
            Phase::Making => {
                self.cancel_run();
                self.stop_waiters.push(to);
            }
            Phase::Ready | Phase::Stopping => self.stop_waiters.push(to),
            Phase::NotReady => {
                self.hurry_retry();
                reply(to, Ok(()));
            }
            Phase::Removing | Phase::Gone => reply(to, Ok(())),
        }
        self.begin_stop_if_wanted();
    }

    fn on_remove(&mut self, to: Reply<()>) {
        match self.phase() {
            Phase::Gone => return reply(to, Ok(())),
            Phase::Making => self.cancel_run(),
            _ => {}
        }
        self.remove_waiters.push(to);
        self.begin_stop_if_wanted();
    }

    fn cancel_run(&mut self) {
        match &self.run_cancel {
            Some(cancel) => drop(cancel.send_replace(true)),
            None => self.become_phase(Phase::Gone),
        }
    }

    fn begin_stop_if_wanted(&mut self) {
        let wanted = !self.stop_waiters.is_empty() || !self.remove_waiters.is_empty();
        if wanted && self.phase() == Phase::Ready {
            self.become_phase(Phase::Stopping);
            self.begin_stop();
        }
    }

    fn begin_stop(&mut self) {
        self.cancel_creates();
        let record = self.hand_out();
        let alive = self.containers.values().filter(|c| c.alive());
        let alive: Vec<_> = alive.map(|c| c.record.id.clone()).collect();
        let begun = self.begin(|env| async move {
            Done::Stopped(Box::new(stop::stop(&env, record, alive).await))
        });
        if let Err(error) = begun {
            self.not_stopped(&error);
        }
    }

    async fn stopped(&mut self, stopped: Stopped) {
        for (id, ended) in stopped.ended {
            self.ended(&id, ended).await;
        }
        self.take_back(stopped.record);
        if self.record.phase != PodPhase::NotReady {
            let error = stopped.failure.unwrap_or(Error::Draining);
            return self.not_stopped(&error);
        }
        self.become_phase(Phase::NotReady);
        self.publish();
        self.plan_retry();
        let result = stopped.failure.map_or(Ok(()), Err);
        answer(&mut self.stop_waiters, &result);
        if result.is_err() {
            answer(&mut self.remove_waiters, &result);
        }
    }

    /// Something still runs. With its shim the pod is as before; without, it is tried again.
    fn not_stopped(&mut self, error: &Error) {
        tracing::warn!(pod = %self.env.id, %error, "pod sandbox not stopped");
        if self.env.link().is_some() {
            self.become_phase(Phase::Ready);
        } else {
            self.plan(RETRY.0);
        }
        self.publish();
        answer(&mut self.stop_waiters, &Err(error.clone()));
        answer(&mut self.remove_waiters, &Err(error.clone()));
    }

    pub(super) fn begin_pod_removal(&mut self) {
        let wanted = !self.remove_waiters.is_empty() && self.phase() == Phase::NotReady;
        if !wanted || self.retrying || self.containers.values().any(Container::busy) {
            return;
        }
        let record = self.hand_out();
        let containers: Vec<_> = self.containers.values().map(|c| c.record.clone()).collect();
        let begun = self.begin(|env| async move {
            Done::Removed(Box::new(remove::pod(&env, record, containers).await))
        });
        match begun {
            Ok(()) => self.become_phase(Phase::Removing),
            Err(error) => answer(&mut self.remove_waiters, &Err(error)),
        }
    }

    /// A pod whose making was cut short by a crash: all of it is undone.
    pub(crate) fn undo_half_made(&mut self) {
        let (send, _nobody) = tokio::sync::oneshot::channel();
        self.record.leftovers = vec![Cleanup::Network, Cleanup::Namespaces, Cleanup::Shim];
        self.remove_waiters.push(send);
        self.begin_pod_removal();
    }

    fn removed(&mut self, record: PodRecord) {
        self.take_back(record);
        self.containers.clear();
        self.become_phase(Phase::Gone);
        self.publish();
        self.plan_retry();
        answer(&mut self.remove_waiters, &Ok(()));
    }

    /// Shows what a restart has found. Containers that were half made, or half removed, go.
    pub(crate) fn resume(&mut self) {
        for container in self.containers.values_mut() {
            use ContainerPhase::{Making, Removing};
            container.doomed = matches!(container.record.phase, Making | Removing);
        }
        self.publish();
    }

    /// The shim has been reached.
    pub(crate) fn link(&mut self, link: Link) {
        self.env.set_link(Some(link));
    }

    /// Hears of the shim's end.
    pub(crate) fn watch_shim(&mut self) {
        let Some(Link { process, .. }) = self.env.link() else { return };
        self.watch(|_| async move {
            if let Err(error) = process.ended().await {
                tracing::error!(pid = process.pid(), %error, "shim cannot be watched");
            }
            Done::ShimDied
        });
    }

    /// Its containers are ended by their cgroups, its network is detached, the pod is not ready.
    pub(crate) fn shim_died(&mut self) {
        self.env.set_link(None);
        if self.phase() != Phase::Ready {
            return;
        }
        tracing::error!(pod = %self.env.id, "the pod's shim died");
        self.become_phase(Phase::Stopping);
        self.lost_shim = true;
        self.publish();
        self.begin_stop();
    }

    /// Reaches a shim that lives, over a new connection.
    pub(crate) fn relink(&mut self) {
        if self.relinking || self.env.link().is_none() || self.phase() != Phase::Ready {
            return;
        }
        self.relinking = true;
        self.watch(|env| async move { Done::Relinked(relink(&env).await) });
    }

    fn relinked(&mut self, linked: bool) {
        self.relinking = false;
        if linked {
            tracing::info!(pod = %self.env.id, "shim reached again");
            self.watch_containers();
        }
    }

    /// The record for an operation that changes it, and sees to the leftovers in it.
    fn hand_out(&mut self) -> PodRecord {
        self.in_hand.clone_from(&self.record.leftovers);
        self.record.clone()
    }

    /// The record as the operation leaves it, with what was left over meanwhile.
    fn take_back(&mut self, mut record: PodRecord) {
        let left = std::mem::take(&mut record.leftovers);
        record.leftovers = std::mem::take(&mut self.record.leftovers);
        self.record = record;
        self.put_back(left);
    }

    /// What stays of the leftovers handed out, beside those that came up meanwhile.
    fn put_back(&mut self, left: Vec<Cleanup>) {
        let in_hand = std::mem::take(&mut self.in_hand);
        let leftovers = &mut self.record.leftovers;
        leftovers.retain(|known| !in_hand.contains(known) && !left.contains(known));
        leftovers.extend(left);
    }

    /// Keeps what could not be taken away, and tries again later.
    pub(super) async fn leave_over(&mut self, left: Vec<Cleanup>) {
        if left.is_empty() {
            return;
        }
        self.record.leftovers.extend(left);
        if let Err(error) = self.env.save_pod(&self.record).await {
            tracing::warn!(pod = %self.env.id, %error, "leftovers not written down");
        }
        self.plan_retry();
    }

    pub(super) fn plan_retry(&mut self) {
        if !self.record.leftovers.is_empty() && self.retry.is_none() {
            self.plan(RETRY.0);
        }
    }

    fn plan(&mut self, pause: Duration) {
        self.retry = Some(Retry { at: Instant::now() + pause, pause });
    }

    fn hurry_retry(&mut self) {
        if let Some(retry) = &mut self.retry {
            retry.at = Instant::now();
        }
    }

    pub(super) fn retry_now(&mut self) {
        let Some(Retry { pause, .. }) = self.retry.take() else { return };
        if self.phase() == Phase::Stopping && self.env.link().is_none() {
            return self.begin_stop();
        }
        let busy = matches!(self.phase(), Phase::Stopping | Phase::Removing);
        if self.record.leftovers.is_empty() || self.retrying || busy {
            return;
        }
        self.retrying = true;
        self.retry_pause = (pause * 2).min(RETRY.1);
        let left = self.hand_out().leftovers;
        self.watch(|env| async move { Done::Retried(remove::leftovers(&env, left).await) });
    }

    async fn retried(&mut self, left: Vec<Cleanup>) {
        self.retrying = false;
        self.put_back(left);
        let gone = self.record.leftovers.is_empty() && self.phase() == Phase::Gone;
        let written = match gone {
            true => self.env.forget_pod().await,
            false => self.env.save_pod(&self.record).await,
        };
        if let Err(error) = written {
            tracing::warn!(pod = %self.env.id, %error, "leftovers not written down");
        }
        if !self.record.leftovers.is_empty() {
            self.plan(self.retry_pause);
        }
        if !gone {
            self.publish();
        }
    }

    /// Hears of the end of each container that lives.
    pub(crate) fn watch_containers(&mut self) {
        let alive = self.containers.values().filter(|c| c.alive());
        let ids: Vec<_> = alive.map(|c| c.record.id.clone()).collect();
        for id in ids {
            self.watch_container(id);
        }
    }

    fn cancel_creates(&mut self) {
        for container in self.containers.values_mut() {
            if container.record.phase == ContainerPhase::Making
                && let Some(creating) = &container.creating
            {
                creating.cancel.send_replace(true);
            }
        }
    }
}

async fn relink(env: &PodEnv) -> bool {
    loop {
        let Some(Link { process, .. }) = env.link() else { return false };
        let dead = tokio::time::timeout(Duration::ZERO, process.ended()).await.is_ok();
        if dead {
            return false;
        }
        match Shim::connect(&env.paths).await {
            Ok(shim) if shim.inventory().await.is_ok() => {
                env.set_link(Some(Link { shim, process }));
                return true;
            }
            _ => tokio::time::sleep(RELINK_PAUSE).await,
        }
    }
}
