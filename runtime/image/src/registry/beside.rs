//! What a signature policy fetches beside an image, from the same hosts with the same
//! credentials.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Error, Fetched, Source};
use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::manifest::{Descriptor, MAX_MANIFEST};

/// A repository, as far as a policy needs it. A trait, so that a policy is tested without one.
pub(crate) trait Repository: Send + Sync {
    /// The manifest or index of this tag, whatever its media type; `None` if there is none.
    fn tagged(&self, tag: &str) -> impl Future<Output = Result<Option<Fetched>, Error>> + Send;

    /// The manifest or index of this digest, verified.
    fn document(&self, digest: &Digest) -> impl Future<Output = Result<Fetched, Error>> + Send;

    /// A blob, verified; one that is announced as larger than `limit` is refused.
    fn blob(
        &self,
        blob: &Descriptor,
        limit: u64,
    ) -> impl Future<Output = Result<Vec<u8>, Error>> + Send;

    /// What refers to the document of this digest: by the referrers API, or where the registry
    /// has none, by the index with the tag `sha256-HEX`. Empty if nothing does. With
    /// `artifact_type`, only referrers of that type.
    ///
    /// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>
    fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> impl Future<Output = Result<Vec<Referrer>, Error>> + Send;
}

/// A document that names another as its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Referrer {
    pub(crate) descriptor: Descriptor,
    pub(crate) artifact_type: String,
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    manifests: Vec<RawReferrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawReferrer {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Repository for Source {
    async fn tagged(&self, tag: &str) -> Result<Option<Fetched>, Error> {
        found(self.by_tag(tag).await)
    }

    async fn document(&self, digest: &Digest) -> Result<Fetched, Error> {
        self.manifest(digest).await
    }

    async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
        if blob.size > limit {
            let reason = format!("{} bytes, where at most {limit} are taken", blob.size);
            return Err(Error::BadAnswer { url: blob.digest.to_string(), reason });
        }
        self.small_blob(blob).await
    }

    async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Referrer>, Error> {
        let listed = match found(self.referrers_index(digest, artifact_type).await)? {
            Some(listed) => Some(listed),
            None => self.tagged(&digest.as_str().replace(':', "-")).await?,
        };
        let Some(listed) = listed else { return Ok(Vec::new()) };
        let mut referrers = parse(&listed.bytes).map_err(|e| Error::BadAnswer {
            url: format!("referrers of {digest}"),
            reason: e.to_string(),
        })?;
        // The registry may or may not have filtered.
        referrers.retain(|r| artifact_type.is_none_or(|wanted| r.artifact_type == wanted));
        Ok(referrers)
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Referrer>, serde_json::Error> {
    let index: RawIndex = serde_json::from_slice(bytes)?;
    let referrer = |raw: RawReferrer| Referrer {
        descriptor: Descriptor { media_type: raw.media_type, digest: raw.digest, size: raw.size },
        artifact_type: raw.artifact_type,
        annotations: raw.annotations.unwrap_or_default(),
    };
    Ok(index
        .manifests
        .into_iter()
        .map(referrer)
        .filter(|r| r.descriptor.size <= MAX_MANIFEST)
        .collect())
}

/// What is not there is no error here.
fn found(answer: Result<Fetched, Error>) -> Result<Option<Fetched>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
