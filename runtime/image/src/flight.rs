//! Single flight: equal work under way is joined, and ends when its last waiter leaves.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Work under way, by key.
pub(crate) struct Flights<K, V> {
    flights: Mutex<HashMap<K, Weak<Flight<V>>>>,
}

struct Flight<V> {
    result: watch::Receiver<Option<V>>,
    task: AbortHandle,
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a flight ended for one waiter.
pub(crate) struct Landed<V> {
    /// `None` when the work panicked or the runtime shuts down.
    pub(crate) value: Option<V>,
    /// Another caller had begun the work.
    pub(crate) joined: bool,
}

impl<K: Eq + Hash + Clone, V: Clone + Send + Sync + 'static> Flights<K, V> {
    pub(crate) fn new() -> Self {
        Self { flights: Mutex::new(HashMap::new()) }
    }

    /// Waits for the work of `key`, which `start` makes if none is under way. Dropping the
    /// future leaves the flight; the last to leave ends it at its next await.
    pub(crate) async fn fly<F>(&self, key: K, start: impl FnOnce() -> F) -> Landed<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (flight, joined) = self.board(key, start);
        let mut result = flight.result.clone();
        let value = match result.wait_for(Option::is_some).await {
            Ok(value) => value.clone(),
            Err(_) => None,
        };
        Landed { value, joined }
    }

    fn board<F>(&self, key: K, start: impl FnOnce() -> F) -> (Arc<Flight<V>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        // Landed flights are not joined: their callers are merely still picking up the result.
        let under_way = flights.get(&key).and_then(Weak::upgrade);
        if let Some(flight) = under_way.filter(|flight| flight.result.borrow().is_none()) {
            return (flight, true);
        }
        let (sender, result) = watch::channel(None);
        let work = start();
        let task = tokio::spawn(async move {
            let value = work.await;
            sender.send_replace(Some(value));
        });
        let flight = Arc::new(Flight { result, task: task.abort_handle() });
        flights.insert(key, Arc::downgrade(&flight));
        (flight, false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test]
    async fn equal_work_is_done_once() {
        let flights = Flights::<&str, u32>::new();
        let (runs, go) = (AtomicUsize::new(0), Arc::new(Notify::new()));
        let start = || {
            runs.fetch_add(1, Ordering::SeqCst);
            let go = go.clone();
            async move {
                go.notified().await;
                7
            }
        };
        let release = async { go.notify_one() };
        let (a, b, ()) = tokio::join!(flights.fly("k", start), flights.fly("k", start), release);
        assert_eq!((a.value, a.joined, b.value, b.joined), (Some(7), false, Some(7), true));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        go.notify_one();
        assert!(!flights.fly("k", start).await.joined);
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn work_ends_with_its_last_waiter() {
        struct Tell(Option<oneshot::Sender<()>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let flights = Arc::new(Flights::<&str, ()>::new());
        let (sender, ended) = oneshot::channel();
        let tell = Tell(Some(sender));
        let work = move || async move {
            let _tell = tell;
            std::future::pending().await
        };
        let never = || std::future::pending();
        let mut first = Box::pin(flights.fly("k", work));
        let mut second = Box::pin(flights.fly("k", never));
        assert!(is_pending(&mut first).await);
        assert!(is_pending(&mut second).await);
        drop(first);
        assert!(is_pending(&mut second).await);
        drop(second);
        ended.await.unwrap();
    }
}
