//! How a pull behaves: stalls, callers that leave, equal pulls, redirects, mirrors.

use std::sync::Arc;
use std::time::Duration;

use berth_image::{ErrorKind, ImageStore, Reference, RegistryConfig};
use serde_json::json;

use crate::faults::two_layers;
use crate::images::{self, Dialect};
use crate::liar::{Answer, Liar};
use crate::pull::{assert_nothing_left, pull, quick, store};

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_is_noticed() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = two_layers();
    liar.honest("t", &image);
    liar.blob(&image.layers[1], Answer::Stall(image.layers[1].bytes[..1000].to_vec()));
    let registry = RegistryConfig { stall_timeout: Duration::from_millis(200), ..quick() };
    let reference = Reference::parse(&liar.name("t")).unwrap();
    let error = store.pull(&reference, None, &registry).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.report().contains("stalled"), "{}", error.report());
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_stops_and_leaves_nothing() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = two_layers();
    liar.honest("t", &image);
    liar.blob(&image.layers[1], Answer::Stall(image.layers[1].bytes[..1000].to_vec()));
    let reference = Reference::parse(&liar.name("t")).unwrap();
    let registry = quick();
    let deadline = Duration::from_millis(1);
    let pull = store.pull(&reference, None, &registry);
    assert!(tokio::time::timeout(deadline, pull).await.is_err());
    assert_nothing_left(&dir, &store).await;
    // In the middle of a body, with two waiting: the first to leave stops nothing.
    let mut first = Box::pin(store.pull(&reference, None, &registry));
    let mut second = Box::pin(store.pull(&reference, None, &registry));
    let blob = format!("/blobs/{}", image.layers[1].digest());
    tokio::select! {
        _ = &mut first => panic!("a stalled pull ended"),
        _ = &mut second => panic!("a stalled pull ended"),
        () = until(|| liar.count(&blob) > 0) => {}
    }
    drop(first);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
    drop(second);
    assert_nothing_left(&dir, &store).await;
    // And afterwards all is well.
    liar.blob(&image.layers[1], Answer::blob(&image.layers[1].bytes));
    pull_well(&store, &liar.name("t")).await;
}

async fn pull_well(store: &Arc<ImageStore>, name: &str) {
    pull(store, name).await.unwrap_or_else(|e| panic!("{}", e.report()));
}

/// Waits for a condition, for five seconds at most.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the condition never came");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_are_one() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = two_layers();
    liar.honest("t", &image);
    // The same layers under another configuration: another image, the same downloads.
    let tars_of = |n: usize| image.layers[n].clone();
    let mut config: serde_json::Value = serde_json::from_slice(&image.config.bytes).unwrap();
    config["author"] = json!("another");
    liar.honest("u", &images::assemble(vec![tars_of(0), tars_of(1)], &config, Dialect::Oci));
    let name = |tag| liar.name(tag);
    let pulls = (0..10).map(|n| {
        let (store, name) = (store.clone(), name(if n < 8 { "t" } else { "u" }));
        tokio::spawn(async move { pull_well(&store, &name).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap();
    }
    assert_eq!(store.list().len(), 2);
    for layer in &image.layers {
        assert_eq!(liar.count(&format!("/blobs/{}", layer.digest())), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirected_blobs_are_fetched_and_nothing_secret_goes_along() {
    let (front, back) = (Liar::start(), Liar::start());
    let (dir, store) = store().await;
    let image = two_layers();
    front.honest("t", &image);
    for (n, layer) in image.layers.iter().enumerate() {
        front.blob(layer, Answer::redirect(&format!("http://{}/far/{n}", back.address)));
        back.path(&format!("/far/{n}"), Answer::blob(&layer.bytes));
    }
    let certs = dir.path().join("certs.d");
    std::fs::create_dir_all(certs.join(&front.address)).unwrap();
    let hosts = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\".header]\nx-secret = \"word\"\n",
        front.address, front.address
    );
    std::fs::write(certs.join(&front.address).join("hosts.toml"), hosts).unwrap();
    let registry = RegistryConfig { config_path: Some(certs), ..quick() };
    let reference = Reference::parse(&front.name("t")).unwrap();
    store.pull(&reference, None, &registry).await.unwrap();
    assert!(front.requests().iter().all(|request| request.contains("x-secret: word")));
    assert_eq!(back.requests().len(), 2);
    assert!(back.requests().iter().all(|request| !request.contains("x-secret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_then_the_server() {
    let (broken, half, server) = (Liar::start(), Liar::start(), Liar::start());
    let (dir, store) = store().await;
    let image = two_layers();
    server.honest("t", &image);
    half.blob(&image.layers[0], Answer::blob(&image.layers[0].bytes));
    let certs = dir.path().join("certs.d");
    std::fs::create_dir_all(certs.join("_default")).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n\
         capabilities = [\"pull\"]\n",
        server.address, broken.address, half.address
    );
    std::fs::write(certs.join("_default/hosts.toml"), hosts).unwrap();
    let registry = RegistryConfig { config_path: Some(certs), ..quick() };
    let reference = Reference::parse("upstream.test/x/y:t").unwrap();
    let id = store.pull(&reference, None, &registry).await.unwrap();
    assert_eq!(store.find("upstream.test/x/y:t").unwrap().id, id);
    assert_eq!(broken.count("/manifests/t"), 1);
    assert_eq!(half.count("/manifests/"), 0, "it may not resolve");
    let first = format!("/blobs/{}", image.layers[0].digest());
    assert_eq!((broken.count(&first), half.count(&first), server.count(&first)), (1, 1, 0));
    assert!(server.requests().iter().all(|request| request.contains("?ns=upstream.test")));
}
