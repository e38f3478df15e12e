//! HTTP to one host: timeouts, redirects, logging in, bodies that may not stall.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap,
    HeaderName, HeaderValue, IF_RANGE, LOCATION, PROXY_AUTHORIZATION, RANGE, RETRY_AFTER,
    USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::sleep;

use super::auth::Auth;
use super::body::Body;
use super::connect::{Connector, causes};
use super::hosts::Host;
use super::net::Net;

use super::{Credentials, Error, RegistryConfig, tls, tries};
use crate::progress::Meter;

/// What one connection reads ahead: bounds the pieces that wait in memory.
const READ_BUFFER: usize = 256 << 10;
const MAX_REDIRECTS: usize = 5;
/// How much of a refusal's body is read for its message.
const MAX_REFUSAL: u64 = 64 << 10;
const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));

/// What may be told to any host that a redirect leads to.
const HARMLESS: [HeaderName; 5] = [ACCEPT, ACCEPT_ENCODING, IF_RANGE, RANGE, USER_AGENT];

pub(super) type Upload = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request before it is sent.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// In place of `body`: sent once, so such a request is never repeated.
    pub(super) upload: Option<Upload>,
    /// Tells how much of the upload has gone.
    pub(super) sent: Option<Arc<Meter>>,
}

impl Outgoing {
    pub(super) fn get(url: &str) -> Result<Self, Error> {
        Self::of(Method::GET, url)
    }

    pub(super) fn of(method: Method, url: &str) -> Result<Self, Error> {
        let bad = |e: hyper::http::uri::InvalidUri| Error::Transport {
            url: url.split('?').next().unwrap_or_default().to_owned(),
            reason: e.to_string(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        // What is hashed must be what is stored.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let uri = url.parse().map_err(bad)?;
        Ok(Self { method, uri, headers, body: Bytes::new(), upload: None, sent: None })
    }
}

/// HTTP with one host's TLS settings. It follows redirects; it logs in nowhere.
pub(super) struct Http {
    inner: HyperClient<HttpsConnector<Connector>, Upload>,
    connector: Connector,
    response_timeout: Duration,
    config: Arc<RegistryConfig>,
    net: Arc<Net>,
}

impl Http {
    fn new(host: &Host, config: &Arc<RegistryConfig>, net: &Arc<Net>) -> Result<Self, Error> {
        let connect_timeout = host.dial_timeout.unwrap_or(config.connect_timeout);
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect_timeout));
        let connector = Connector::new(http, &config.proxies);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(host)?)
            .https_or_http()
            // HTTP/2 would put all layers on one connection: slower, and one stall stops all.
            .enable_http1()
            .wrap_connector(connector.clone());
        Ok(Self {
            inner: HyperClient::builder(TokioExecutor::new())
                .http1_max_buf_size(READ_BUFFER)
                .build(https),
            connector,
            response_timeout: connect_timeout.saturating_add(config.response_timeout),
            config: config.clone(),
            net: net.clone(),
        })
    }

    /// Sends a request and follows redirects of GET and HEAD. What was for the first host alone
    /// (credentials, configured headers) stays there.
    pub(super) async fn follow(&self, mut outgoing: Outgoing) -> Result<Answer, Error> {
        let first = outgoing.uri.clone();
        let mut uri = first.clone();
        let follows = matches!(outgoing.method, Method::GET | Method::HEAD);
        for _ in 0..=MAX_REDIRECTS {
            if !same_origin(&first, &uri) {
                let harmless = |name: &HeaderName| HARMLESS.contains(name);
                let all = std::mem::take(&mut outgoing.headers);
                let kept = all.iter().filter(|(name, _)| harmless(name));
                outgoing.headers = kept.map(|(n, v)| (n.clone(), v.clone())).collect();
            }
            let answer = self.send(&uri, &mut outgoing).await?;
            let redirect =
                answer.status.is_redirection() && answer.status != StatusCode::NOT_MODIFIED;
            if !redirect || !follows {
                return Ok(answer);
            }
            uri = redirected(&uri, &answer.headers)?;
        }
        Err(Error::BadAnswer { url: shown(&first), reason: "too many redirects".to_owned() })
    }

    async fn send(&self, uri: &Uri, outgoing: &mut Outgoing) -> Result<Answer, Error> {
        let url = shown(uri);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let slot = self.net.connection(authority, self.config.connections_per_host).await;
        let upload = outgoing.upload.take().unwrap_or_else(|| {
            Full::new(outgoing.body.clone()).map_err(|never| match never {}).boxed_unsync()
        });
        let mut request = Request::new(upload);
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = uri.clone();
        request.headers_mut().extend(outgoing.headers.clone());
        if let Some(auth) = self.proxy_auth(uri) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, auth);
        }
        let answer = self.inner.request(request);
        let answer = tokio::select! {
            answer = answer => answer.map_err(|e| transport(&url, &e))?,
            () = self.too_long(outgoing.sent.take()) => {
                let seconds = self.response_timeout.as_secs_f32();
                let reason = format!("no answer within {seconds:.1} s");
                return Err(Error::Transport { url, reason });
            }
        };
        Ok(self.answer(uri, answer, slot))
    }

    /// Ends when an answer is overdue. An upload may take as long as it moves.
    async fn too_long(&self, sent: Option<Arc<Meter>>) {
        let moved = || sent.as_ref().map(|meter| meter.so_far());
        let mut before = moved();
        loop {
            sleep(self.response_timeout).await;
            let now = moved();
            if now == before {
                return;
            }
            before = now;
        }
    }

    fn answer(
        &self,
        uri: &Uri,
        answer: Response<hyper::body::Incoming>,
        slot: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Answer {
        let (head, body) = answer.into_parts();
        let body = Body::new(shown(uri), body, &self.config, &self.net, slot);
        Answer { status: head.status, headers: head.headers, uri: uri.clone(), body }
    }

    /// A proxy that passes plain requests on is told its password with each of them; a tunnel
    /// was told when it was dug.
    fn proxy_auth(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() == Some("https") {
            return None;
        }
        self.connector.proxy(uri)?.basic_auth().cloned()
    }
}

