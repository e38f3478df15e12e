//! Answers in parts. The work is part of the answer's stream: a caller that goes away drops the
//! stream, and the work with it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Response, Status};

/// How often progress is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// Parts that wait for the caller.
const PARTS: usize = 4;

/// The stream of an answer.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Where the work puts parts before the last.
pub(super) type Parts<T> = mpsc::Sender<T>;

/// Answers with what `work` sends, then with its result.
pub(super) fn stream<T, F>(work: impl FnOnce(Parts<T>) -> F) -> Response<Streamed<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let (sender, parts) = mpsc::channel(PARTS);
    let work = Some(Box::pin(work(sender)) as Pin<Box<_>>);
    Response::new(Box::pin(Answer { work, last: None, parts }))
}

struct Answer<T, F> {
    work: Option<Pin<Box<F>>>,
    last: Option<Result<T, Status>>,
    parts: mpsc::Receiver<T>,
}

// Nothing of it is pinned but what is in boxes.
impl<T, F> Unpin for Answer<T, F> {}

impl<T, F: Future<Output = Result<T, Status>>> Stream for Answer<T, F> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(work) = &mut self.work
            && let Poll::Ready(last) = work.as_mut().poll(cx)
        {
            self.work = None;
            self.last = Some(last);
        }
        match self.parts.poll_recv(cx) {
            Poll::Ready(Some(part)) => Poll::Ready(Some(Ok(part))),
            // All senders are gone with the work.
            _ if self.work.is_none() => Poll::Ready(self.last.take()),
            _ => Poll::Pending,
        }
    }
}

/// Does `work` and meanwhile sends what `look` sees, whenever that has changed. A caller that
/// reads slowly misses some.
pub(super) async fn with_progress<T: Clone + PartialEq, W: Future>(
    parts: &Parts<T>,
    look: impl Fn() -> Option<T>,
    work: W,
) -> W::Output {
    let mut work = std::pin::pin!(work);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            _ = ticks.tick() => {
                let now = look();
                if now.is_some() && now != seen {
                    // A full channel is the slow reader's.
                    let _sent = now.clone().map(|part| parts.try_send(part));
                    seen = now;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tonic::codegen::tokio_stream::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn progress_comes_when_it_changes_and_the_result_last() {
        let steps = Arc::new(AtomicU32::new(0));
        let work = |parts: Parts<u32>| {
            let seen = steps.clone();
            async move {
                let look = || Some(seen.load(Ordering::SeqCst));
                let work = async {
                    tokio::time::sleep(PERIOD * 5).await;
                    seen.store(1, Ordering::SeqCst);
                    tokio::time::sleep(PERIOD * 5).await;
                };
                with_progress(&parts, look, work).await;
                Ok(99)
            }
        };
        let parts: Vec<_> = stream(work).into_inner().map(Result::unwrap).collect().await;
        assert_eq!(parts, [0, 1, 99]);
    }

    #[tokio::test]
    async fn who_goes_away_takes_the_work_along() {
        let held = Arc::new(());
        let work = |parts: Parts<u32>| {
            let held = held.clone();
            async move {
                let _ = parts.send(1).await;
                std::future::pending::<()>().await;
                drop(held);
                Ok(2)
            }
        };
        let mut answer = stream(work).into_inner();
        assert_eq!(answer.next().await.unwrap().unwrap(), 1);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(answer);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
