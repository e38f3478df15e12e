//! By way of a proxy. The registry's name is known to the proxy alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use berth_image::{ErrorKind, Proxies, Reference, RegistryConfig};
use serde_json::json;

use crate::faults::two_layers;
use crate::https::certificates_for;
use crate::images::{Compression, Dialect, image};
use crate::liar::{Answer, Liar, field};
use crate::pull::{quick, store};
use crate::registry::Registry;
use crate::tarball::Tarball;

/// Takes CONNECT and leads to one place, whatever was asked for. Returns its address and what
/// it was asked.
fn tunnel(to: String, status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    // Ends with the test's process: nobody can be waiting in it then.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, to, seen) = (stream.unwrap(), to.clone(), seen.clone());
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                seen.lock().unwrap().push(String::from_utf8_lossy(&head).to_lowercase());
                write!(stream, "HTTP/1.1 {status}\r\n\r\n")?;
                let back = TcpStream::connect(&to)?;
                let (mut from_client, mut to_server) = (stream.try_clone()?, back.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
                std::io::copy(&mut &back, &mut stream).map(|_| ())
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn https_goes_through_a_tunnel_and_loopback_does_not() {
    let certs = tempfile::tempdir().unwrap();
    certificates_for(certs.path(), "upstream.test");
    let plain = Registry::start();
    let tar = Tarball::new().dir("d/", 0o755).file("d/f", 0o644, b"x").finish();
    plain.push("app", "v1", &image(&[tar], Dialect::Oci, Compression::Gzip, json!({})));
    let registry = plain.over_tls(certs.path());
    let (dir, store) = store().await;
    let hosts = dir.path().join("certs.d/upstream.test");
    std::fs::create_dir_all(&hosts).unwrap();
    let ca = certs.path().join("ca.pem");
    std::fs::write(hosts.join("hosts.toml"), format!("ca = {ca:?}")).unwrap();
    let config = |proxy: &str, no: &str| {
        let (https, no) = (Some(format!("http://me:pass-word@{proxy}")), Some(no.to_owned()));
        let proxies = Proxies { http: None, https, no };
        let config_path = Some(dir.path().join("certs.d"));
        RegistryConfig { config_path, proxies, retries: 0, ..quick() }
    };
    let (proxy, asked) = tunnel(registry.address.clone(), "200 OK");
    let reference = Reference::parse("upstream.test/app:v1").unwrap();
    store.pull(&reference, None, &config(&proxy, "")).await.unwrap();
    let seen = asked.lock().unwrap().clone();
    assert!(!seen.is_empty());
    for request in &seen {
        assert!(request.starts_with("connect upstream.test:443 "), "{request}");
        assert!(field(request, "proxy-authorization").is_some(), "{request}");
    }
    // Not asked for what NO_PROXY names, nor for this machine's own.
    let error = store.pull(&reference, None, &config(&proxy, ".test")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let own = Reference::parse(&format!("{}/app:v1", plain.address)).unwrap();
    store.pull(&own, None, &config(&proxy, "")).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), seen.len());
    let (refusing, _) = tunnel(registry.address.clone(), "407 Proxy Authentication Required");
    let error = store.pull(&reference, None, &config(&refusing, "")).await.unwrap_err();
    let report = error.report();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{report}");
    assert!(report.contains(&refusing) && !report.contains("pass-word"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_are_passed_on_by_the_proxy() {
    let proxy = Liar::start();
    let image = two_layers();
    proxy.honest("t", &image);
    proxy.tag("gone", Answer::status("404 Not Found", ""));
    let (dir, store) = store().await;
    let hosts = dir.path().join("certs.d/upstream.test");
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::write(hosts.join("hosts.toml"), "server = \"http://upstream.test\"").unwrap();
    let http = Some(format!("http://me:word@{}", proxy.address));
    let proxies = Proxies { http, ..Proxies::default() };
    let config_path = Some(dir.path().join("certs.d"));
    let registry = RegistryConfig { config_path, proxies, ..quick() };
    let reference = Reference::parse("upstream.test/x/y:t").unwrap();
    store.pull(&reference, None, &registry).await.unwrap();
    for request in proxy.requests() {
        assert!(request.starts_with("get http://upstream.test/v2/x/y/"), "{request}");
        assert_eq!(field(&request, "proxy-authorization"), Some("basic bwu6d29yza=="));
    }
}
