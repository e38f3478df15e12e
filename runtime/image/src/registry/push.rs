//! Sending blobs and manifests to a registry.
//!
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push>

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
};
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;

use super::Error;
use super::client::{Answer, Outgoing, Upload, redirected};
use super::source::{Endpoint, PUSH, Source, escaped};
use crate::digest::Digest;
use crate::error::Error as ImageError;
use crate::export::BlobReader;
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::progress::{LayerState, Meter};

/// How a blob came to be in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Present,
    Mounted,
    Sent,
}

/// A repository to push to.
pub(crate) struct Target {
    source: Source,
    chunk: Option<u32>,
}

impl Target {
    /// Of the repository's hosts the first that may be pushed to.
    pub(crate) fn new(source: Source, chunk: Option<u32>) -> Result<Self, Error> {
        if source.able(PUSH).next().is_none() {
            let registry = source.reference.registry().to_owned();
            return Err(Error::NoHost { registry, capability: PUSH });
        }
        Ok(Self { source, chunk })
    }

    fn endpoint(&self) -> Result<&Endpoint, Error> {
        let registry = || self.source.reference.registry().to_owned();
        let first = self.source.able(PUSH).next();
        let none = || Error::NoHost { registry: registry(), capability: PUSH };
        first.map(|(_, endpoint)| endpoint).ok_or_else(none)
    }

    fn scope(&self, siblings: &[String]) -> String {
        let own = format!("repository:{}:pull,push", self.source.reference.repository());
        let others = siblings.iter().map(|sibling| format!(" repository:{sibling}:pull"));
        std::iter::once(own).chain(others).collect()
    }

