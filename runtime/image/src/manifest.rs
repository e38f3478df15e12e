//! Manifests, indexes and image configurations: foreign JSON in, checked values out.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::{Digest, InvalidDigest};
use crate::platform::Platform;

/// No manifest or index may be larger (distribution's own limit).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// No image configuration may be larger.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
const MAX_LAYERS: usize = 512;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What the registry is asked for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// What is wrong with a manifest or configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the JSON it should be.
    #[error("{what} {digest} is not valid")]
    Json {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A media type that Berth does not run.
    #[error("manifest {digest} has media type {media_type:?}, which is {why}")]
    MediaType {
        /// The manifest's digest.
        digest: Digest,
        /// The type it claims.
        media_type: String,
        /// Why it cannot be used.
        why: &'static str,
    },
    /// A descriptor's digest is malformed.
    #[error("manifest {digest} names a blob badly")]
    Descriptor {
        /// The manifest's digest.
        digest: Digest,
        /// Which text.
        source: InvalidDigest,
    },
    /// No entry of the index fits this machine.
    #[error("index {digest} has no image for {host} (it has: {offers})")]
    NoPlatform {
        /// The index's digest.
        digest: Digest,
        /// This machine.
        host: String,
        /// What the index offers.
        offers: String,
    },
    /// Indexes within indexes, too deep.
    #[error("index {digest} is nested too deeply")]
    TooDeep {
        /// The innermost index looked at.
        digest: Digest,
    },
    /// A layer that must come from elsewhere.
    #[error("layer {layer} is a foreign layer ({media_type}), which Berth does not fetch")]
    Foreign {
        /// The layer's digest.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer of an unknown kind.
    #[error("layer {layer} has media type {media_type:?}, which is no layer Berth can unpack")]
    LayerType {
        /// The layer's digest.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The parts of an image contradict each other.
    #[error("manifest {digest}: {reason}")]
    Inconsistent {
        /// The manifest's digest.
        digest: Digest,
        /// How.
        reason: String,
    },
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image manifest whose media types have been checked.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Either kind of document behind a reference.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<IndexEntry>),
}

/// One image of an index.
#[derive(Debug, Clone)]
pub(crate) struct IndexEntry {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl RawDescriptor {
    fn check(&self, within: &Digest) -> Result<Descriptor, Error> {
        let digest = Digest::parse(&self.digest)
            .map_err(|source| Error::Descriptor { digest: within.clone(), source })?;
        Ok(Descriptor { media_type: self.media_type.clone(), digest, size: self.size })
    }
}

fn json<T: DeserializeOwned>(
    what: &'static str,
    digest: &Digest,
    bytes: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        what,
        digest: digest.clone(),
        source,
    })
}

/// Reads a manifest or an index. `content_type` is the registry's word, used where the document
/// does not say itself what it is.
pub(crate) fn parse(digest: &Digest, content_type: &str, bytes: &[u8]) -> Result<Document, Error> {
    let raw: RawDocument = json("manifest", digest, bytes)?;
    let media_type = raw.media_type.clone().unwrap_or_else(|| content_type.to_owned());
    let refuse =
        |why| Error::MediaType { digest: digest.clone(), media_type: media_type.clone(), why };
    if raw.schema_version == Some(1)
        || media_type.contains("manifest.v1+") && media_type.contains("docker")
    {
        return Err(refuse("the docker schema 1 format, withdrawn in 2019: push the image again"));
    }
    let is_index = match media_type.as_str() {
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        OCI_INDEX | DOCKER_LIST => true,
        // Old pushers leave the type out and registries answer with a generic one.
        _ if raw.media_type.is_none() && raw.manifests.is_some() => true,
        _ if raw.media_type.is_none() && raw.layers.is_some() => false,
        _ => return Err(refuse("no image manifest or index")),
    };
    match (is_index, &raw.manifests, &raw.layers, &raw.config) {
        (true, Some(entries), None, _) => parse_index(digest, entries).map(Document::Index),
        (false, None, Some(layers), Some(config)) => {
            let artifact = raw.artifact_type.is_some() || !is_image_config(&config.media_type);
            if artifact {
                return Err(Error::MediaType {
                    digest: digest.clone(),
                    media_type: raw.artifact_type.unwrap_or_else(|| config.media_type.clone()),
                    why: "an artifact, not a container image",
                });
            }
            parse_manifest(digest, config, layers).map(Document::Manifest)
        }
        // The same bytes must not read as a manifest to one and as an index to another
        // (CVE-2021-41190).
        _ => Err(refuse("contradicted by the document's fields")),
    }
}

