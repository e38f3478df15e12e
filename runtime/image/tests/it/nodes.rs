//! Single entries, down to each attribute.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use serde_json::json;

use crate::images::{Compression, Dialect, image};
use crate::pull::store;
use crate::store::import;
use crate::tarball::{Fields, Tarball};

/// Unpacks one tar and gives its directory.
async fn unpacked(tar: Vec<u8>) -> (tempfile::TempDir, PathBuf) {
    let (dir, store) = store().await;
    let made = image(&[tar], Dialect::Oci, Compression::Gzip, json!({}));
    let image = import(&dir, &store, &made, "x.test/a:1").await;
    let snapshot = store.prepare("ctr", &image).await.unwrap();
    (dir, snapshot.lower[0].clone())
}

fn xattr(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0_u8; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_modes_times_and_attributes_are_kept() {
    // Version 2, effective, CAP_NET_RAW permitted.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let owned = Fields { name: b"suid", mode: 0o4755, uid: 12, gid: 34, ..Fields::default() };
    let tar = Tarball::new()
        .entry(&owned, b"program")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("mtime", b"1234567890.987654321"),
        ])
        .entry(&Fields { name: b"capable", mode: 0o755, uid: 1, ..Fields::default() }, b"x")
        .pax(&[("mtime", b"-1.5"), ("uid", b"3000000"), ("gid", b"4000000000")])
        .file("early", 0o600, b"")
        .pax(&[("SCHILY.xattr.trusted.t", b"on a link")])
        .symlink("link", "nowhere")
        .dir("sticky/", 0o1777)
        .finish();
    let (_dir, root) = unpacked(tar).await;
    let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
    let suid = meta("suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid()), (0o4755, 12, 34));
    let capable = meta("capable");
    assert_eq!((capable.mtime(), capable.mtime_nsec()), (1_234_567_890, 987_654_321));
    assert_eq!(xattr(&root.join("capable"), "security.capability").unwrap(), capability);
    let early = meta("early");
    assert_eq!((early.mtime(), early.mtime_nsec()), (-2, 500_000_000));
    assert_eq!((early.uid(), early.gid()), (3_000_000, 4_000_000_000));
    assert_eq!(xattr(&root.join("link"), "trusted.t").unwrap(), b"on a link");
    let sticky = meta("sticky");
    assert_eq!((sticky.mode() & 0o7777, sticky.mtime()), (0o1777, 1_700_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_node_is_made() {
    let special = |kind, name: &'static str, device| Fields {
        kind,
        name: name.as_bytes(),
        mode: 0o640,
        gid: 5,
        device,
        ..Fields::default()
    };
    let tar = Tarball::new()
        .entry(&special(b'6', "fifo", (0, 0)), b"")
        .entry(&special(b'3', "null", (1, 3)), b"")
        .entry(&special(b'4', "disk", (8, 17)), b"")
        .file("file", 0o644, b"content")
        .hard_link("same", "/file")
        .symlink("absolute", "/file")
        .entry(&Fields { kind: b'7', name: b"contiguous", ..Fields::default() }, b"c")
        .file("old-style-directory/", 0o755, b"")
        .finish();
    let (_dir, root) = unpacked(tar).await;
    let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
    assert!(meta("fifo").file_type().is_fifo());
    let null = meta("null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777, null.gid()), (0x103, 0o640, 5));
    assert!(meta("disk").file_type().is_block_device());
    assert_eq!(meta("disk").rdev(), 0x811);
    assert_eq!((meta("file").ino(), meta("file").nlink()), (meta("same").ino(), 2));
    assert_eq!(std::fs::read_link(root.join("absolute")).unwrap().to_str(), Some("/file"));
    assert_eq!(std::fs::read(root.join("contiguous")).unwrap(), b"c");
    assert!(meta("old-style-directory").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_every_form_are_read() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let gnu_name = [long.as_bytes(), b"\0"].concat();
    let gnu_link = [b"l".repeat(150), b"\0".to_vec()].concat();
    let pax_name = format!("pax-{}", "é".repeat(100));
    let tar = Tarball::new()
        .dir(&"d".repeat(99), 0o755)
        .extended(b'L', &[b"d".repeat(120), b"/\0".to_vec()].concat())
        .dir("short", 0o755)
        .extended(b'L', &gnu_name)
        .file("short", 0o644, b"gnu")
        .extended(b'K', &gnu_link)
        .symlink("gnu-link", "short")
        .pax(&[("path", pax_name.as_bytes())])
        .file("short", 0o644, b"pax")
        .global(&[("comment", b"for all"), ("mtime", b"77")])
        .file("./dot/../plain".trim_start_matches("./dot/../"), 0o644, b"")
        .file("/absolute", 0o644, b"a")
        .finish();
    let (_dir, root) = unpacked(tar).await;
    assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"gnu");
    assert_eq!(std::fs::read(root.join(&pax_name)).unwrap(), b"pax");
    let target = std::fs::read_link(root.join("gnu-link")).unwrap();
    assert_eq!(target.to_str().unwrap().len(), 150);
    assert_eq!(root.join("plain").metadata().unwrap().mtime(), 77);
    assert_eq!(std::fs::read(root.join("absolute")).unwrap(), b"a");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_through_a_symlink_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let up = format!("../../../../../../../../..{target}");
    let tar = Tarball::new()
        .symlink("abs", target)
        .file("abs/planted", 0o644, b"x")
        .symlink("up", &up)
        .file("up/planted", 0o644, b"x")
        .file("abs/.wh.gone", 0o644, b"")
        .finish();
    std::fs::write(outside.path().join("gone"), b"stays").unwrap();
    let (_dir, root) = unpacked(tar).await;
    let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // As in a container, the link leads to a place beneath the image's own root.
    assert!(root.join(target.trim_start_matches('/')).join("planted").exists());
}
