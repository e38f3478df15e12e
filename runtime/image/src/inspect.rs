//! All that is known of an image, for people.

use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Error;
use crate::store::layer::chain_ids;
use crate::store::{Image, Store};

/// An image with what it is made of.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// As in lists.
    pub image: Arc<Image>,
    /// The digest of [`manifest`](Self::manifest).
    pub manifest_digest: Digest,
    /// The manifest's very text.
    pub manifest: String,
    /// The configuration's very text.
    pub config: String,
    /// Bottom first.
    pub layers: Vec<LayerInspection>,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct LayerInspection {
    /// Of the compressed blob.
    pub digest: Digest,
    /// As the manifest has it.
    pub media_type: String,
    /// Of the compressed blob.
    pub size: u64,
    /// Of the tar.
    pub diff_id: Digest,
    /// Of this layer on those below.
    pub chain_id: Digest,
    /// What the store knows the unpacked layer by.
    pub key: String,
    /// Its directory.
    pub path: PathBuf,
    /// Disk space of its files.
    pub unpacked_bytes: u64,
    /// Its inodes.
    pub unpacked_inodes: u64,
    /// How many images have it, this one included.
    pub images: usize,
    /// Its compressed blob is kept.
    pub blob_kept: bool,
}

pub(crate) fn inspect(store: &Store, image: &Arc<Image>) -> Result<Inspection, Error> {
    let record = &image.record;
    let diff_ids = image
        .config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| Digest::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let chain_ids = chain_ids(&diff_ids);
    let used = store.layer_records(image)?;
    let all = store.list();
    let layers = record.blobs.iter().zip(diff_ids).zip(chain_ids).zip(used).map(
        |(((blob, diff_id), chain_id), layer)| LayerInspection {
            digest: blob.digest.clone(),
            media_type: blob.media_type.clone(),
            size: blob.size,
            diff_id,
            chain_id,
            path: store.layout.layer(&layer.key.short()),
            unpacked_bytes: layer.bytes,
            unpacked_inodes: layer.inodes,
            images: all.iter().filter(|image| image.record.layers.contains(&layer.key)).count(),
            key: layer.key.to_string(),
            blob_kept: store.blobs.open(&blob.digest).is_some(),
        },
    );
    Ok(Inspection {
        image: image.clone(),
        manifest_digest: record.manifest_digest.clone(),
        manifest: record.manifest.clone(),
        config: record.config.clone(),
        layers: layers.collect(),
    })
}