fn parse_index(digest: &Digest, entries: &[RawDescriptor]) -> Result<Vec<IndexEntry>, Error> {
    entries
        .iter()
        .map(|raw| {
            Ok(IndexEntry {
                descriptor: raw.check(digest)?,
                platform: raw.platform.clone(),
                annotations: raw.annotations.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | ""
    )
}

fn parse_manifest(
    digest: &Digest,
    config: &RawDescriptor,
    layers: &[RawDescriptor],
) -> Result<Manifest, Error> {
    let inconsistent = |reason| Error::Inconsistent { digest: digest.clone(), reason };
    if layers.len() > MAX_LAYERS {
        return Err(inconsistent(format!("{} layers, more than {MAX_LAYERS}", layers.len())));
    }
    if config.size > MAX_CONFIG {
        let size = config.size;
        return Err(inconsistent(format!(
            "a configuration of {size} bytes, more than {MAX_CONFIG}"
        )));
    }
    let layers = layers
        .iter()
        .map(|raw| raw.check(digest).and_then(check_layer_type))
        .collect::<Result<_, _>>()?;
    Ok(Manifest { digest: digest.clone(), config: config.check(digest)?, layers })
}

/// What a layer's media type may begin with; what follows says how it is packed, which its bytes
/// say as well.
const LAYER_TYPES: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    // Their makers do not want them passed on; a registry that has them serves them like others.
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
];

fn check_layer_type(layer: Descriptor) -> Result<Descriptor, Error> {
    let Descriptor { media_type, digest, .. } = &layer;
    // These are to be had from other places (`urls`) than the registry, which Berth does not ask.
    if media_type.contains("foreign") {
        return Err(Error::Foreign { layer: digest.clone(), media_type: media_type.clone() });
    }
    let known = LAYER_TYPES.iter().any(|known| media_type.starts_with(known));
    if !known || media_type.contains("encrypted") {
        return Err(Error::LayerType { layer: digest.clone(), media_type: media_type.clone() });
    }
    Ok(layer)
}

/// The entry of an index that fits this machine best; of equals the first.
pub(crate) fn choose<'a>(
    digest: &Digest,
    entries: &'a [IndexEntry],
    host: &Platform,
) -> Result<&'a IndexEntry, Error> {
    let mut best: Option<(u32, &IndexEntry)> = None;
    for entry in entries.iter().filter(|e| is_document(&e.descriptor.media_type)) {
        // An entry without a platform is taken when nothing better is there.
        let rank = entry.platform.as_ref().map_or(Some(0), |p| host.rank(p));
        if let Some(rank) = rank
            && best.is_none_or(|(top, _)| rank > top)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| Error::NoPlatform {
        digest: digest.clone(),
        host: host.to_string(),
        offers: entries.iter().map(offer).collect::<Vec<_>>().join(", "),
    })
}

fn is_document(media_type: &str) -> bool {
    matches!(media_type, "" | OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST)
}

fn offer(entry: &IndexEntry) -> String {
    entry.platform.as_ref().map_or_else(|| "no platform".to_owned(), Platform::to_string)
}

/// Reads an image configuration and returns it with its layers' diff-ids, which must be as many
/// as the manifest has layers.
pub(crate) fn parse_config(
    manifest: &Manifest,
    bytes: &[u8],
) -> Result<(ImageConfiguration, Vec<Digest>), Error> {
    let config: ImageConfiguration = json("image configuration", &manifest.config.digest, bytes)?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| Digest::parse(text))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Descriptor { digest: manifest.config.digest.clone(), source })?;
    if diff_ids.len() == manifest.layers.len() {
        return Ok((config, diff_ids));
    }
    let (layers, ids) = (manifest.layers.len(), diff_ids.len());
    let reason = format!("{layers} layers, but its configuration lists {ids} diff-ids");
    Err(Error::Inconsistent { digest: manifest.digest.clone(), reason })
}

/// A document's bytes as text, to be kept as they are.
pub(crate) fn text(digest: &Digest, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|_| Error::Inconsistent {
        digest: digest.clone(),
        reason: "is not UTF-8".to_owned(),
    })
}
