//! Images made in this process: layers, configuration, manifest, index.

use std::io::Write;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tar::{Entry, archive};

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// A bare tar.
    Plain,
    /// gzip.
    #[default]
    Gzip,
    /// Zstandard (OCI only).
    Zstd,
}

/// Whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// OCI image specification.
    #[default]
    Oci,
    /// Docker's image manifest version 2, schema 2.
    Docker,
}

/// Bytes with their digest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and 64 digits.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// These bytes under their own digest.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }
}

/// `sha256:` and the digest of the bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// One layer, packed.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The digest of the bare tar.
    pub diff_id: String,
    /// What a registry holds.
    pub blob: Blob,
    /// How it is packed.
    pub packing: Packing,
}

impl Layer {
    /// A gzip layer of these entries.
    pub fn new(entries: &[Entry]) -> Result<Self> {
        Self::packed(&archive(entries), Packing::default())
    }

    /// A layer of this tar, packed quickly.
    pub fn packed(tar: &[u8], packing: Packing) -> Result<Self> {
        Self::pack(tar, packing, Compression::fast(), 1)
    }

    /// A layer of this tar, packed as thoroughly as the tools that build images do by default.
    pub fn packed_well(tar: &[u8], packing: Packing) -> Result<Self> {
        Self::pack(tar, packing, Compression::new(6), 3)
    }

    fn pack(tar: &[u8], packing: Packing, gzip: Compression, zstd: i32) -> Result<Self> {
        let bytes = match packing {
            Packing::Plain => tar.to_vec(),
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), gzip);
                encoder.write_all(tar)?;
                encoder.finish()?
            }
            Packing::Zstd => zstd::encode_all(tar, zstd)?,
        };
        Ok(Self { diff_id: digest(tar), blob: Blob::new(bytes), packing })
    }
}

/// An image about to be built.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Bottom layer first.
    pub layers: Vec<Layer>,
    /// The `config` object of the image configuration: `User`, `Env`, `Entrypoint` and so on.
    pub config: Value,
    /// Whose media types.
    pub format: Format,
    /// `architecture` of the configuration; empty means this machine's.
    pub architecture: String,
}

/// An image as a registry holds it.
#[derive(Debug, Clone)]
pub struct Built {
    /// The image configuration, whose digest is the image's id.
    pub config: Blob,
    /// The manifest, or the index over several.
    pub manifest: Blob,
    /// The manifest's media type.
    pub media_type: &'static str,
    /// Every blob the manifest names, and the manifests that an index names.
    pub blobs: Vec<Blob>,
    /// Manifests below an index.
    pub children: Vec<Blob>,
}

impl Image {
    /// An image of these layers.
    #[must_use]
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, config: json!({}), ..Self::default() }
    }

    /// With this `config` object.
    #[must_use]
    pub fn config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// With these media types.
    #[must_use]
    pub fn format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// For another architecture.
    #[must_use]
    pub fn architecture(self, architecture: &str) -> Self {
        Self { architecture: architecture.to_owned(), ..self }
    }

    /// The image's blobs and manifest.
    #[must_use]
    pub fn build(&self) -> Built {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = Blob::new(
            json!({
                "architecture": self.arch(), "os": "linux", "config": self.config,
                "created": "2026-01-01T00:00:00Z",
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            })
            .to_string()
            .into_bytes(),
        );
        let layers: Vec<Value> = self.layers.iter().map(|layer| self.descriptor(layer)).collect();
        let (media_type, config_type) = match self.format {
            Format::Oci => (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json"),
            Format::Docker => (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json"),
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": layers,
            "config": descriptor(config_type, &config),
        });
        let blobs = self.layers.iter().map(|layer| layer.blob.clone());
        Built {
            blobs: blobs.chain([config.clone()]).collect(),
            config,
            manifest: Blob::new(manifest.to_string().into_bytes()),
            media_type,
            children: Vec::new(),
        }
    }

    fn arch(&self) -> &str {
        match self.architecture.as_str() {
            "" if cfg!(target_arch = "aarch64") => "arm64",
            "" => "amd64",
            other => other,
        }
    }

    fn descriptor(&self, layer: &Layer) -> Value {
        let media_type = match (self.format, layer.packing) {
            (Format::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Format::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Format::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Format::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Format::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        };
        descriptor(media_type, &layer.blob)
    }
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// An index over images of several platforms; `id` is the configuration that `chosen` has.
#[must_use]
pub fn index(images: &[Image], chosen: &Image) -> Built {
    let built: Vec<Built> = images.iter().map(Image::build).collect();
    let docker = chosen.format == Format::Docker;
    let manifests: Vec<Value> = images.iter().zip(&built).map(platform_descriptor).collect();
    let media_type = if docker { DOCKER_LIST } else { OCI_INDEX };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "manifests": manifests,
    });
    Built {
        config: chosen.build().config,
        manifest: Blob::new(manifest.to_string().into_bytes()),
        media_type,
        blobs: built.iter().flat_map(|image| image.blobs.clone()).collect(),
        children: built.into_iter().map(|image| image.manifest).collect(),
    }
}

fn platform_descriptor((image, built): (&Image, &Built)) -> Value {
    let mut descriptor = descriptor(built.media_type, &built.manifest);
    if let Some(fields) = descriptor.as_object_mut() {
        let platform = json!({"architecture": image.arch(), "os": "linux"});
        fields.insert("platform".into(), platform);
    }
    descriptor
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len()})
}
