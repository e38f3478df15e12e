use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::digest::Digest;
use crate::unpack::{Expected, Limits, Piece, unpack};

mod damage;
#[path = "../../../tests/it/tarball.rs"]
#[expect(dead_code, reason = "not all of it is needed here")]
mod tarball;
use tarball::{Fields, Tarball};

/// A layer on disk with its listing.
struct Layer(TempDir);

impl Layer {
    fn unpack(tar: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = Self(dir);
        std::fs::create_dir(layer.fs()).unwrap();
        std::fs::set_permissions(layer.fs(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut writer = ListingWriter::create(&layer.listing()).unwrap();
        let (sender, pieces) = tokio::sync::mpsc::channel(2);
        sender.try_send(Piece::Data(tar.to_vec().into())).ok().unwrap();
        sender.try_send(Piece::End).ok().unwrap();
        let digest = Digest::of(tar);
        let blob_size = tar.len() as u64;
        let (diff_id, meter) = (digest.clone(), std::sync::Arc::default());
        let limits = Limits::default();
        let expected = Expected { blob: digest, blob_size, diff_id, limits, meter };
        let root = std::fs::File::open(layer.fs()).unwrap();
        unpack(pieces, &expected, root.into(), &mut writer, None).unwrap();
        writer.finish().unwrap();
        layer
    }

    fn fs(&self) -> PathBuf {
        self.0.path().join("fs")
    }

    fn listing(&self) -> PathBuf {
        self.0.path().join(LISTING)
    }

    fn read(&self) -> Listing {
        Listing::read(&self.listing()).unwrap()
    }

    fn damage(&self) -> Vec<String> {
        let root = std::fs::File::open(self.fs()).unwrap();
        let damage = self.read().verify(root.as_fd(), &mut |_| true).unwrap();
        damage.iter().map(Damage::to_string).collect()
    }
}

/// One of everything.
fn all_kinds() -> Vec<u8> {
    let device = Fields { kind: b'3', name: b"dev/c", device: (1, 3), ..Fields::default() };
    let owned =
        Fields { name: b"etc/owned", uid: 70_000, gid: 5, mode: 0o4755, ..Fields::default() };
    Tarball::new()
        .dir("etc/", 0o750)
        .file("etc/a", 0o644, b"some content")
        .file("etc/b", 0o600, &vec![7; 600_000])
        .file("etc/empty", 0o644, b"")
        .entry(&owned, b"x")
        .hard_link("etc/a2", "etc/a")
        .symlink("etc/l", "../nowhere")
        .entry(&device, b"")
        .entry(&Fields { kind: b'4', name: b"dev/b", device: (7, 300), ..Fields::default() }, b"")
        .entry(&Fields { kind: b'6', name: b"dev/p", mode: 0o622, ..Fields::default() }, b"")
        .pax(&[("SCHILY.xattr.user.k", b"v"), ("mtime", b"-5.25")])
        .file("etc/x", 0o644, b"x")
        .pax(&[("SCHILY.xattr.trusted.d", b"1")])
        .dir("attr/", 0o700)
        .file("gone/.wh.file", 0, b"")
        .file("opq/.wh..wh..opq", 0, b"")
        .finish()
}

#[test]
fn what_was_unpacked_is_as_listed() {
    let layer = Layer::unpack(&all_kinds());
    assert_eq!(layer.damage(), [""; 0]);
    let listing = layer.read();
    let paths = listing.paths.keys().map(|p| String::from_utf8_lossy(p).into_owned());
    let wanted = "|attr|dev|dev/b|dev/c|dev/p|etc|etc/a|etc/a2|etc/b|etc/empty|etc/l|etc/owned\
                  |etc/x|gone|gone/file|opq";
    assert_eq!(paths.collect::<Vec<_>>().join("|"), wanted);
    assert_eq!(listing.paths[&b"etc/a"[..]], listing.paths[&b"etc/a2"[..]]);
    let node = |path: &str| &listing.nodes[listing.paths[path.as_bytes()]];
    assert_eq!(node("etc/x").0.mtime, (-6, 750_000_000));
    assert_eq!(node("etc/x").0.xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
    assert_eq!(node("etc/owned").0.uid, 70_000);
    assert_eq!(node("gone/file").1, Body::Char(0));
    assert_eq!(node("gone").1, Body::Directory(Marks::ORIGIN));
    assert_eq!(node("opq").1, Body::Directory(Marks::OPAQUE));
    let b = Body::File { size: 600_000, checksum: Sum::of(&vec![7; 600_000]) };
    assert_eq!(node("etc/b").1, b);
}

#[test]
fn later_entries_take_the_place_of_earlier_ones_in_the_listing_too() {
    let tar = Tarball::new()
        .dir("d/", 0o755)
        .file("d/f", 0o644, b"one")
        .file("d/f", 0o600, b"other")
        .file("d-x", 0o644, b"sorts between d and d/f")
        .hard_link("d/h", "d/f")
        .file("d/f", 0o644, b"third; h keeps the second")
        .file("file", 0o644, b"becomes a directory")
        .dir("file/", 0o700)
        .file("file/in", 0o644, b"")
        .dir("tree/sub/", 0o700)
        .file("tree/sub/f", 0o644, b"")
        .file("tree", 0o644, b"took the place of the tree")
        .file(".wh.back", 0, b"")
        .dir("back/", 0o711)
        .file("late/f", 0o644, b"")
        .dir("late/", 0o700)
        .pax(&[("SCHILY.xattr.user.k", b"v")])
        .dir("d/", 0o755)
        .dir("d/", 0o711)
        .dir("./", 0o711);
    let layer = Layer::unpack(&tar.finish());
    assert_eq!(layer.damage(), [""; 0]);
    let wanted = "|back|d|d-x|d/f|d/h|file|file/in|late|late/f|tree";
    let listing = layer.read();
    let paths = listing.paths.keys().map(|p| String::from_utf8_lossy(p).into_owned());
    assert_eq!(paths.collect::<Vec<_>>().join("|"), wanted);
}

#[test]
fn a_damaged_listing_is_known_to_be_one() {
    let layer = Layer::unpack(&all_kinds());
    let whole = std::fs::read(layer.listing()).unwrap();
    for cut in 0..whole.len() {
        assert!(Listing::parse(&whole[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        assert!(Listing::parse(&flipped).is_err(), "flipped at {at}");
        // Also where the checksum would not tell: no panic, and no endless work.
        let _ = Listing::records(&flipped[..flipped.len() - CHECKSUM]);
    }
    assert!(Listing::parse(&[&whole[..], b"x"].concat()).is_err());
}

#[test]
fn a_comparison_can_be_ended() {
    let layer = Layer::unpack(&all_kinds());
    let root = std::fs::File::open(layer.fs()).unwrap();
    let mut read = 0;
    let mut go_on = |bytes| {
        read += bytes;
        read < 100_000
    };
    let ended = layer.read().verify(root.as_fd(), &mut go_on).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::Interrupted);
}

#[test]
fn a_listing_is_small() {
    let mut tar = Tarball::new();
    for i in 0..1000 {
        tar = tar.file(&format!("usr/share/some/where/file-{i}"), 0o644, b"content");
    }
    let layer = Layer::unpack(&tar.finish());
    let size = std::fs::metadata(layer.listing()).unwrap().len();
    assert!(size < 32_000, "{size}");
    assert_eq!(layer.damage(), [""; 0]);
}
