//! HTTP to one host: timeouts, redirects, bodies that may not stall.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use super::hosts::Host;
use super::{Error, RegistryConfig, tls};

/// What one connection reads ahead: bounds the pieces that wait in memory.
const READ_BUFFER: usize = 256 << 10;
const MAX_REDIRECTS: usize = 5;
/// How much of a refusal's body is read for its message.
const MAX_REFUSAL: u64 = 64 << 10;

/// A client with one host's settings.
pub(super) struct Client {
    inner: HyperClient<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    headers: HeaderMap,
    response_timeout: Duration,
    stall_timeout: Duration,
}

impl Client {
    pub(super) fn new(host: &Host, config: &RegistryConfig) -> Result<Self, Error> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(config.connect_timeout));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(host)?)
            .https_or_http()
            // HTTP/2 would put all layers on one connection: slower, and one stall stops all.
            .enable_http1()
            .wrap_connector(http);
        Ok(Self {
            inner: HyperClient::builder(TokioExecutor::new())
                .http1_max_buf_size(READ_BUFFER)
                .build(https),
            headers: header_map(host)?,
            response_timeout: config.connect_timeout.saturating_add(config.response_timeout),
            stall_timeout: config.stall_timeout,
        })
    }

    /// GETs `url`, following redirects, and returns the successful answer's head and body.
    /// What was sent for the first host only (credentials, configured headers) stays there.
    pub(super) async fn get(
        &self,
        url: &str,
        accept: Option<&str>,
    ) -> Result<(HeaderMap, Body), Error> {
        let first: Uri = url.parse().map_err(|e| transport(url, &e))?;
        let mut uri = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let trusted = same_origin(&first, &uri);
            let answer = self.send(&uri, accept, trusted).await?;
            if !answer.status().is_redirection() {
                return self.accept(&uri, answer).await;
            }
            uri = redirected(&uri, &answer)?;
        }
        Err(Error::BadAnswer { url: url.to_owned(), reason: "too many redirects".to_owned() })
    }

    async fn send(
        &self,
        uri: &Uri,
        accept: Option<&str>,
        trusted: bool,
    ) -> Result<Response<Incoming>, Error> {
        let url = uri.to_string();
        let mut request = Request::get(uri);
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        request = request.header("user-agent", concat!("berth/", env!("CARGO_PKG_VERSION")));
        let mut request = request.body(Empty::new()).map_err(|e| transport(&url, &e))?;
        if trusted {
            request.headers_mut().extend(self.headers.clone());
        } else {
            request.headers_mut().remove(AUTHORIZATION);
        }
        match timeout(self.response_timeout, self.inner.request(request)).await {
            Ok(answer) => answer.map_err(|e| transport(&url, &e)),
            Err(_) => {
                let seconds = self.response_timeout.as_secs();
                Err(Error::Transport { url, reason: format!("no answer within {seconds} s") })
            }
        }
    }

    async fn accept(
        &self,
        uri: &Uri,
        answer: Response<Incoming>,
    ) -> Result<(HeaderMap, Body), Error> {
        let (head, body) = answer.into_parts();
        let url = uri.to_string();
        let mut body = Body { url: url.clone(), inner: body, stall_timeout: self.stall_timeout };
        if head.status.as_u16() == 200 {
            return Ok((head.headers, body));
        }
        let detail = body.read_all(MAX_REFUSAL).await.map(|b| refusal(&b)).unwrap_or_default();
        Err(Error::Status { url, status: head.status, detail })
    }
}

fn header_map(host: &Host) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, value) in &host.headers {
        let bad = || Error::Hosts {
            path: format!("hosts.toml for {}", host.authority),
            reason: format!("header {name:?} is malformed"),
        };
        let value = HeaderValue::from_str(value).map_err(|_| bad())?;
        map.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
    }
    Ok(map)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

fn redirected(from: &Uri, answer: &Response<Incoming>) -> Result<Uri, Error> {
    let bad = |reason: &str| Error::BadAnswer { url: from.to_string(), reason: reason.to_owned() };
    let location = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| bad("a redirect without a location"))?;
    let to: Uri = location.parse().map_err(|_| bad("a redirect to a malformed location"))?;
    if to.scheme().is_some() {
        return match (from.scheme_str(), to.scheme_str()) {
            (_, Some("https")) | (Some("http"), Some("http")) => Ok(to),
            _ => Err(bad("a redirect from https to something less")),
        };
    }
    let path = to.path_and_query().filter(|p| p.as_str().starts_with('/'));
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(path.ok_or_else(|| bad("a redirect to a relative path"))?.clone());
    Uri::from_parts(parts).map_err(|_| bad("a redirect to a malformed location"))
}

/// The message within distribution's error document, else nothing.
fn refusal(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let line = |item: &Item| format!(" ({}: {})", item.code, item.message);
    // Foreign text that ends in logs: one line of bounded length.
    let text: String = document.errors.first().map(line).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn transport(url: &str, error: &dyn std::error::Error) -> Error {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    Error::Transport { url: url.to_owned(), reason }
}

/// A body as it arrives.
pub(crate) struct Body {
    url: String,
    inner: Incoming,
    stall_timeout: Duration,
}

impl Body {
    /// Where it comes from.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The host that it comes from.
    pub(crate) fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = timeout(self.stall_timeout, self.inner.frame()).await.map_err(|_| {
                Error::Stalled { url: self.url.clone(), seconds: self.stall_timeout.as_secs() }
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(transport(&self.url, &error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it, if it is no longer than `limit`.
    pub(crate) async fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() as u64 + piece.len() as u64 > limit {
                let reason = format!("longer than {limit} bytes");
                return Err(Error::BadAnswer { url: self.url.clone(), reason });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// The announced length, if there is one.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
