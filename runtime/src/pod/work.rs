//! Counts the work under way, so that the daemon's end can wait for it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Result};

/// More than can ever be under way.
const ALL: u32 = 1 << 20;

/// The count.
#[derive(Debug, Clone)]
pub(crate) struct Work(Arc<Semaphore>);

impl Work {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ALL as usize)))
    }

    /// Begins something; it is under way until the answer is dropped. Refused while draining.
    pub(crate) fn begin(&self) -> Result<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_owned().map_err(|_| Error::Draining)
    }

    /// Waits until nothing is under way, and lets nothing begin from now on.
    pub(crate) async fn drain(&self) {
        // The queue is fair: from here on nobody gets past us.
        if let Ok(all) = self.0.acquire_many(ALL).await {
            all.forget();
            self.0.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_work_and_refuses_new() {
        let work = Work::new();
        let begun = work.begin().unwrap();
        let drain = tokio::spawn({
            let work = work.clone();
            async move { work.drain().await }
        });
        while work.begin().is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!drain.is_finished());
        drop(begun);
        drain.await.unwrap();
        assert!(matches!(work.begin(), Err(Error::Draining)));
    }
}
