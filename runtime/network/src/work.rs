//! The tasks that outlive their callers, and how one of them is stopped.
//!
//! A chain of plugins is never left half-way because a caller went away: it runs in a task that
//! [`Tasks`] owns and joins.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::error::Error;

/// The running tasks; `None` once closed.
#[derive(Debug)]
pub(crate) struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Tasks {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }

    /// Runs `work` to its end, whether or not the returned future is.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        {
            let mut tasks = lock(&self.0);
            let tasks = tasks.as_mut().ok_or(Error::Closed)?;
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // Nobody may be waiting any more.
                let _ = answer.send(work.await);
            });
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    /// Takes no more and waits for those that run.
    pub(crate) async fn close(&self) {
        let tasks = lock(&self.0).take();
        if let Some(tasks) = tasks {
            tasks.join_all().await;
        }
    }
}

/// Runs `call`, which blocks on the disk, aside.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(call).await.map_err(|_| Error::Closed)
}

/// What keeps two operations on one attachment apart.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<HashMap<(String, String), Weak<Slot>>>);

/// One attachment's turn.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Held while plugins run for it.
    pub(crate) turn: AsyncMutex<()>,
    stops: watch::Sender<u64>,
}

impl Slots {
    pub(crate) fn slot(&self, id: &str, ifname: &str) -> Arc<Slot> {
        let mut slots = lock(&self.0);
        slots.retain(|_, slot| slot.strong_count() > 0);
        let held = slots.entry((id.to_owned(), ifname.to_owned())).or_default();
        held.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Slot { turn: AsyncMutex::new(()), stops: watch::Sender::new(0) });
            *held = Arc::downgrade(&fresh);
            fresh
        })
    }
}

impl Slot {
    /// Asks every operation that listens by now to stop.
    pub(crate) fn stop_others(&self) {
        self.stops.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Listens for [`stop_others`](Self::stop_others) from now on.
    pub(crate) fn listen(&self) -> Stop {
        Stop(Some(self.stops.subscribe()))
    }
}

/// Tells a chain that it should stop.
#[derive(Debug)]
pub(crate) struct Stop(Option<watch::Receiver<u64>>);

impl Stop {
    /// For a chain that is not to be stopped.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// Whether it was asked already.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.as_ref().is_some_and(|stops| stops.has_changed().unwrap_or(false))
    }

    /// Returns when it is asked. Safe to drop.
    pub(crate) async fn asked(&self) {
        let Some(stops) = &self.0 else { return pending().await };
        // A clone, so that the original goes on seeing the change.
        if stops.clone().changed().await.is_err() {
            pending().await
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
