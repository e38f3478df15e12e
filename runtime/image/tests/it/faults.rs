//! Registries that lie or fail: a clear error each, and nothing left behind.

use std::sync::atomic::{AtomicUsize, Ordering};

use berth_image::{Digest, Error, ErrorKind, ImageStore};
use serde_json::json;

use crate::images::{self, Blob, Compression, Dialect, TestImage, config_json};
use crate::liar::{Answer, Liar};
use crate::pull::{assert_nothing_left, pull, store};
use crate::tarball::Tarball;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn tar(content: &[u8]) -> Vec<u8> {
    Tarball::new().dir("d/", 0o755).file("d/f", 0o644, content).finish()
}

pub(crate) fn two_layers() -> TestImage {
    let noise: Vec<u8> =
        (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    images::image(&[tar(b"one"), tar(&noise)], Dialect::Oci, Compression::Gzip, json!({}))
}

async fn refused(store: &ImageStore, name: &str) -> Error {
    let error = pull(store, name).await.expect_err(name);
    assert!(store.list().is_empty(), "{name}");
    assert!(error.report().contains(name), "{}", error.report());
    error
}

/// A pull of an image whose blob or manifest is answered as given must fail with this kind and
/// these words.
async fn case(what: &str, kind: ErrorKind, words: &[&str], lie: impl FnOnce(&Liar, &TestImage)) {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = two_layers();
    liar.honest("t", &image);
    lie(&liar, &image);
    let error = refused(&store, &liar.name("t")).await;
    let report = error.report();
    assert_eq!(error.kind(), kind, "{what}: {report}");
    for word in words {
        assert!(report.contains(word), "{what}: {word:?} is not in: {report}");
    }
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_blobs_are_refused() {
    use ErrorKind::Invalid;
    let image = two_layers();
    let top = image.layers[1].digest().to_string();
    let honest = image.layers[1].bytes.clone();
    let mut flipped = honest.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    // The same length and inflating well, so that only the digest can tell.
    let mut header_bit = honest.clone();
    header_bit[9] ^= 1;
    let longer = [&honest[..], b"x"].concat();
    let lies: Vec<Lie<'_>> = vec![
        ("flipped", Invalid, vec![&top], Answer::blob(&flipped)),
        ("only the digest", Invalid, vec![&top, "the blob is sha256:"], Answer::blob(&header_bit)),
        ("longer", Invalid, vec![&top, "announces"], Answer::blob(&longer)),
        ("shorter", Invalid, vec![&top, "announces"], Answer::blob(&honest[1..])),
        ("endless", Invalid, vec![&top, "bytes"], Answer::Endless),
        (
            "redirect loop",
            Invalid,
            vec![&top, "redirects"],
            Answer::redirect(&format!("/v2/x/y/blobs/{top}")),
        ),
        ("redirect to nowhere", Invalid, vec![&top, "redirect"], Answer::redirect("not a url")),
    ];
    for (what, kind, words, answer) in lies {
        case(what, kind, &words, |liar, image| liar.blob(&image.layers[1], answer)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_answers_than_a_blob_are_refused() {
    use ErrorKind::{Invalid, NotFound, Unavailable};
    let image = two_layers();
    let top = image.layers[1].digest().to_string();
    let honest = image.layers[1].bytes.clone();
    let answers: Vec<Lie<'_>> = vec![
        (
            "gone",
            NotFound,
            vec![&top, "404", "not here"],
            Answer::Body {
                status: "404 Not Found",
                headers: String::new(),
                bytes: br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}"#.to_vec(),
            },
        ),
        (
            "cut",
            Unavailable,
            vec![&top],
            Answer::Cut { announced: honest.len(), bytes: honest[..1000].to_vec() },
        ),
        (
            "server error",
            Unavailable,
            vec![&top, "500"],
            Answer::Body {
                status: "500 Internal Server Error",
                headers: String::new(),
                bytes: Vec::new(),
            },
        ),
        (
            "encoded",
            Invalid,
            vec![&top, "content encoding"],
            Answer::Body {
                status: "200 OK",
                headers: "content-encoding: gzip\r\n".to_owned(),
                bytes: honest.clone(),
            },
        ),
        (
            "a page in place of the blob",
            Invalid,
            vec![&top, "announces"],
            Answer::Body {
                status: "200 OK",
                headers: "content-type: text/html\r\n".to_owned(),
                bytes: b"<html>please log in</html>".to_vec(),
            },
        ),
    ];
    for (what, kind, words, answer) in answers {
        case(what, kind, &words, |liar, image| liar.blob(&image.layers[1], answer)).await;
    }
}

type Lie<'a> = (&'a str, ErrorKind, Vec<&'a str>, Answer);

fn document(bytes: &[u8]) -> Answer {
    let headers = format!("content-type: {OCI_MANIFEST}\r\n");
    Answer::Body { status: "200 OK", headers, bytes: bytes.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_changes_while_it_is_pulled_gives_one_image_or_the_other() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let other = images::image(&[tar(b"x")], Dialect::Docker, Compression::Zstd, json!({}));
    let made = [two_layers(), other];
    for image in &made {
        liar.honest("t", image);
    }
    // Each request is answered with the other one.
    let (asked, manifests) = (AtomicUsize::new(0), made.clone().map(|image| image.manifest));
    let reply = move |_: &str, _: &[u8]| {
        Answer::manifest(&manifests[asked.fetch_add(1, Ordering::SeqCst) % 2])
    };
    liar.tag("t", Answer::call(reply));
    for image in made {
        let pulled = pull(&store, &liar.name("t")).await.unwrap();
        assert_eq!(pulled.id, image.id());
        let digest = format!("@{}", image.manifest.digest());
        assert!(pulled.repo_digests.iter().any(|name| name.ends_with(&digest)));
    }
    // By digest, another manifest is no answer.
    let first = two_layers();
    let path = first.manifest.digest().to_string();
    liar.tag(&path, Answer::blob(&[&first.manifest.bytes[..], b" "].concat()));
    let name = format!("{}/x/y@{path}", liar.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.report().contains("the content is sha256:"), "{}", error.report());
}

async fn refuse_tags(lies: Vec<Lie<'_>>) {
    for (what, kind, words, answer) in lies {
        case(what, kind, &words, |liar, _| liar.tag("t", answer)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_documents_are_refused() {
    use ErrorKind::{Invalid, Unauthorized, Unavailable};
    let html = Answer::Body {
        status: "200 OK",
        headers: "content-type: text/html; charset=utf-8\r\n".to_owned(),
        bytes: b"<html>please log in</html>".to_vec(),
    };
    let other = Answer::Body {
        status: "200 OK",
        headers: format!("docker-content-digest: {}\r\n", Digest::of(b"another")),
        bytes: two_layers().manifest.bytes,
    };
    let refusal = |status| Answer::Body { status, headers: String::new(), bytes: Vec::new() };
    refuse_tags(vec![
        ("html", Invalid, vec!["HTML"], html),
        ("another digest", Invalid, vec!["the content is sha256:"], other),
        ("not JSON", Invalid, vec!["manifest"], document(b"{")),
        ("empty", Invalid, vec!["manifest"], document(b"")),
        ("too long", Invalid, vec!["4194304"], document(&vec![b' '; (4 << 20) + 1])),
        ("endless", Invalid, vec!["4194304"], Answer::Endless),
        ("login wanted", Unauthorized, vec!["401"], refusal("401 Unauthorized")),
        ("overloaded", Unavailable, vec!["503"], refusal("503 Service Unavailable")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_no_images_are_refused() {
    let config = json!({"digest": Digest::of(b"{}").as_str(), "size": 2});
    let foreign = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": Digest::of(b"").as_str(),
        "size": 1,
    });
    let manifest = |key: &str, value: serde_json::Value| {
        let mut manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []});
        manifest["config"] = config.clone();
        manifest[key] = value;
        document(&serde_json::to_vec(&manifest).unwrap())
    };
    let large = json!({"digest": Digest::of(b"{}").as_str(), "size": 9_000_000});
    let md5 = json!({"digest": "md5:00", "size": 2});
    let encrypted = json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "digest": Digest::of(b"").as_str(), "size": 1}]);
    let invalid = |what, words, answer| (what, ErrorKind::Invalid, vec![words], answer);
    refuse_tags(vec![
        invalid("schema 1", "schema 1", manifest("schemaVersion", json!(1))),
        invalid("both", "contradicted", manifest("manifests", json!([]))),
        invalid("artifact", "artifact", manifest("artifactType", json!("application/x.y"))),
        invalid("foreign", "foreign", manifest("layers", json!([foreign]))),
        invalid("encrypted", "encrypted", manifest("layers", encrypted)),
        invalid("bad digest", "md5:00", manifest("config", md5)),
        invalid("large configuration", "8388608", manifest("config", large)),
        invalid("other type", "text/plain", manifest("mediaType", json!("text/plain"))),
    ])
    .await;
}

/// An image whose parts contradict each other, or whose layers may not be.
pub(crate) async fn bad_image(what: &str, words: &[&str], image: TestImage) {
    let liar = Liar::start();
    let (dir, store) = store().await;
    liar.honest("t", &image);
    let error = refused(&store, &liar.name("t")).await;
    let report = error.report();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {report}");
    for word in words {
        assert!(report.contains(word), "{what}: {word:?} is not in: {report}");
    }
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_contradict_themselves_are_refused() {
    let layer = |tar: &[u8]| images::layer(tar, Dialect::Oci, Compression::Gzip);
    let one = layer(&tar(b"one"));
    let of = |layers: Vec<Blob>, config: serde_json::Value| {
        images::assemble(layers, &config, Dialect::Oci)
    };
    let wrong_diff_id = of(vec![one.clone()], config_json(&[tar(b"other")], json!({})));
    let layer_digest = one.digest().to_string();
    bad_image("diff-id", &["diff-id", &layer_digest], wrong_diff_id).await;
    let fewer = of(vec![one.clone()], config_json(&[], json!({})));
    bad_image("fewer", &["1 layers", "0 diff-ids"], fewer).await;
    let no_config = of(vec![one.clone()], json!("text"));
    bad_image("no configuration", &["configuration"], no_config).await;
    let index = images::index(&[(&one, "plan9/mips"), (&one, "linux/s390x")], Dialect::Oci);
    let wrong =
        TestImage { manifest: index, ..of(vec![one], config_json(&[tar(b"one")], json!({}))) };
    bad_image("platform", &["plan9/mips, linux/s390x", "linux/"], wrong).await;
}
