//! The server's side of TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::Error;
use crate::config::StreamTls;

const CERT: &str = "tls_cert";
const KEY: &str = "tls_key";

/// What answers clients with the certificate and the key of the configuration.
pub(super) fn acceptor(tls: &StreamTls) -> Result<TlsAcceptor, Error> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|error| bad(CERT, &tls.cert, &error))?;
    if certs.is_empty() {
        return Err(bad(CERT, &tls.cert, &"holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| bad(KEY, &tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certs, key))
        .map_err(|error| bad(KEY, &tls.key, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn bad(key: &'static str, file: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Tls { key, file: file.display().to_string(), reason: reason.to_string() }
}
