//! The one task that owns a pod: takes messages, runs operations beside its loop, applies what
//! came of them, publishes.
//!
//! The loop itself never waits for a shim, a plugin or an image: each operation is a task of its
//! own that hands its result back, so a create that hangs blocks no stop. Operations belong to
//! the driver and not to the request: a caller that goes away changes nothing.

mod containers;
mod life;
mod message;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::ids::ContainerId;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cleanup::Cleanup;
use super::container::{Container, Reply};
use super::house::PodEnv;
use super::spec::ContainerSpec;
use super::state::Phase;
use super::{PodSnapshot, Result};
use crate::store::{ContainerRecord, PodRecord};

pub(crate) use message::{Done, Message};

/// Requests of one pod that may wait for its driver.
pub(crate) const MAILBOX: usize = 128;
/// How often leftovers are tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The owner of one pod.
pub(crate) struct Driver {
    env: Arc<PodEnv>,
    record: PodRecord,
    phase: watch::Sender<Phase>,
    containers: BTreeMap<ContainerId, Container>,
    /// Creates that wait for another one under the same name to be gone.
    queued: Vec<(ContainerSpec, Reply<ContainerId>)>,
    inbox: mpsc::Receiver<Message>,
    work: JoinSet<Done>,
    run_waiters: Vec<Reply<berth_proto::ids::PodId>>,
    run_cancel: Option<watch::Sender<bool>>,
    stop_waiters: Vec<Reply<()>>,
    remove_waiters: Vec<Reply<()>>,
    /// The shim died while the pod was ready.
    lost_shim: bool,
    relinking: bool,
    retrying: bool,
    /// Leftovers that an operation under way has in hand; it gives back those that stay.
    in_hand: Vec<Cleanup>,
    retry: Option<Retry>,
    retry_pause: Duration,
}

struct Retry {
    at: Instant,
    pause: Duration,
}

impl Driver {
    /// A driver for the pod of this record. It does nothing until [`Self::run`].
    pub(crate) fn new(
        env: Arc<PodEnv>,
        record: PodRecord,
        containers: Vec<ContainerRecord>,
        phase: watch::Sender<Phase>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        let containers = containers.into_iter().map(|c| (c.id.clone(), Container::new(c)));
        Self {
            env,
            record,
            phase,
            containers: containers.collect(),
            queued: Vec::new(),
            inbox,
            work: JoinSet::new(),
            run_waiters: Vec::new(),
            run_cancel: None,
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            lost_shim: false,
            relinking: false,
            retrying: false,
            in_hand: Vec::new(),
            retry: None,
            retry_pause: RETRY.0,
        }
    }

    /// Serves the pod until it is gone and nothing of it is left.
    pub(crate) async fn run(mut self) {
        self.plan_retry();
        self.go_on();
        while !self.finished() {
            let retry_at = self.retry.as_ref().map(|r| r.at);
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    // The roster is gone: the daemon ends. Pods live on.
                    None => break,
                },
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.apply(done).await,
                    Err(error) => tracing::error!(pod = %self.env.id, %error, "operation broke"),
                },
                () = sleep_until(retry_at) => self.retry_now(),
            }
            self.go_on();
        }
        self.inbox.close();
        while let Some(message) = self.inbox.recv().await {
            message.refuse(self.env.id.as_str());
        }
    }

    fn finished(&self) -> bool {
        *self.phase.borrow() == Phase::Gone
            && self.record.leftovers.is_empty()
            && self.work.is_empty()
    }

    /// What follows from the state itself, whatever has just changed.
    fn go_on(&mut self) {
        self.begin_queued();
        self.begin_removals();
        self.begin_pod_removal();
    }

    /// Begins an operation that the daemon's end waits for.
    fn begin<F>(&mut self, operation: impl FnOnce(Arc<PodEnv>) -> F) -> Result<()>
    where
        F: Future<Output = Done> + Send + 'static,
    {
        let permit = self.env.house.work.begin()?;
        self.spawn(operation(self.env.clone()), Some(permit));
        Ok(())
    }

    /// Begins to wait for something that may take as long as the pod lives.
    fn watch<F>(&mut self, operation: impl FnOnce(Arc<PodEnv>) -> F)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        self.spawn(operation(self.env.clone()), None);
    }

    fn spawn<F>(&mut self, operation: F, permit: Option<OwnedSemaphorePermit>)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        self.work.spawn(async move {
            let done = operation.await;
            drop(permit);
            done
        });
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn become_phase(&mut self, next: Phase) {
        let now = self.phase();
        if !now.may_become(next) {
            tracing::error!(pod = %self.env.id, ?now, ?next, "no such move");
            return;
        }
        tracing::info!(pod = %self.env.id, from = now.as_str(), to = next.as_str(), "pod");
        self.phase.send_replace(next);
    }

    /// Shows the world what is now.
    fn publish(&self) {
        let phase = self.phase();
        if !phase.visible() {
            self.env.house.published.remove(self.env.id.as_str());
            return;
        }
        let ready = phase == Phase::Ready || (phase == Phase::Stopping && !self.lost_shim);
        let mut containers: Vec<_> =
            self.containers.values().filter_map(Container::snapshot).collect();
        containers.sort_by_key(|container| container.created_at);
        self.env.house.published.put(PodSnapshot {
            id: self.env.id.clone(),
            spec: self.env.spec.clone(),
            ready,
            created_at: self.record.created_at,
            ips: self.record.ips.clone(),
            cgroup: self.env.cgroup_parent.clone(),
            netns: self.env.netns().filter(|_| ready),
            shim_pid: self.env.link().map(|link| link.process.pid()),
            leftovers: self.record.leftovers.iter().map(ToString::to_string).collect(),
            containers,
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
