//! Waiting for a condition.

use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(10);

/// What `look` answers first with `Ok(Some)`; an error naming `what` and the last thing seen
/// when the deadline passes. An `Err` of `look` means "not yet, because".
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut look: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let end = Instant::now() + deadline;
    loop {
        let last = match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "not so".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= end {
            bail!("{what}: not within {deadline:?}; last seen: {last}");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Waits until `look` is true.
pub async fn true_within<F>(what: &str, deadline: Duration, mut look: F) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    eventually(what, deadline, async || Ok(look().await?.then_some(()))).await
}

/// Runs the futures side by side; answers all results in order, or the first error.
pub async fn all<T, F: Future<Output = Result<T>>>(
    futures: impl IntoIterator<Item = F>,
) -> Result<Vec<T>> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                match value {
                    Ok(value) => *result = Some(value),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        if results.iter().all(Option::is_some) {
            return Poll::Ready(Ok(results.drain(..).flatten().collect()));
        }
        Poll::Pending
    })
    .await
}
