//! The caller's deadline: past it a request is answered DEADLINE_EXCEEDED and its work's future
//! is dropped. tonic would say CANCELLED, which kubelet takes for its own doing.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// tonic's own clock rings at the deadline; ours has to be before it.
const MARGIN: Duration = Duration::from_millis(2);

/// Answers in time, for every service below it.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = InTime<S>;

    fn layer(&self, inner: S) -> InTime<S> {
        InTime { inner }
    }
}

/// A service whose answers come in time.
#[derive(Debug, Clone)]
pub struct InTime<S> {
    inner: S,
}

type Answer = Result<Response<Body>, Infallible>;

impl<S, B> Service<Request<B>> for InTime<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = limit(request.headers());
        let work = self.inner.call(request);
        let Some(limit) = limit else { return Box::pin(work) };
        Box::pin(async move {
            match tokio::time::timeout(limit.saturating_sub(MARGIN), work).await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = format!("not done within the caller's limit of {limit:?}");
                    Ok(Status::deadline_exceeded(message).into_http())
                }
            }
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit. One that cannot be read is none.
pub(super) fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 || !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number = number.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_as_grpc_writes_it() {
        for (text, want) in [
            ("1m", Some(Duration::from_millis(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("5S", Some(Duration::from_secs(5))),
            ("2M", Some(Duration::from_secs(120))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("+1S", None),
            ("123456789S", None),
            ("1s", None),
            ("1\u{b5}", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(limit(&headers), want, "{text:?}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }

    struct Never;

    impl Service<Request<()>> for Never {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_is_answered_before_the_deadline() {
        let began = tokio::time::Instant::now();
        let request = Request::builder().header("grpc-timeout", "3S").body(()).unwrap();
        let answer = Deadlines.layer(Never).call(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("3s"), "{}", status.message());
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}
