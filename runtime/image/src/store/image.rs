//! Images as callers see them, and their records.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::layer::LayerKey;
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::policy::Verification;

/// The version of image records this program writes.
pub(crate) const VERSION: u32 = 1;

/// An image's id: the digest of its configuration.
pub type ImageId = Digest;

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` of the configuration.
    pub id: ImageId,
    /// Tags that lead here, normalised: `docker.io/library/busybox:latest`; sorted.
    pub repo_tags: Vec<String>,
    /// The digests it was pulled as: `docker.io/library/busybox@sha256:…`; sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the compressed layers and the configuration, as the registry has them.
    pub size: u64,
    /// The image's configuration, as in the OCI image specification.
    pub config: ImageConfiguration,
    pub(crate) record: Arc<ImageRecord>,
}

/// Whom an image's processes run as, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A numeric user.
    Uid(i64),
    /// A name, to be looked up in the image; empty means root.
    Name(String),
}

impl Image {
    pub(crate) fn new(record: ImageRecord) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: record.id.clone(),
            repo_tags: record.repo_tags.clone(),
            repo_digests: record.repo_digests.clone(),
            size: record.size(),
            config: serde_json::from_str(&record.config)?,
            record: Arc::new(record),
        })
    }

    /// The user part of the configuration's `User`, as CRI's `uid` or `username`.
    #[must_use]
    pub fn user(&self) -> ImageUser {
        let config = self.config.config().as_ref();
        let user = config.and_then(|c| c.user().as_deref()).unwrap_or("");
        let user = user.split(':').next().unwrap_or("");
        user.parse().map_or_else(|_| ImageUser::Name(user.to_owned()), ImageUser::Uid)
    }

    /// What was verified of it, as the image policy asked.
    #[must_use]
    pub fn verified(&self) -> &[Verification] {
        &self.record.verified
    }

    /// How many layers it has.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        self.record.layers.len()
    }
}

/// What is recorded of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: ImageId,
    /// Grows with every write: of two records with one tag, the later has it.
    pub(crate) serial: u64,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// The manifest's digest and its very bytes.
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: String,
    /// The configuration's very bytes.
    pub(crate) config: String,
    /// The compressed layers, bottom first.
    pub(crate) blobs: Vec<BlobRecord>,
    /// The unpacked layers, bottom first.
    pub(crate) layers: Vec<LayerKey>,
    #[serde(default)]
    pub(crate) verified: Vec<Verification>,
}

/// A blob as the manifest names it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BlobRecord {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl From<&Descriptor> for BlobRecord {
    fn from(blob: &Descriptor) -> Self {
        let Descriptor { media_type, digest, size } = blob.clone();
        Self { media_type, digest, size }
    }
}

impl ImageRecord {
    fn size(&self) -> u64 {
        let layers: u64 = self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size));
        layers.saturating_add(self.config.len() as u64)
    }
}
