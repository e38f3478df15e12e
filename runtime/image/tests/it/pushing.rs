//! Pushing to a real registry, and to one that lies.

use std::sync::Arc;

use berth_image::{
    Credentials, ErrorKind, Image, ImageStore, PullOptions, PushOptions, PushReport, Reference,
    RegistryConfig,
};
use serde_json::json;

use crate::faults::two_layers;
use crate::images::{Compression, Dialect, image};
use crate::liar::{Answer, Liar};
use crate::pull::{pull, quick, store};
use crate::registry::Registry;
use crate::tarball::Tarball;

fn credentials() -> Option<Credentials> {
    let (username, password) = ("user".to_owned(), "secret-word".to_owned());
    Some(Credentials { username, password, ..Credentials::default() })
}

async fn push(
    store: &ImageStore,
    image: &Arc<Image>,
    to: &str,
    credentials: Option<Credentials>,
    options: &PushOptions,
) -> Result<PushReport, berth_image::Error> {
    store.push(image, &Reference::parse(to).unwrap(), credentials, &quick(), options).await
}

fn counts(report: &PushReport) -> (usize, usize, usize) {
    (report.sent, report.mounted, report.present)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_is_pushed_with_the_same_digests() {
    let (from, plain) = (Registry::start(), Registry::start());
    let to = plain.with_password();
    let (_dir, store) = store().await;
    let made = two_layers();
    from.push("app", "v1", &made);
    let image = pull(&store, &format!("{}/app:v1", from.address)).await.unwrap();
    let whole = PushOptions::default();
    let first = format!("{}/some/app:v1", to.address);
    let refused = push(&store, &image, &first, None, &whole).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{}", refused.report());
    assert!(refused.report().contains(&first), "{}", refused.report());
    let report = push(&store, &image, &first, credentials(), &whole).await.unwrap();
    assert_eq!(counts(&report), (3, 0, 0));
    assert_eq!(report.digest, made.manifest.digest().to_string());
    let report = push(&store, &image, &first, credentials(), &whole).await.unwrap();
    assert_eq!(counts(&report), (0, 0, 3));
    // In chunks, to another repository.
    let chunks = PushOptions { chunk: Some(70_000) };
    let second = format!("{}/other/app:v2", to.address);
    let report = push(&store, &image, &second, credentials(), &chunks).await.unwrap();
    assert_eq!(counts(&report), (3, 0, 0));
    // Both are the same image, byte for byte.
    for name in [&first, &second] {
        let reference = Reference::parse(name).unwrap();
        let id = store.pull(&reference, credentials(), &quick()).await.unwrap();
        assert_eq!(id, made.id());
        let digest = format!("@{}", made.manifest.digest());
        let found = store.find(id.as_str()).unwrap();
        assert!(found.repo_digests.iter().any(|one| one.ends_with(&digest)));
    }
    // The registry has the blobs in another repository by now, and the image came from there.
    let image = store.find(image.id.as_str()).unwrap();
    let third = format!("{}/third/app:v3", to.address);
    let report = push(&store, &image, &third, credentials(), &whole).await.unwrap();
    assert_eq!(counts(&report), (0, 3, 0));
    let other = format!("{}/app@{}", to.address, made.config.digest());
    let error = push(&store, &image, &other, credentials(), &whole).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_read_as_it_was_from_here_or_from_its_registry() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let tar = |name: &str| Tarball::new().file(name, 0o644, &[1; 5000]).finish();
    for (n, keep_blobs) in [false, true].into_iter().enumerate() {
        let tars = [tar(&format!("a{n}")), tar(&format!("b{n}"))];
        let made = image(&tars, Dialect::Docker, Compression::Gzip, json!({}));
        registry.push("app", "v1", &made);
        let reference = Reference::parse(&format!("{}/app:v1", registry.address)).unwrap();
        let options = PullOptions { keep_blobs };
        let id = store.pull_with(&reference, None, &quick(), options).await.unwrap();
        let pulled = store.find(id.as_str()).unwrap();
        // Kept ones need no registry.
        let config = RegistryConfig { retries: 0, ..quick() };
        let read = |digest: &berth_image::Digest| store.read_layer(&pulled, digest, None, &config);
        for layer in &made.layers {
            let mut reader = read(&layer.digest()).unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next().await.unwrap() {
                bytes.extend_from_slice(&piece);
            }
            assert_eq!(bytes, layer.bytes);
            assert!(reader.next().await.unwrap().is_none());
        }
        assert!(read(&made.config.digest()).is_none(), "no layer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_nowhere_is_said_and_nothing_is_listed() {
    let (from, to) = (Liar::start(), Liar::start());
    let (_dir, store) = store().await;
    let made = two_layers();
    from.honest("t", &made);
    let image = pull(&store, &from.name("t")).await.unwrap();
    let gone = &made.layers[1];
    let flipped = {
        let mut bytes = gone.bytes.clone();
        bytes[9] ^= 1;
        bytes
    };
    to.path(
        "/v2/x/y/blobs/uploads/",
        Answer::status("202 Accepted", "location: /upload?state=1\r\n"),
    );
    to.path("/upload", Answer::status("201 Created", ""));
    let cases = [
        (Answer::status("404 Not Found", ""), ErrorKind::NotFound, "404"),
        (Answer::blob(&flipped), ErrorKind::Invalid, "the blob is sha256:"),
    ];
    for (answer, kind, words) in cases {
        from.blob(gone, answer);
        let pushed = push(&store, &image, &to.name("t"), None, &PushOptions::default()).await;
        let error = pushed.unwrap_err();
        let report = error.report();
        assert_eq!(error.kind(), kind, "{report}");
        assert!(report.contains(words) && report.contains(gone.digest().as_str()), "{report}");
        assert!(to.requests().iter().all(|request| !request.contains("/manifests/")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_take_nothing_are_told_apart() {
    let from = Liar::start();
    let (_dir, store) = store().await;
    let made = two_layers();
    from.honest("t", &made);
    let image = pull(&store, &from.name("t")).await.unwrap();
    let uploads = "/v2/x/y/blobs/uploads/";
    let accepted = |location: &str| Answer::status("202 Accepted", location);
    let cases = [
        ("refused", Answer::status("403 Forbidden", ""), ErrorKind::Unauthorized, "403"),
        ("nowhere", accepted(""), ErrorKind::Invalid, "without saying where"),
        ("no url", accepted("location: a b\r\n"), ErrorKind::Invalid, "malformed"),
        ("down", Answer::status("500 Internal Server Error", ""), ErrorKind::Unavailable, "500"),
        ("no such upload", accepted("location: /none\r\n"), ErrorKind::NotFound, "404"),
    ];
    for (what, answer, kind, words) in cases {
        let to = Liar::start();
        to.path(uploads, answer);
        let pushed = push(&store, &image, &to.name("t"), None, &PushOptions::default()).await;
        let error = pushed.unwrap_err();
        let report = error.report();
        assert_eq!(error.kind(), kind, "{what}: {report}");
        assert!(report.contains(words) && report.contains(&to.name("t")), "{what}: {report}");
    }
}
