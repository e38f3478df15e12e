//! Which protocol a request asks for. Pure.
//!
//! A request names its protocols in the order in which it likes them; the first that we know is
//! taken. One that names none gets the oldest.

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};

use super::websocket::Codec;

/// SPDY's way to name what its streams mean.
pub(super) const STREAM_VERSION: &str = "x-stream-protocol-version";
/// What is answered where none of them is known.
pub(super) const ACCEPTED_VERSIONS: &str = "x-accepted-stream-protocol-versions";
/// What both sides call SPDY.
pub(super) const SPDY: &str = "SPDY/3.1";

/// Over SPDY, v5 is v4: its close signal is WebSocket's.
pub(super) const COMMAND: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// Connections to ports.
pub(super) const FORWARD: &[&str] = &["portforward.k8s.io"];
/// Over WebSocket.
pub(super) const COMMAND_SOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// Connections to ports: as channels, or as SPDY inside.
pub(super) const FORWARD_SOCKET: &[&str] =
    &["v4.channel.k8s.io", "v4.base64.channel.k8s.io", TUNNEL];
/// SPDY inside of WebSocket.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a connection becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// With what its streams mean. `None`: not said.
    Spdy(Option<&'static str>),
    /// With what its messages mean, and the client's key.
    WebSocket(Option<&'static str>, String),
}

/// Why a request cannot become a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// A plain request.
    #[error("unable to upgrade: the request asks neither for {SPDY} nor for websocket")]
    Plain,
    /// Not as RFC 6455 has it.
    #[error("unable to upgrade: {0}")]
    WebSocket(&'static str),
    /// None of its protocols is known.
    #[error("unable to upgrade: the client speaks {asked:?}, the server {known:?}")]
    Protocol {
        /// What was asked for.
        asked: Vec<String>,
        /// What there is.
        known: &'static [&'static str],
    },
}

/// Reads what a request asks for.
pub(super) fn upgrade(
    headers: &HeaderMap,
    spdy: &'static [&'static str],
    socket: &'static [&'static str],
) -> Result<Upgrade, Refusal> {
    if !words(headers, CONNECTION.as_str()).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::Plain);
    }
    let asked = words(headers, UPGRADE.as_str()).next().unwrap_or_default();
    if asked.eq_ignore_ascii_case(SPDY) {
        return Ok(Upgrade::Spdy(choose(headers, STREAM_VERSION, spdy)?));
    }
    if !asked.eq_ignore_ascii_case("websocket") {
        return Err(Refusal::Plain);
    }
    if words(headers, SEC_WEBSOCKET_VERSION.as_str()).next() != Some("13") {
        return Err(Refusal::WebSocket("Sec-WebSocket-Version is not 13"));
    }
    let Some(key) = words(headers, SEC_WEBSOCKET_KEY.as_str()).next() else {
        return Err(Refusal::WebSocket("Sec-WebSocket-Key is missing"));
    };
    let key = key.to_owned();
    Ok(Upgrade::WebSocket(choose(headers, SEC_WEBSOCKET_PROTOCOL.as_str(), socket)?, key))
}

fn choose(
    headers: &HeaderMap,
    name: &str,
    known: &'static [&'static str],
) -> Result<Option<&'static str>, Refusal> {
    let asked: Vec<&str> = words(headers, name).collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let found = asked.iter().find_map(|asked| known.iter().find(|known| *known == asked));
    found.copied().map(Some).ok_or_else(|| Refusal::Protocol {
        asked: asked.into_iter().map(str::to_owned).collect(),
        known,
    })
}

/// The words of a header that may come several times and hold several each.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// How a WebSocket's messages are written.
pub(super) fn codec(protocol: Option<&str>) -> Codec {
    let name = protocol.unwrap_or_default();
    Codec { base64: name.contains("base64"), close: name.starts_with("v5.") }
}

/// Whether errors are told as a Status in JSON, not as text.
pub(super) fn tells_status(protocol: Option<&str>) -> bool {
    protocol.is_some_and(|name| name.starts_with("v4.") || name.starts_with("v5."))
}

/// Whether the client opens a stream for a terminal's size.
pub(super) fn resizes(protocol: Option<&str>) -> bool {
    tells_status(protocol) || protocol.is_some_and(|name| name.starts_with("v3."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn command(pairs: &[(&'static str, &str)]) -> Result<Upgrade, Refusal> {
        upgrade(&headers(pairs), COMMAND, COMMAND_SOCKET)
    }

    #[test]
    fn the_clients_first_known_protocol_is_taken() {
        let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let with = |versions: &[&'static str]| {
            let mut all = spdy.to_vec();
            all.extend(versions.iter().map(|v| (STREAM_VERSION, *v)));
            command(&all)
        };
        assert_eq!(with(&[]), Ok(Upgrade::Spdy(None)));
        assert_eq!(
            with(&["v9.channel.k8s.io", "v4.channel.k8s.io", "v2.channel.k8s.io"]),
            Ok(Upgrade::Spdy(Some("v4.channel.k8s.io")))
        );
        assert_eq!(
            with(&["channel.k8s.io, v4.channel.k8s.io"]),
            Ok(Upgrade::Spdy(Some("channel.k8s.io")))
        );
        assert!(matches!(with(&["v9"]), Err(Refusal::Protocol { .. })));
    }

    #[test]
    fn websockets_need_their_key_and_version() {
        let base = [("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")];
        let mut all = base.to_vec();
        assert!(matches!(command(&all), Err(Refusal::WebSocket(_))));
        all.push(("sec-websocket-version", "13"));
        assert!(matches!(command(&all), Err(Refusal::WebSocket(_))));
        all.push(("sec-websocket-key", "k"));
        assert_eq!(command(&all), Ok(Upgrade::WebSocket(None, "k".into())));
        all.push(("sec-websocket-protocol", "v6.channel.k8s.io, v5.channel.k8s.io"));
        let v5 = Some("v5.channel.k8s.io");
        assert_eq!(command(&all), Ok(Upgrade::WebSocket(v5, "k".into())));
        assert_eq!(
            upgrade(&headers(&all), FORWARD, FORWARD_SOCKET),
            Err(Refusal::Protocol {
                asked: vec!["v6.channel.k8s.io".into(), "v5.channel.k8s.io".into()],
                known: FORWARD_SOCKET,
            })
        );
    }

    #[test]
    fn plain_requests_are_refused() {
        for pairs in [
            &[][..],
            &[("upgrade", "SPDY/3.1")],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
        ] {
            assert_eq!(command(pairs), Err(Refusal::Plain), "{pairs:?}");
        }
    }

    #[test]
    fn what_the_versions_can() {
        let v = |name| Some(name);
        assert_eq!(codec(v("v5.channel.k8s.io")), Codec { base64: false, close: true });
        assert_eq!(codec(v("v4.base64.channel.k8s.io")), Codec { base64: true, close: false });
        assert_eq!(codec(None), Codec { base64: false, close: false });
        for (name, status, size) in [
            (None, false, false),
            (v("channel.k8s.io"), false, false),
            (v("base64.channel.k8s.io"), false, false),
            (v("v2.channel.k8s.io"), false, false),
            (v("v3.channel.k8s.io"), false, true),
            (v("v4.channel.k8s.io"), true, true),
            (v("v4.base64.channel.k8s.io"), true, true),
            (v("v5.channel.k8s.io"), true, true),
        ] {
            assert_eq!((tells_status(name), resizes(name)), (status, size), "{name:?}");
        }
    }
}
