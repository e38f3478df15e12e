//! What all pulls of a node share: which hosts failed lately, how many connections a host bears,
//! how fast bytes may come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A host that fails again and again is avoided longer, up to so many times the first span.
const MAX_AVOIDANCE: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Net {
    failures: Mutex<HashMap<String, Failure>>,
    connections: Mutex<HashMap<String, Weak<Semaphore>>>,
    chunks: Mutex<Weak<Semaphore>>,
    pub(super) bandwidth: Budget,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    until: Instant,
    times: u32,
}

impl Net {
    /// Whether the host failed a short while ago.
    pub(super) fn avoided(&self, host: &str) -> bool {
        lock(&self.failures).get(host).is_some_and(|failure| failure.until > Instant::now())
    }

    /// The host failed: it is asked last for `span`, longer if it had failed before.
    pub(super) fn failed(&self, host: &str, span: Duration) {
        let mut failures = lock(&self.failures);
        let times = failures.get(host).map_or(0, |failure| failure.times);
        let until = Instant::now() + span * (1 << times.min(MAX_AVOIDANCE.ilog2()));
        failures.insert(host.to_owned(), Failure { until, times: times.saturating_add(1) });
    }

    pub(super) fn served(&self, host: &str) {
        lock(&self.failures).remove(host);
    }

    /// Waits for one of the connections that `host` bears.
    pub(super) async fn connection(
        &self,
        host: &str,
        limit: usize,
    ) -> Option<OwnedSemaphorePermit> {
        let slots = {
            let mut all = lock(&self.connections);
            all.retain(|_, slots| slots.strong_count() > 0);
            shared(all.entry(host.to_owned()).or_default(), limit)
        };
        slots.acquire_owned().await.ok()
    }

    /// Waits for one of the chunks that may be in memory, over all pulls.
    pub(super) async fn chunk(&self, limit: usize) -> Option<OwnedSemaphorePermit> {
        let slots = shared(&mut lock(&self.chunks), limit);
        slots.acquire_owned().await.ok()
    }
}

/// The semaphore as long as anyone uses it; a changed limit counts from then on.
fn shared(place: &mut Weak<Semaphore>, limit: usize) -> Arc<Semaphore> {
    place.upgrade().unwrap_or_else(|| {
        let slots = Arc::new(Semaphore::new(limit.max(1)));
        *place = Arc::downgrade(&slots);
        slots
    })
}

/// Bytes per second, over all that take from it.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When all that was taken so far has been paid for.
    paid: Mutex<Option<Instant>>,
}

impl Budget {
    /// What was not used for this long is lost.
    const BURST: Duration = Duration::from_millis(100);

    /// How long whoever takes so many bytes now must wait.
    pub(crate) fn take(&self, bytes: usize, per_second: u64) -> Duration {
        let now = Instant::now();
        let mut paid = lock(&self.paid);
        let from = paid.map_or(now, |paid| paid.max(now.checked_sub(Self::BURST).unwrap_or(now)));
        let micros = (bytes as u64).saturating_mul(1_000_000) / per_second.max(1);
        let next = from + Duration::from_micros(micros);
        *paid = Some(next);
        next.saturating_duration_since(now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_that_fails_is_avoided_and_longer_each_time() {
        let net = Net::default();
        let second = Duration::from_secs(1);
        assert!(!net.avoided("a"));
        net.failed("a", second);
        assert!(net.avoided("a") && !net.avoided("b"));
        tokio::time::advance(second).await;
        assert!(!net.avoided("a"));
        net.failed("a", second);
        tokio::time::advance(second).await;
        assert!(net.avoided("a"), "the second time for two seconds");
        net.served("a");
        assert!(!net.avoided("a"));
        for _ in 0..100 {
            net.failed("a", second);
        }
        tokio::time::advance(second * 17).await;
        assert!(!net.avoided("a"), "there is a longest span");
    }

    #[tokio::test(start_paused = true)]
    async fn all_takers_together_keep_to_the_budget() {
        let budget = Budget::default();
        let began = Instant::now();
        for _ in 0..20 {
            tokio::time::sleep(budget.take(50_000, 100_000)).await;
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(9) && took <= Duration::from_secs(11), "{took:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(budget.take(100_000, 100_000) > Duration::from_millis(800), "no saving up");
    }

    #[tokio::test]
    async fn a_host_gets_no_more_connections_than_it_bears() {
        let net = Net::default();
        let one = net.connection("a", 2).await;
        let _two = net.connection("a", 2).await;
        let third = net.connection("a", 2);
        tokio::pin!(third);
        let poll = std::future::poll_fn(|context| {
            std::task::Poll::Ready(Future::poll(third.as_mut(), context).is_pending())
        });
        assert!(poll.await);
        assert!(net.connection("b", 2).await.is_some(), "another host is another matter");
        drop(one);
        assert!(third.await.is_some());
    }
}
