//! What surrounds every RPC: one span, one measurement, one log line for a failure.

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::Instrument;

use super::code::Failure;
use crate::metrics::Metrics;

/// Runs the work of one RPC. `id` is what the request names, for the span: an id or a reference,
/// never a secret.
pub(super) async fn call<T>(
    metrics: &Metrics,
    method: &'static str,
    id: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Response<T>, Status> {
    let span = tracing::info_span!("rpc", method, id);
    let mut measure = Measure::begin(metrics, method);
    let result = async { work.await.map_err(|failure| log(failure.into())) }.instrument(span).await;
    measure.code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    result.map(Response::new)
}

/// The one place that logs why an RPC failed: loud where it is ours, quiet where it is asked for
/// by mistake or (NOT_FOUND) a matter of course.
fn log(status: Status) -> Status {
    let (code, message) = (status.code(), status.message());
    match code {
        Code::NotFound => tracing::debug!(?code, "{message}"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::DeadlineExceeded => {
            tracing::info!(?code, "{message}");
        }
        _ => tracing::error!(?code, "{message}"),
    }
    status
}

/// Measures until it is dropped: also when the caller goes away and takes the future with it.
struct Measure<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    began: Instant,
    code: Code,
}

impl<'a> Measure<'a> {
    fn begin(metrics: &'a Metrics, method: &'static str) -> Self {
        metrics.request_began();
        Self { metrics, method, began: Instant::now(), code: Code::Cancelled }
    }
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        let code = format!("{:?}", self.code);
        self.metrics.request_ended(self.method, &code, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod;

    #[tokio::test]
    async fn every_end_is_counted_with_its_code() {
        let metrics = Metrics::new().unwrap();
        let ok = call(&metrics, "A", "", async { Ok(1) }).await.unwrap();
        assert_eq!(ok.into_inner(), 1);
        let missing = pod::Error::NoPod { id: "x".to_owned() };
        let failed = call::<()>(&metrics, "B", "x", async { Err(missing.into()) }).await;
        assert_eq!(failed.unwrap_err().code(), Code::NotFound);
        drop(call::<()>(&metrics, "never polled", "", std::future::pending()));
        let mut dropped = Box::pin(call::<()>(&metrics, "C", "", std::future::pending()));
        let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx)));
        assert!(poll.await.is_pending());
        drop(dropped);
        let text = metrics.render().unwrap();
        for (method, code) in [("A", "Ok"), ("B", "NotFound"), ("C", "Cancelled")] {
            let line = format!("requests_total{{code=\"{code}\",method=\"{method}\"}} 1");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.contains("in_flight 0"));
    }
}
