//! A real registry over HTTPS, with authorities of our own making.

use std::path::Path;

use berth_image::{ErrorKind, ImageStore, Reference, RegistryConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::images::{Compression, Dialect, image};
use crate::pull::{quick, store};
use crate::registry::Registry;
use crate::tarball::Tarball;

/// Writes `ca.pem`; and with its key a certificate for this name or address, and one for a client.
pub(crate) fn certificates_for(dir: &Path, name: &str) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let server = params.signed_by(&key, &ca).unwrap();
    let client_key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let client = params.signed_by(&client_key, &ca).unwrap();
    std::fs::write(dir.join("client.pem"), client.pem()).unwrap();
    std::fs::write(dir.join("client.key"), client_key.serialize_pem()).unwrap();
    let both = format!("{}{}", client.pem(), client_key.serialize_pem());
    std::fs::write(dir.join("client-both.pem"), both).unwrap();
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
    let registry = RegistryConfig { config_path: Some(dir.path().to_owned()), ..quick() };
    let reference = Reference::parse(&format!("{address}/app:v1")).unwrap();
    store.pull(&reference, None, &registry).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_a_known_authority_or_no_verification() {
    let certs = tempfile::tempdir().unwrap();
    certificates_for(certs.path(), "127.0.0.1");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_certificate_is_shown_one() {
    let certs = tempfile::tempdir().unwrap();
    certificates_for(certs.path(), "127.0.0.1");
    let plain = Registry::start();
    let tar = Tarball::new().dir("d/", 0o755).file("d/f", 0o644, b"x").finish();
    plain.push("app", "v1", &image(&[tar], Dialect::Oci, Compression::Gzip, json!({})));
    let registry = plain.over_mutual_tls(certs.path());
    let (_dir, store) = store().await;
    let path = |name: &str| certs.path().join(name).display().to_string();
    let server = format!("server = \"https://{}\"\nca = {:?}", registry.address, path("ca.pem"));
    let (cert, key, both) = (path("client.pem"), path("client.key"), path("client-both.pem"));
    let refused = pull_with(&store, &registry.address, &server).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{}", refused.report());
    let no_key = format!("{server}\nclient = {cert:?}");
    let error = pull_with(&store, &registry.address, &no_key).await.unwrap_err();
    assert!(error.report().contains("client.pem"), "{}", error.report());
    let other_key = format!("{server}\nclient = [[{cert:?}, {:?}]]", path("server.key"));
    let error = pull_with(&store, &registry.address, &other_key).await.unwrap_err();
    assert!(error.report().contains("does not fit"), "{}", error.report());
    for good in [
        format!("{both:?}"),
        format!("[{both:?}]"),
        format!("[[{cert:?}, {key:?}]]"),
        format!("[[{:?}, {:?}], [{cert:?}, {key:?}]]", path("server.pem"), path("server.key")),
    ] {
        let hosts = format!("{server}\nclient = {good}");
        let pulled = pull_with(&store, &registry.address, &hosts).await;
        pulled.unwrap_or_else(|e| panic!("{good}: {}", e.report()));
        store.remove(&format!("{}/app:v1", registry.address)).await.unwrap();
    }
}
