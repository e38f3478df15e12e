//! Tars that reach out of their root, or are not what they say.

use serde_json::json;

use crate::faults::bad_image;
use crate::images::{Compression, Dialect, image};
use crate::tarball::{Fields, Tarball};

async fn refused(cases: Vec<(&str, &str, Tarball)>) {
    for (what, words, tar) in cases {
        refused_bytes(what, words, tar.finish()).await;
    }
}

async fn refused_bytes(what: &str, words: &str, tar: Vec<u8>) {
    let image = image(&[tar], Dialect::Oci, Compression::Gzip, json!({}));
    let layer = image.layers[0].digest().to_string();
    bad_image(what, &[words, &layer], image).await;
}

fn entry(kind: u8, name: &'static str, link: &'static str) -> Tarball {
    let (name, link) = (name.as_bytes(), link.as_bytes());
    Tarball::new().entry(&Fields { kind, name, link, ..Fields::default() }, b"")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_links_that_lead_astray_are_refused() {
    let file = |name: &str| Tarball::new().file(name, 0o644, b"x");
    let link = |name: &str, target: &str| Tarball::new().hard_link(name, target);
    let directory = Tarball::new().dir("d/", 0o755);
    let loops = Tarball::new().symlink("a", "b").symlink("b", "a").file("a/f", 0o644, b"");
    refused(vec![
        ("dotdot", "leads out", file("../f")),
        ("dotdot within", "leads out", file("a/../../f")),
        ("hard link out", "leads out", link("l", "../../etc/passwd")),
        ("hard link to nothing", "hard link", link("l", "none")),
        ("hard link to a directory", "hard link", directory.hard_link("l", "d")),
        ("file as directory", "no directory", file("f").file("f/g", 0o644, b"x")),
        ("symlink loop", "loop", loops),
        ("nameless whiteout", "no name", file("d/.wh.")),
        ("whiteout of ..", "no name", file("d/.wh...")),
        ("root as a symlink", "root", entry(b'2', "/", "x")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_in_a_layer_is_refused() {
    let with = |key, value: &[u8]| Tarball::new().pax(&[(key, value)]).dir("d/", 0o755);
    let long = vec![b'a'; 1 << 20];
    let sized = |size| Fields { name: b"f", size, ..Fields::default() };
    refused(vec![
        ("whiteout device", "0:0", entry(b'3', "c", "")),
        ("overlay xattr", "overlayfs", with("SCHILY.xattr.trusted.overlay.opaque", b"y")),
        ("overlay redirect", "overlayfs", with("SCHILY.xattr.trusted.overlay.redirect", b"/")),
        ("giant xattr", "64 KiB", with("SCHILY.xattr.user.a", &long[..70_000])),
        ("nameless xattr", "attribute name", with("SCHILY.xattr.", b"x")),
        ("sparse", "sparse", entry(b'S', "s", "")),
        ("PAX sparse", "sparse", with("GNU.sparse.major", b"1")),
        ("unknown type", "unknown type", entry(b'Z', "z", "")),
        ("PAX length", "PAX", Tarball::new().extended(b'x', b"999 path=x\n").dir("d/", 0o755)),
        ("PAX number", "PAX", with("uid", b"-1")),
        ("PAX time", "PAX", with("mtime", b"12.x")),
        ("owner", "32 bits", with("uid", b"4294967296")),
        ("giant PAX", "1 MiB", with("path", &long)),
        ("long name", "4096", with("path", &long[..5000])),
        ("giant file", "ends within", Tarball::new().entry(&sized(u64::MAX >> 33), b"")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_or_change_midway_are_refused() {
    let file = Tarball::new().file("f", 0o644, b"x");
    let mut sum = file.clone().finish();
    sum[0] ^= 1;
    refused_bytes("checksum", "checksum", sum).await;
    let cut = Tarball::new().entry(&Fields { name: b"f", size: 5000, ..Fields::default() }, b"");
    refused_bytes("cut in a file", "ends within", cut.cut()).await;
    refused_bytes("cut in a header", "tar", file.raw(b"half a header").cut()).await;
    let text = b"this is no tar at all, but it is longer than nothing".repeat(20);
    refused_bytes("no tar", "checksum", text).await;
}
