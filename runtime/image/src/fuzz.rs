//! What reads foreign bytes, as functions for fuzzing: none may panic, hang or ask for memory
//! without bound, whatever it is given. `fuzz/` has a target for each, and its corpus is run by
//! the tests below.
#![allow(clippy::missing_panics_doc, clippy::panic, reason = "a panic is how a finding is told")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::unpack::listing::{LISTING, Listing};
use crate::unpack::{self, Expected, Limits, ListingWriter, Piece};
use crate::{manifest, reference, registry};

/// Small enough that a bomb is quickly refused.
const LIMITS: Limits =
    Limits { layer_bytes: 8 << 20, layer_entries: 1000, expansion: 1000, path_depth: 16 };

/// Unpacks the bytes as a layer into a new directory in `scratch`, and compares what comes of it
/// with the listing that was written on the way.
pub fn layer(bytes: &[u8], scratch: &Path) {
    let dir = scratch.join("layer");
    let fs = dir.join("fs");
    if std::fs::create_dir_all(&fs).is_err() {
        return;
    }
    let unpacked = unpack_into(bytes, &dir, &fs);
    let damage = unpacked.map(|()| damage(&dir, &fs));
    let removed = std::fs::remove_dir_all(&dir);
    if let Some(damage) = damage {
        assert!(damage.is_empty(), "not as listed: {damage:?}");
    }
    assert!(removed.is_ok(), "{removed:?}");
    let left = std::fs::read_dir(scratch).map_or(0, Iterator::count);
    assert_eq!(left, 0, "something was made outside of the layer");
}

fn unpack_into(bytes: &[u8], dir: &Path, fs: &Path) -> Option<()> {
    let mut writer = ListingWriter::create(&dir.join(LISTING)).ok()?;
    let (sender, pieces) = mpsc::channel(2);
    sender.try_send(Piece::Data(bytes.to_vec().into())).ok()?;
    sender.try_send(Piece::End).ok()?;
    let expected = Expected {
        blob: Digest::of(bytes),
        blob_size: bytes.len() as u64,
        diff_id: Digest::of(bytes),
        limits: LIMITS,
        meter: std::sync::Arc::default(),
    };
    let root: OwnedFd = File::open(fs).ok()?.into();
    match unpack::unpack(pieces, &expected, root, &mut writer, None) {
        // Compressed bytes have another diff-id; what they hold was unpacked all the same.
        Ok(_) | Err(unpack::Error::DiffId { .. }) => writer.finish().ok().map(|_| ()),
        Err(_) => None,
    }
}

fn damage(dir: &Path, fs: &Path) -> Vec<String> {
    let listing = match Listing::read(&dir.join(LISTING)) {
        Ok(listing) => listing,
        Err(error) => return vec![error.to_string()],
    };
    let compared = File::open(fs).and_then(|root| listing.verify(root.as_fd(), &mut |_| true));
    match compared {
        Ok(damage) => damage.iter().map(ToString::to_string).collect(),
        Err(error) => vec![error.to_string()],
    }
}

/// Reads the bytes as a tar, without writing anything.
pub fn tar(bytes: &[u8]) {
    let _ = unpack::each_member(bytes, |_, content| {
        let _ = std::io::copy(content, &mut std::io::sink());
        Ok(())
    });
}

/// Reads the bytes as the records of a listing.
pub fn listing(bytes: &[u8]) {
    let _ = Listing::parse(bytes);
    let _ = Listing::records(bytes);
}

/// Reads the bytes as a manifest or an index, of each media type.
pub fn manifest(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    for media_type in ["", manifest::OCI_INDEX, "application/vnd.oci.image.manifest.v1+json"] {
        if let Ok(manifest::Document::Manifest(manifest)) =
            manifest::parse(&digest, media_type, bytes)
        {
            let _ = manifest::parse_config(&manifest, bytes);
        }
    }
}

/// Reads the bytes as an image's configuration, for a manifest of as many layers as it needs.
pub fn config(bytes: &[u8]) {
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}}"#,
        Digest::of(b"{}")
    );
    let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
    let digest = Digest::of(manifest.as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let parsed = manifest::parse(&digest, media_type, manifest.as_bytes());
    match parsed {
        Ok(manifest::Document::Manifest(manifest)) => {
            let _ = manifest::parse_config(&manifest, bytes);
        }
        other => panic!("the manifest of the fuzz target is none: {other:?}"),
    }
}

/// Reads the bytes as a reference; one that is taken must be taken again as it is written.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Digest::parse(text);
    if let Ok(reference) = reference::Reference::parse(text) {
        let again = reference::Reference::parse(&reference.to_string());
        assert_eq!(again.ok(), Some(reference), "{text:?}");
    }
}

/// Reads the bytes as a `hosts.toml`.
pub fn hosts(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        registry::parse_hosts(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each file of a target's corpus; there must be some.
    fn corpus(target: &str, run: impl Fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            run(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", dir.display());
    }

    #[test]
    fn the_corpus_of_each_target_passes() {
        let scratch = tempfile::tempdir().unwrap();
        corpus("layer", |bytes| layer(bytes, scratch.path()));
        corpus("tar", tar);
        corpus("listing", listing);
        corpus("manifest", manifest);
        corpus("config", config);
        corpus("reference", reference);
        corpus("hosts", hosts);
    }
}
