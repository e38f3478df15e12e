//! Where exec, attach and port-forward are served.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::raw;
use super::resolved::{InvalidValue, absolute, address};

/// Exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stream {
    /// Where they are served. Port 0: a free one.
    pub address: SocketAddr,
    /// Over TLS; None: in plain text.
    #[serde(flatten)]
    pub tls: Option<StreamTls>,
    /// How long one may carry nothing.
    pub idle_timeout_seconds: u64,
}

/// The server's identity for TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamTls {
    /// Its certificate and those above it, PEM.
    #[serde(rename = "tls_cert")]
    pub cert: PathBuf,
    /// Its private key, PEM.
    #[serde(rename = "tls_key")]
    pub key: PathBuf,
}

pub(super) fn resolve(raw: raw::Stream) -> Result<Stream, InvalidValue> {
    const WEEK: u64 = 7 * 24 * 60 * 60;
    let text = raw.address.unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let address = address("stream.address", text)?;
    if address.ip().is_unspecified() {
        return Err(InvalidValue::AnyAddress { value: address.to_string() });
    }
    let tls = match (raw.tls_cert, raw.tls_key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(StreamTls {
            cert: absolute("stream.tls_cert", cert)?,
            key: absolute("stream.tls_key", key)?,
        }),
        (Some(one), None) | (None, Some(one)) => {
            return Err(InvalidValue::HalfTls { value: one.display().to_string() });
        }
    };
    let idle_timeout_seconds = raw.idle_timeout_seconds.unwrap_or(4 * 60 * 60);
    if !(1..=WEEK).contains(&idle_timeout_seconds) {
        return Err(InvalidValue::Idle { value: idle_timeout_seconds });
    }
    Ok(Stream { address, tls, idle_timeout_seconds })
}
