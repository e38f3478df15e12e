//! A real registry over HTTPS, with authorities of our own making.

use std::path::Path;

use berth_image::{ErrorKind, ImageStore, Reference, RegistryConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::images::{Compression, Dialect, image};
use crate::pull::store;
use crate::registry::Registry;
use crate::tarball::Tarball;

/// Writes `ca.pem`, and a certificate with its key for 127.0.0.1.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let server = params.signed_by(&key, &ca).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(dir.join("server.pem"), server.pem()).unwrap();
    std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
}

async fn pull_with(
    store: &ImageStore,
    address: &str,
    hosts: &str,
) -> Result<(), berth_image::Error> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(address)).unwrap();
    std::fs::write(dir.path().join(address).join("hosts.toml"), hosts).unwrap();
    let registry =
        RegistryConfig { config_path: Some(dir.path().to_owned()), ..RegistryConfig::default() };
    let reference = Reference::parse(&format!("{address}/app:v1")).unwrap();
    store.pull(&reference, None, &registry).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_a_known_authority_or_no_verification() {
    let certs = tempfile::tempdir().unwrap();
    certificates(certs.path());
    let plain = Registry::start();
    let tar = Tarball::new().dir("d/", 0o755).file("d/f", 0o644, b"x").finish();
    plain.push("app", "v1", &image(&[tar], Dialect::Oci, Compression::Gzip, json!({})));
    let registry = plain.over_tls(certs.path());
    let (_dir, store) = store().await;
    let server = format!("server = \"https://{}\"", registry.address);
    let error = pull_with(&store, &registry.address, &server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.report().contains("certificate"), "{}", error.report());
    let missing = format!("{server}\nca = \"none.pem\"");
    let error = pull_with(&store, &registry.address, &missing).await.unwrap_err();
    assert!(error.report().contains("none.pem"), "{}", error.report());
    let ca = certs.path().join("ca.pem");
    for good in [
        format!("{server}\nskip_verify = true"),
        format!("{server}\nca = {ca:?}"),
        format!("{server}\nca = [{ca:?}]"),
        format!("[host.\"https://{}\"]\nca = {ca:?}", registry.address),
    ] {
        let pulled = pull_with(&store, &registry.address, &good).await;
        pulled.unwrap_or_else(|e| panic!("{good}: {}", e.report()));
        store.remove(&format!("{}/app:v1", registry.address)).await.unwrap();
        assert!(store.list().is_empty());
    }
}
