//! Connections: direct, or by way of a proxy as HTTP_PROXY, HTTPS_PROXY and NO_PROXY say.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which proxies to use; in the form of the environment variables of the same names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://`: the proxy's URL, which may hold a name and a password.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// Hosts that are asked directly: names with all below them, addresses, networks, or `*`;
    /// separated by commas. This machine's own loopback always is.
    pub no: Option<String>,
}

/// Without the proxies' URLs, for they may hold passwords.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxies(..)")
    }
}

impl Proxies {
    /// HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or else their lower-case forms.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |names: [&str; 2]| {
            let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            names.into_iter().find_map(set)
        };
        Self {
            http: var(["HTTP_PROXY", "http_proxy"]),
            https: var(["HTTPS_PROXY", "https_proxy"]),
            no: var(["NO_PROXY", "no_proxy"]),
        }
    }

    fn matcher(&self) -> Matcher {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (http, https) = (text(&self.http), text(&self.https));
        Matcher::builder().http(http).https(https).no(text(&self.no)).build()
    }
}

/// Makes the connection below TLS.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpConnector,
    proxies: std::sync::Arc<Matcher>,
}

impl Connector {
    pub(super) fn new(direct: HttpConnector, proxies: &Proxies) -> Self {
        Self { direct, proxies: std::sync::Arc::new(proxies.matcher()) }
    }

    /// The proxy for requests to `uri`.
    pub(super) fn proxy(&self, uri: &Uri) -> Option<Intercept> {
        if uri.host().is_none_or(is_loopback) { None } else { self.proxies.intercept(uri) }
    }
}

/// `localhost` or an address of this machine's own network.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut direct = self.direct.clone();
        let proxy = self.proxy(&uri);
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Stream { inner: direct.call(uri).await?, forwarded: false });
            };
            if proxy.uri().scheme_str() != Some("http") {
                let scheme = proxy.uri().scheme_str().unwrap_or_default();
                return Err(format!("a proxy reached by {scheme:?} is not supported").into());
            }
            let fail = |error: BoxError| -> BoxError {
                let proxy = proxy.uri().authority().map_or("", |authority| authority.as_str());
                format!("by way of the proxy {proxy}: {}", causes(error.as_ref())).into()
            };
            if uri.scheme_str() != Some("https") {
                let inner = direct.call(proxy.uri().clone()).await.map_err(|e| fail(e.into()))?;
                return Ok(Stream { inner, forwarded: true });
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            let inner = tunnel.call(uri).await.map_err(|e| fail(e.into()))?;
            Ok(Stream { inner, forwarded: false })
        })
    }
}

/// An error with its causes in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A connection to a host, or to a proxy that passes plain requests on.
pub(super) struct Stream {
    inner: TokioIo<TcpStream>,
    forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_by_scheme_and_host() {
        let proxies = Proxies {
            http: Some("http://plain:1".to_owned()),
            https: Some("http://user:word@tunnel:2".to_owned()),
            no: Some("internal.test, 10.0.0.0/8".to_owned()),
        };
        assert!(!format!("{proxies:?}").contains("word"));
        let connector = Connector::new(HttpConnector::new(), &proxies);
        let table = [
            ("http://x.test/v2", Some("plain:1")),
            ("https://x.test/v2", Some("tunnel:2")),
            ("https://internal.test/v2", None),
            ("https://a.internal.test/v2", None),
            ("https://10.1.2.3/v2", None),
            ("http://127.0.0.1:5000/v2", None),
            ("http://localhost/v2", None),
            ("http://[::1]:5000/v2", None),
        ];
        for (url, wanted) in table {
            let proxy = connector.proxy(&url.parse().unwrap());
            let authority = proxy.as_ref().and_then(|p| p.uri().authority()).map(|a| a.as_str());
            assert_eq!(authority, wanted, "{url}");
        }
        let direct = Connector::new(HttpConnector::new(), &Proxies::default());
        assert!(direct.proxy(&"http://x.test/".parse().unwrap()).is_none());
    }
}
