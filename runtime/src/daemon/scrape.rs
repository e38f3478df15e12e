//! The metrics over HTTP, where the configuration gives an address.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cri::Front;
use crate::pod::ContainerState;

const PATH: &str = "/metrics";
/// The text format of Prometheus.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";
/// Connections at once; further ones wait in the backlog.
const CONNECTIONS: usize = 8;
/// How long a client may take for the head of its request.
const HEAD: Duration = Duration::from_secs(5);

/// Opens the address.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers scrapes until the future is dropped; its connections end with it.
pub(super) async fn serve(listener: TcpListener, front: &Arc<Front>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(TokioIo::new(stream), Arc::clone(front)));
                }
                // Out of descriptors, most likely: they come back as connections end.
                Err(error) => {
                    tracing::warn!(%error, "a scrape was not accepted");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
}

async fn answer(stream: TokioIo<tokio::net::TcpStream>, front: Arc<Front>) {
    let service = service_fn(|request| {
        let response = respond(&request, &front);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .serve_connection(stream, service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a scrape broke off");
    }
}

fn respond(request: &Request<Incoming>, front: &Front) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return status(StatusCode::NOT_FOUND);
    }
    count(front);
    match front.metrics.render() {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            let kind = hyper::header::HeaderValue::from_static(CONTENT_TYPE);
            response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(%error, "metrics can't be rendered");
            status(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

/// Pods and containers are counted when somebody asks.
fn count(front: &Front) {
    let pods = front.roster.list_pods();
    let ready = pods.iter().filter(|pod| pod.ready).count();
    let containers = front.roster.list_containers();
    let state = |state| containers.iter().filter(|one| one.state == state).count();
    front.metrics.set_counts(
        &[("ready", ready), ("notready", pods.len() - ready)],
        &[
            ("created", state(ContainerState::Created)),
            ("running", state(ContainerState::Running)),
            ("exited", state(ContainerState::Exited)),
        ],
    );
}