    /// Sees to it that the registry has a blob. `read` begins it anew for each try.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        siblings: &[String],
        read: impl Fn() -> BlobReader,
        meter: &Arc<Meter>,
    ) -> Result<Found, ImageError> {
        let mut tries = 0;
        loop {
            meter.restart();
            match self.try_blob(blob, siblings, &read, meter).await {
                Err(ImageError::Registry(error))
                    if error.may_pass() && tries < self.source.config.retries =>
                {
                    tracing::debug!(%error, "a blob was not sent; trying again");
                    tokio::time::sleep(super::tries::pause(&self.source.config, tries)).await;
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    async fn try_blob(
        &self,
        blob: &Descriptor,
        siblings: &[String],
        read: &impl Fn() -> BlobReader,
        meter: &Arc<Meter>,
    ) -> Result<Found, ImageError> {
        let endpoint = self.endpoint()?;
        let scope = self.scope(siblings);
        let path = format!("blobs/{}", blob.digest);
        let head = Outgoing::of(Method::HEAD, &self.source.url(&endpoint.host, &path))?;
        if endpoint.client.ask(head, &scope).await?.status == StatusCode::OK {
            return Ok(Found::Present);
        }
        let mut location = None;
        for sibling in siblings {
            let query =
                format!("?mount={}&from={}", escaped(blob.digest.as_str()), escaped(sibling));
            let answer = self.post(endpoint, &query, &scope).await?;
            if answer.status == StatusCode::CREATED {
                return Ok(Found::Mounted);
            }
            location = Some(upload_location(answer).await?);
        }
        let location = match location {
            Some(location) => location,
            None => upload_location(self.post(endpoint, "", &scope).await?).await?,
        };
        meter.comes_from(&endpoint.host.authority);
        match self.chunk {
            None => self.whole(endpoint, blob, location, &scope, read(), meter).await?,
            Some(chunk) => {
                self.in_chunks(endpoint, blob, location, &scope, read(), meter, chunk).await?;
            }
        }
        Ok(Found::Sent)
    }

    async fn post(&self, endpoint: &Endpoint, query: &str, scope: &str) -> Result<Answer, Error> {
        let path = format!("blobs/uploads/{query}");
        let mut post = Outgoing::of(Method::POST, &self.source.url(&endpoint.host, &path))?;
        post.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        endpoint.client.ask(post, scope).await
    }

    /// The blob in one request.
    async fn whole(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        location: Uri,
        scope: &str,
        reader: BlobReader,
        meter: &Arc<Meter>,
    ) -> Result<(), ImageError> {
        let mut put = Outgoing::of(Method::PUT, &with_digest(&location, &blob.digest))?;
        let failure = Arc::default();
        put.upload = Some(upload(reader, meter.clone(), Arc::clone(&failure)));
        put.sent = Some(meter.clone());
        described(&mut put.headers, blob.size);
        let sent = endpoint.client.ask(put, scope).await;
        let taken = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = taken {
            // The registry only saw that the bytes ended.
            return Err(error);
        }
        meter.set(LayerState::Unpacking);
        sent?.good(&[StatusCode::CREATED]).await?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "as `whole`, and the size of a chunk")]
    async fn in_chunks(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        mut location: Uri,
        scope: &str,
        mut reader: BlobReader,
        meter: &Arc<Meter>,
        chunk: u32,
    ) -> Result<(), ImageError> {
        let size = usize::try_from(chunk.max(1)).unwrap_or(usize::MAX);
        let (mut waiting, mut at, mut ended) = (BytesMut::new(), 0_u64, false);
        while !ended {
            match reader.next().await? {
                Some(data) => waiting.extend_from_slice(&data),
                None => ended = true,
            }
            while waiting.len() >= size || ended && !waiting.is_empty() {
                let part = waiting.split_to(size.min(waiting.len())).freeze();
                let end = at + part.len() as u64;
                let mut patch = Outgoing::of(Method::PATCH, &location.to_string())?;
                described(&mut patch.headers, part.len() as u64);
                let range = format!("{at}-{}", end - 1);
                if let Ok(range) = HeaderValue::from_str(&range) {
                    patch.headers.insert(CONTENT_RANGE, range);
                }
                meter.received(part.len());
                patch.body = part;
                let answer = endpoint.client.ask(patch, scope).await?;
                location = upload_location(answer).await?;
                at = end;
            }
        }
        let mut put = Outgoing::of(Method::PUT, &with_digest(&location, &blob.digest))?;
        put.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        endpoint.client.ask(put, scope).await?.good(&[StatusCode::CREATED]).await?;
        Ok(())
    }

    /// The manifest last: whoever sees it finds its blobs.
    pub(crate) async fn manifest(&self, manifest: &Bytes, digest: &Digest) -> Result<(), Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed {
            media_type: Option<String>,
        }
        let endpoint = self.endpoint()?;
        let reference = &self.source.reference;
        let name = reference.tag().unwrap_or_else(|| digest.as_str());
        let url = self.source.url(&endpoint.host, &format!("manifests/{name}"));
        let mut put = Outgoing::of(Method::PUT, &url)?;
        let typed = serde_json::from_slice::<Typed>(manifest).ok().and_then(|t| t.media_type);
        let kind = typed.unwrap_or_else(|| OCI_MANIFEST.to_owned());
        let kind = HeaderValue::from_str(&kind);
        put.headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static(OCI_MANIFEST)));
        put.body = manifest.clone();
        let answer = endpoint.client.ask(put, &self.scope(&[])).await?;
        answer.good(&[StatusCode::CREATED]).await.map(|_| ())
    }
}

fn described(headers: &mut HeaderMap, length: u64) {
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

/// Where the registry wants the bytes.
async fn upload_location(answer: Answer) -> Result<Uri, Error> {
    if answer.status == StatusCode::ACCEPTED && answer.headers.contains_key(LOCATION) {
        return redirected(&answer.uri, &answer.headers);
    }
    let url = answer.body.url().to_owned();
    answer.good(&[StatusCode::ACCEPTED]).await?;
    let reason = "takes an upload without saying where".to_owned();
    Err(Error::BadAnswer { url, reason })
}

fn with_digest(location: &Uri, digest: &Digest) -> String {
    let joint = if location.query().is_some() { '&' } else { '?' };
    format!("{location}{joint}digest={}", escaped(digest.as_str()))
}

/// A reader as a request's body. What goes wrong on our side is told by `failure`.
fn upload(
    reader: BlobReader,
    meter: Arc<Meter>,
    failure: Arc<Mutex<Option<ImageError>>>,
) -> Upload {
    let pieces = stream::unfold(Some(reader), move |reader| {
        let (meter, failure) = (meter.clone(), failure.clone());
        async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(data)) => {
                    meter.received(data.len());
                    Some((Ok(Frame::data(data)), Some(reader)))
                }
                Ok(None) => None,
                Err(error) => {
                    let told = std::io::Error::other("the blob cannot be read");
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Some((Err(told), None))
                }
            }
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}
