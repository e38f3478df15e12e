//! Finding an image's signatures where cosign puts them.
//!
//! In this order, each in the image's own repository:
//!
//! 1. Bundles that refer to the image: the registry's list of referrers, or, where it keeps none,
//!    the index under the tag `sha256-HEX`, by which clients keep that list themselves. See
//!    <https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md>.
//! 2. The older form: the layers of the manifest under the tag `sha256-HEX.sig`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::signature::{Signature, Unfit};
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::manifest::Descriptor;
use crate::registry::Error;
use crate::registry::beside::{Referrer, Repository};

/// No payload and no bundle may be larger. A bundle with a log entry has some 10 KiB.
pub(crate) const MAX_SIGNATURE: u64 = 1 << 20;
/// Further signatures of one image are not looked at.
const MAX_SIGNATURES: usize = 64;
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Clients that keep the list of referrers themselves write a manifest's configuration type
/// there, and the one of cosign's bundles is this.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A place to look at, before anything was fetched from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lead {
    /// A manifest whose only layer may be a bundle.
    Bundle(Digest),
    /// A payload and its signature.
    Simple { payload: Descriptor, signature: String },
}

impl Lead {
    /// What names it in messages.
    pub(crate) fn digest(&self) -> &Digest {
        match self {
            Self::Bundle(digest) => digest,
            Self::Simple { payload, .. } => &payload.digest,
        }
    }
}

/// All places for the image, newer form first. That nothing is there is no error; that the
/// registry does not answer is one: it must not look like a registry without signatures.
pub(crate) async fn leads(from: &impl Repository, image: &Digest) -> Result<Vec<Lead>, Error> {
    let mut leads = bundles(&from.referrers(image, None).await?);
    let tag = format!("{}.sig", image.as_str().replace(':', "-"));
    let older = from.tagged(&tag).await?;
    leads.extend(older.map(|manifest| simples(&manifest.bytes)).unwrap_or_default());
    leads.truncate(MAX_SIGNATURES);
    Ok(leads)
}

/// Fetches what a lead leads to. `None`: it is no signature.
pub(crate) async fn fetch(
    from: &impl Repository,
    lead: &Lead,
) -> Result<Option<Result<Signature, Unfit>>, Error> {
    let fetched = match lead {
        Lead::Simple { payload, signature } => {
            let payload = fetch_blob(from, payload).await?;
            Some(payload.and_then(|payload| Signature::simple(&payload, signature)))
        }
        Lead::Bundle(digest) => match there(from.document(digest).await)? {
            Err(unfit) => Some(Err(unfit)),
            Ok(manifest) => match bundle(&manifest.bytes) {
                None => None,
                Some(blob) => {
                    let json = fetch_blob(from, &blob).await?;
                    Some(json.and_then(|json| Signature::bundle(&json)))
                }
            },
        },
    };
    Ok(fetched)
}

async fn fetch_blob(
    from: &impl Repository,
    blob: &Descriptor,
) -> Result<Result<Vec<u8>, Unfit>, Error> {
    if let Err(unfit) = check_size(blob) {
        return Ok(Err(unfit));
    }
    there(from.blob(blob, MAX_SIGNATURE).await)
}

/// What a list names and is not there is a signature that does not do.
fn there<T>(answer: Result<T, Error>) -> Result<Result<T, Unfit>, Error> {
    match answer {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Err(Unfit::Malformed("it is not there".to_owned())))
        }
        answer => answer.map(Ok),
    }
}

fn check_size(blob: &Descriptor) -> Result<(), Unfit> {
    if blob.size <= MAX_SIGNATURE {
        return Ok(());
    }
    Err(Unfit::Malformed(format!("{} bytes, more than {MAX_SIGNATURE}", blob.size)))
}

/// The entries of a list of referrers that can be bundles; those that say so come first.
pub(crate) fn bundles(referrers: &[Referrer]) -> Vec<Lead> {
    let rank = |entry: &Referrer| match entry.artifact_type.as_str() {
        kind if kind.starts_with(BUNDLE) => Some(0),
        "" | EMPTY => Some(1),
        _ => None,
    };
    let mut entries: Vec<_> =
        referrers.iter().filter_map(|entry| Some((rank(entry)?, entry))).collect();
    entries.sort_by_key(|(rank, _)| *rank);
    entries.into_iter().map(|(_, entry)| Lead::Bundle(entry.descriptor.digest.clone())).collect()
}

/// The signatures in a manifest of the older form.
pub(crate) fn simples(manifest: &[u8]) -> Vec<Lead> {
    let raw: RawManifest = serde_json::from_slice(manifest).unwrap_or_default();
    let layers = raw.layers.iter().filter(|layer| layer.media_type == SIMPLE);
    let lead = |layer: &RawDescriptor| {
        let signature = layer.annotations.as_ref()?.get(ANNOTATION)?.clone();
        Some(Lead::Simple { payload: layer.check()?, signature })
    };
    layers.filter_map(lead).collect()
}

/// The bundle in a manifest, which has no other layer.
pub(crate) fn bundle(manifest: &[u8]) -> Option<Descriptor> {
    let raw: RawManifest = serde_json::from_slice(manifest).unwrap_or_default();
    match raw.layers.as_slice() {
        [layer] if layer.media_type.starts_with(BUNDLE) => layer.check(),
        _ => None,
    }
}

#[derive(Default, Deserialize)]
struct RawManifest {
    #[serde(default)]
    layers: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl RawDescriptor {
    fn check(&self) -> Option<Descriptor> {
        let digest = Digest::parse(&self.digest).ok()?;
        Some(Descriptor { media_type: self.media_type.clone(), digest, size: self.size })
    }
}
