//! An operation as a list of named steps, each of which pushes its undo first.

use std::time::Instant;

use tokio::sync::watch;

use super::cleanup::{Cleanup, run_all};
use super::house::PodEnv;
use super::{Error, Result};
use crate::failpoint;

/// Says to an operation that it is no longer wanted. Dropping the sender says nothing.
#[derive(Debug, Clone)]
pub(crate) struct Cancelled(watch::Receiver<bool>);

impl Cancelled {
    /// The sender says it with `send(true)`.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (send, receive) = watch::channel(false);
        (send, Self(receive))
    }

    async fn said(&mut self) {
        if self.0.wait_for(|said| *said).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The steps of one operation that have begun.
pub(crate) struct Steps<'a> {
    env: &'a PodEnv,
    cancelled: Cancelled,
    undo: Vec<Cleanup>,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(env: &'a PodEnv, cancelled: Cancelled) -> Self {
        Self { env, cancelled, undo: Vec::new() }
    }

    /// Does one step. `work` may be dropped half-way when the operation is cancelled; `undo` must
    /// cope with that, and with work that never began.
    pub(crate) async fn step<T>(
        &mut self,
        name: &'static str,
        undo: Option<Cleanup>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.undo.extend(undo);
        failpoint::before(name)?;
        let began = Instant::now();
        let done = tokio::select! {
            biased;
            () = self.cancelled.said() => Err(Error::Superseded { what: name.to_owned() }),
            done = work => done,
        }?;
        failpoint::after(name)?;
        tracing::debug!(pod = %self.env.id, step = name, took = ?began.elapsed(), "done");
        Ok(done)
    }

    /// Undoes what has begun, last first. Answers what could not be undone.
    pub(crate) async fn undo(self) -> Vec<Cleanup> {
        run_all(self.env, self.undo.into_iter().rev()).await
    }
}
