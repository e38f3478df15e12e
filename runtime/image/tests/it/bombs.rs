//! Layers that ask for too much, and compressed streams that are not what they should be; and
//! unusual ones that are good.

use berth_image::{ErrorKind, ImageStore, Limits, StoreConfig};
use serde_json::json;

use crate::faults::bad_image;
use crate::images::{
    Blob, Compression, Dialect, TestImage, assemble, compress, config_json, image,
};
use crate::liar::Liar;
use crate::pull::{assert_nothing_left, pull, store};
use crate::tarball::Tarball;

fn tar() -> Vec<u8> {
    Tarball::new().dir("d/", 0o755).file("d/f", 0o644, &[7; 70_000]).finish()
}

/// An image of one layer with these compressed bytes, which should inflate to [`tar`].
fn of_bytes(bytes: Vec<u8>, kind: &str) -> TestImage {
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
    assemble(vec![Blob { media_type, bytes }], &config_json(&[tar()], json!({})), Dialect::Oci)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_beyond_a_limit_is_refused() {
    let limits =
        Limits { layer_bytes: 1 << 20, layer_entries: 20, path_depth: 8, ..Limits::default() };
    let many = (0..21).fold(Tarball::new(), |tar, n| tar.file(&format!("f{n}"), 0o644, b""));
    let deep = Tarball::new().file("1/2/3/4/5/6/7/8/9/f", 0o644, b"");
    let bent = Tarball::new().symlink("l", "1/2/3/4/5").dir("1/2/3/4/5/", 0o755);
    let bent = bent.file("l/6/7/8/9/f", 0o644, b"");
    let cases = [
        ("1048576 bytes unpacked", "layer_gib", Tarball::new().file("f", 0o644, &vec![0; 2 << 20])),
        ("20 entries", "layer_entries", many),
        ("8 names on a path", "path_depth", deep),
        ("8 names on a path", "path_depth", bent),
    ];
    for (words, key, tar) in cases {
        let image = image(&[tar.finish()], Dialect::Oci, Compression::Gzip, json!({}));
        let liar = Liar::start();
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { limits, ..StoreConfig::new(dir.path().join("image")) };
        let store = ImageStore::open(config).await.unwrap();
        liar.honest("t", &image);
        let error = pull(&store, &liar.name("t")).await.expect_err(key);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{key}");
        let report = error.report();
        let layer = image.layers[0].digest();
        for word in [words, &format!("image.limits.{key}"), layer.as_str()] {
            assert!(report.contains(word), "{word:?} is not in: {report}");
        }
        assert_nothing_left(&dir, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_cut_or_go_on_are_refused() {
    let gzip = compress(&tar(), Compression::Gzip);
    let zstd = compress(&tar(), Compression::Zstd);
    let mut sum = gzip.clone();
    let at = sum.len() - 6;
    sum[at] ^= 1;
    let with = |bytes: &[u8], more: &[u8]| [bytes, more].concat();
    let cases = [
        ("gzip", "cut", "gzip", gzip[..gzip.len() / 2].to_vec()),
        ("gzip", "cut in the trailer", "gzip", gzip[..gzip.len() - 1].to_vec()),
        ("gzip", "another checksum", "checksum", sum),
        ("gzip", "bytes after the end", "after the end", with(&gzip, b"more")),
        ("gzip", "bytes after zeros", "after the end", with(&gzip, b"\0\0\0more")),
        ("gzip", "a second member cut", "gzip", with(&gzip, &gzip[..gzip.len() - 9])),
        ("gzip", "twice", "diff-id", with(&gzip, &gzip)),
        ("zstd", "cut", "zstd", zstd[..zstd.len() - 1].to_vec()),
        ("zstd", "bytes after the end", "zstd", with(&zstd, b"more")),
        ("zstd", "nothing", "diff-id", Vec::new()),
    ];
    for (kind, what, words, bytes) in cases {
        let image = of_bytes(bytes, kind);
        let layer = image.layers[0].digest().to_string();
        bad_image(what, &[words, &layer], image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_but_good_streams_are_unpacked() {
    let whole = tar();
    let (front, back) = whole.split_at(30_000);
    let zip = |bytes: &[u8]| compress(bytes, Compression::Gzip);
    let frame = |bytes: &[u8]| compress(bytes, Compression::Zstd);
    // As zstd:chunked has them: skippable frames with what only those read who know it.
    let skip = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"table"].concat();
    let cases = [
        ("members", "gzip", [zip(front), zip(b""), zip(back)].concat()),
        ("padding", "gzip", [zip(&whole), vec![0; 10_240]].concat()),
        ("frames", "zstd", [skip.clone(), frame(front), skip.clone(), frame(back), skip].concat()),
        ("gzip that says zstd", "zstd", zip(&whole)),
    ];
    for (what, kind, bytes) in cases {
        let liar = Liar::start();
        let (_dir, store) = store().await;
        liar.honest("t", &of_bytes(bytes, kind));
        pull(&store, &liar.name("t")).await.unwrap_or_else(|e| panic!("{what}: {}", e.report()));
        let image = store.find(&liar.name("t")).unwrap();
        let file = store.read_file(&image, "/d/f", 1 << 20).await.unwrap();
        assert_eq!(file.as_deref(), Some(&[7; 70_000][..]), "{what}");
    }
}
