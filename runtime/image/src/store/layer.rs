//! Layers: their keys, their records, and how they come to be.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Store;
use crate::digest::{Digest, InvalidDigest};
use crate::unpack::Facts;

/// The form this version unpacks layers in. Another form is another key.
const FORM: &str = "overlay1";
pub(crate) const RECORD: &str = "layer.json";
/// The marker: what it stands in is on disk.
pub(crate) const DURABLE: &str = "durable";
/// What a repair found damaged, lest a restart takes it for sound.
pub(crate) const DAMAGED: &str = "damaged";
const VERSION: u32 = 1;

/// What a layer is known by: what it holds and the form it was unpacked in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LayerKey {
    /// A layer that stands alone, by its diff-id: the same above any other.
    Diff(Digest),
    /// A layer unpacked with those below it in view, by its chain-id.
    Chain(Digest),
    /// A layer that does not stand alone but was unpacked without regard to others, by its
    /// diff-id: with a patch above it the same above any other.
    Bulk(Digest),
    /// The directories that such a layer's tar left out, as they are below it, by its chain-id.
    Patch(Digest),
}

impl LayerKey {
    /// The name of the layer's directory: with `/fs` 23 characters, so that 120 layers fit one
    /// page of mount options.
    pub(crate) fn short(&self) -> String {
        Digest::of(self.to_string().as_bytes()).hex().chars().take(20).collect()
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diff(digest) => write!(f, "{FORM}/diff/{digest}"),
            Self::Chain(digest) => write!(f, "{FORM}/chain/{digest}"),
            Self::Bulk(digest) => write!(f, "{FORM}/bulk/{digest}"),
            Self::Patch(digest) => write!(f, "{FORM}/patch/{digest}"),
        }
    }
}

/// Why a text is no layer key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidKey {
    #[error("layer key {0:?} has a form or kind this version does not know")]
    Unknown(String),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl TryFrom<String> for LayerKey {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        let mut parts = text.splitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(FORM), Some("diff"), Some(digest)) => Ok(Self::Diff(Digest::parse(digest)?)),
            (Some(FORM), Some("chain"), Some(digest)) => Ok(Self::Chain(Digest::parse(digest)?)),
            (Some(FORM), Some("bulk"), Some(digest)) => Ok(Self::Bulk(Digest::parse(digest)?)),
            (Some(FORM), Some("patch"), Some(digest)) => Ok(Self::Patch(Digest::parse(digest)?)),
            _ => Err(InvalidKey::Unknown(text)),
        }
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> String {
        key.to_string()
    }
}

/// What is recorded of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) key: LayerKey,
    pub(crate) diff_id: Digest,
    /// Disk space of its files, in whole blocks.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// The boot it was unpacked in: under another, only its durable marker vouches for it.
    pub(crate) boot_id: String,
    /// Its root directory has an entry of its own.
    pub(crate) root_entry: bool,
    /// It hides all that is below it.
    pub(crate) opaque_root: bool,
    /// What its tar leaves open: of a [`LayerKey::Bulk`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) open: Option<Facts>,
}

impl LayerRecord {
    pub(crate) fn new(
        key: LayerKey,
        diff_id: &Digest,
        facts: &Facts,
        counts: crate::unpack::Counts,
        boot_id: &str,
    ) -> Self {
        let open = matches!(key, LayerKey::Bulk(_)).then(|| facts.clone());
        Self {
            version: VERSION,
            key,
            open,
            diff_id: diff_id.clone(),
            bytes: counts.bytes,
            inodes: counts.inodes,
            boot_id: boot_id.to_owned(),
            root_entry: facts.root_entry(),
            opaque_root: facts.opaque_root(),
        }
    }
}

/// The chain-ids of a stack of layers, bottom first.
///
/// <https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// A directory being made. Dropped before it is committed, it goes to the trash.
pub(crate) struct Staging {
    store: std::sync::Arc<Store>,
    path: Option<PathBuf>,
    /// Opened before the first write: syncfs on it reports every error since.
    dir: OwnedFd,
}

impl Staging {
    pub(crate) fn new(store: std::sync::Arc<Store>, path: PathBuf, dir: OwnedFd) -> Self {
        Self { store, path: Some(path), dir }
    }

    /// Where the layer's root is made.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path().join("fs")
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// It has its name in the store: no longer to be thrown away.
    pub(crate) fn committed(mut self) -> std::io::Result<OwnedFd> {
        if let Some(path) = self.path.take() {
            self.store.unstage(&path);
        }
        self.dir.try_clone()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            self.store.discard(&path);
            self.store.unstage(&path);
        }
    }
}

/// A claim on a layer: while it lives, the layer stays.
pub(crate) struct LayerHold {
    store: std::sync::Arc<Store>,
    pub(crate) record: std::sync::Arc<LayerRecord>,
}

impl LayerHold {
    /// The claim must have been counted already.
    pub(super) fn counted(
        store: std::sync::Arc<Store>,
        record: std::sync::Arc<LayerRecord>,
    ) -> Self {
        Self { store, record }
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        self.store.unhold(&self.record.key);
    }
}