/// The head of an answer, with its body to come.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where redirects led to.
    pub(super) uri: Uri,
    pub(super) body: Body,
}

impl Answer {
    /// The body of an answer with one of these statuses; any other is an error.
    pub(super) async fn good(mut self, wanted: &[StatusCode]) -> Result<Body, Error> {
        let url = shown(&self.uri);
        if wanted.contains(&self.status) {
            return match self.headers.get(CONTENT_ENCODING) {
                Some(coding) if coding.as_bytes() != b"identity" => Err(Error::BadAnswer {
                    url,
                    reason: format!("has the content encoding {coding:?}, not asked for"),
                }),
                _ => Ok(self.body),
            };
        }
        let retry_after = self.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        let retry_after = retry_after.and_then(tries::retry_after);
        let detail = self.body.read_all(MAX_REFUSAL).await.map(|b| refusal(&b)).unwrap_or_default();
        Err(Error::Status { url, status: self.status, detail, retry_after })
    }
}

/// One host with its settings and what opens it.
pub(super) struct Client {
    http: Http,
    origin: Uri,
    headers: HeaderMap,
    auth: Auth,
}

impl Client {
    pub(super) fn new(
        host: &Host,
        credentials: Option<Credentials>,
        config: &Arc<RegistryConfig>,
        net: &Arc<Net>,
    ) -> Result<Self, Error> {
        let (http, headers) = (Http::new(host, config, net)?, header_map(host)?);
        let origin = Outgoing::get(&host.base)?.uri;
        Ok(Self { http, origin, headers, auth: Auth::new(credentials) })
    }

    /// Sends a request, logging in for `scope` if the host wants that.
    pub(super) async fn ask(&self, mut outgoing: Outgoing, scope: &str) -> Result<Answer, Error> {
        if !same_origin(&self.origin, &outgoing.uri) {
            // An upload that goes elsewhere: nobody there is told what this host is.
            return self.http.follow(outgoing).await;
        }
        let mut configured = self.headers.clone();
        configured.extend(std::mem::take(&mut outgoing.headers));
        let mut key = self.auth.key(scope).await;
        let mut again = false;
        loop {
            let mut headers = configured.clone();
            if let Some(key) = &key {
                headers.insert(AUTHORIZATION, key.clone());
            }
            let upload = outgoing.upload.take();
            let repeatable = upload.is_none();
            let (method, uri) = (outgoing.method.clone(), outgoing.uri.clone());
            let (body, sent) = (outgoing.body.clone(), outgoing.sent.clone());
            let next = Outgoing { method, uri, headers, body, upload, sent };
            let answer = self.http.follow(next).await?;
            let refused = answer.status == StatusCode::UNAUTHORIZED
                && same_origin(&outgoing.uri, &answer.uri);
            if !refused || again || !repeatable {
                return Ok(answer);
            }
            let (from, refusal) = (&outgoing.uri, &answer.headers);
            match self.auth.answer(&self.http, from, refusal, scope, key.as_ref()).await? {
                Some(new) => key = Some(new),
                None => return Ok(answer),
            }
            again = true;
        }
    }

    /// GETs what answers 200.
    pub(super) async fn get(
        &self,
        url: &str,
        accept: Option<&'static str>,
        scope: &str,
    ) -> Result<(HeaderMap, Body), Error> {
        let mut outgoing = Outgoing::get(url)?;
        if let Some(accept) = accept {
            outgoing.headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        let answer = self.ask(outgoing, scope).await?;
        let headers = answer.headers.clone();
        Ok((headers, answer.good(&[StatusCode::OK]).await?))
    }
}

fn header_map(host: &Host) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, value) in &host.headers {
        let bad = || Error::Hosts {
            path: format!("hosts.toml for {}", host.authority),
            reason: format!("header {name:?} is malformed"),
        };
        let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
        value.set_sensitive(true);
        map.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
    }
    Ok(map)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// A URL for messages: without its query, in which storage servers take signatures, and without
/// a user.
pub(super) fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

pub(super) fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, Error> {
    let bad = |reason: &str| Error::BadAnswer { url: shown(from), reason: reason.to_owned() };
    let location = headers
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
    Error::Transport { url: url.to_owned(), reason: causes(error) }
}

/// The announced length, if there is one.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
