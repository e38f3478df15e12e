//! TLS as the host's configuration asks for it: the system's authorities and further ones, or
//! no verification at all.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::Error;
use super::hosts::Host;

/// The client side of TLS for one host.
pub(super) fn client_config(host: &Host) -> Result<ClientConfig, Error> {
    let fail = |reason: String| Error::Tls { host: host.authority.clone(), reason };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?;
    if host.skip_verify {
        let unverified = Arc::new(AnyCertificate { provider });
        let builder = builder.dangerous().with_custom_certificate_verifier(unverified);
        return with_client(builder, host);
    }
    let mut roots = system_roots().clone();
    for path in &host.ca {
        add_authorities(&mut roots, path).map_err(|e| fail(format!("{}: {e}", path.display())))?;
    }
    // With no authority at all a handshake fails; plain HTTP to the same host does not.
    with_client(builder.with_root_certificates(roots), host)
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn with_client(builder: Builder, host: &Host) -> Result<ClientConfig, Error> {
    if host.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let provider = builder.crypto_provider().clone();
    let fail = |path: &Path, reason: String| Error::Tls {
        host: host.authority.clone(),
        reason: format!("{}: {reason}", path.display()),
    };
    let keys = host.client.iter().map(|(cert, key)| {
        let chain = certificates(cert).map_err(|reason| fail(cert, reason))?;
        let read = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, e.to_string()))?;
        let signer = provider.key_provider.load_private_key(read);
        let signer = signer.map_err(|e| fail(key, e.to_string()))?;
        let both = CertifiedKey::new(chain, signer);
        both.keys_match().map_err(|e| fail(key, format!("does not fit its certificate: {e}")))?;
        Ok(Arc::new(both))
    });
    let keys = keys.collect::<Result<_, Error>>()?;
    Ok(builder.with_client_cert_resolver(Arc::new(OwnCertificates { keys })))
}

/// What `client` names.
#[derive(Debug)]
struct OwnCertificates {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for OwnCertificates {
    /// The first that one of the authorities issued which the server accepts; if none is told
    /// apart so, the first.
    fn resolve(
        &self,
        accepted: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let able = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // An issuer's name stands in a certificate as it is in the server's list.
        let issued = |key: &&Arc<CertifiedKey>| {
            let contains = |cert: &CertificateDer<'_>, name: &[u8]| {
                !name.is_empty() && cert.windows(name.len()).any(|part| part == name)
            };
            accepted.iter().any(|name| key.cert.iter().any(|cert| contains(cert, name)))
        };
        let mut able_keys = self.keys.iter().filter(able);
        let best = self.keys.iter().filter(able).find(issued);
        best.or_else(|| able_keys.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).map_err(|e| e.to_string())?;
    let all = found.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    if all.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(all) }
}

/// The system's authorities (or those of SSL_CERT_FILE and SSL_CERT_DIR), read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a system certificate authority cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    for cert in certificates(path)? {
        roots.add(cert).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What `skip_verify = true` asks for.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
