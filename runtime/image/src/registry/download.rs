//! A blob as a stream that outlives its connections: it goes on where the last one broke, on
//! the same host or the next; or in several chunks at once.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt;
use hyper::StatusCode;
use hyper::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use tokio::sync::OwnedSemaphorePermit;

use super::Error;
use super::body::Body;
use super::client::Outgoing;
use super::source::{Endpoint, PULL, Source, announced};
use super::tries::Tries;
use crate::layers::intake::{Closed, Intake};
use crate::manifest::Descriptor;

/// A connection that brought so much has earned further tries.
const PROGRESS: u64 = 1 << 20;

/// A body together with where it stands in the blob.
struct Opened {
    body: Body,
    /// The number of its first byte.
    at: u64,
    /// It goes up to the blob's end, whatever was asked for.
    whole: bool,
    etag: Option<(usize, HeaderValue)>,
}

/// Why a download ends before its time.
enum Stop {
    /// Nobody takes the bytes any more, and says why elsewhere.
    Closed,
    Failed(Error),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

enum Chunk {
    Here(Vec<Bytes>, Option<OwnedSemaphorePermit>),
    /// The host sends whole blobs only.
    NoRanges,
}

impl Source {
    /// Brings the bytes of `range` to `to`, in order. A host that knows no ranges makes it all
    /// bytes up to the blob's end. Digest and decoding are for the reader.
    pub(crate) async fn download(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
        to: &mut Intake,
    ) -> Result<(), Error> {
        let mut at = range.start;
        if let Some(chunks) = self.config.chunks.filter(|c| range.end - at > 2 * c.size()) {
            at = match self.in_chunks(blob, range.clone(), chunks, to).await {
                Ok(at) => at,
                Err(Stop::Closed) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
            };
        }
        match self.in_sequence(blob, at..range.end, to).await {
            Ok(()) | Err(Stop::Closed) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn in_sequence(
        &self,
        blob: &Descriptor,
        mut range: Range<u64>,
        to: &mut Intake,
    ) -> Result<(), Stop> {
        let mut tries = Tries::new(self, PULL, self.distrusted(&blob.digest));
        let mut etag = None;
        // An empty blob is asked for, too: it may be a lie.
        let mut first = true;
        while range.start < range.end || first && blob.size == 0 {
            first = false;
            let Some(endpoint) = tries.next().await else { return Err(tries.give_up().into()) };
            let index = tries.asked().unwrap_or_default();
            self.took_from(&blob.digest, index);
            let opened = match self.open(endpoint, index, blob, &range, etag.take()).await {
                Ok(opened) => opened,
                Err(error) => {
                    tries.failed(error);
                    continue;
                }
            };
            if opened.whole {
                range.end = blob.size;
            }
            etag.clone_from(&opened.etag);
            let began = range.start;
            match self.drain(opened, &mut range, blob, to).await {
                Ok(()) => tries.served(),
                Err(Stop::Failed(error)) => {
                    if range.start - began >= PROGRESS {
                        tries.served();
                    }
                    tries.failed(error);
                }
                Err(Stop::Closed) => return Err(Stop::Closed),
            }
        }
        Ok(())
    }

    /// Passes a body on, moving the range's start along with it.
    async fn drain(
        &self,
        mut opened: Opened,
        range: &mut Range<u64>,
        blob: &Descriptor,
        to: &mut Intake,
    ) -> Result<(), Stop> {
        to.meter.comes_from(opened.body.host());
        // What was had before, and comes again from a host that knows no ranges.
        let mut surplus = range.start - opened.at;
        let url = opened.body.url().to_owned();
        while let Some(mut data) = opened.body.next().await? {
            let skip = surplus.min(data.len() as u64);
            surplus -= skip;
            let _ = data.split_to(usize::try_from(skip).unwrap_or(usize::MAX));
            let left = range.end - range.start;
            if data.len() as u64 > left {
                let reason = format!("more than the {} bytes that the manifest says", blob.size);
                return Err(Error::BadAnswer { url, reason }.into());
            }
            range.start += data.len() as u64;
            to.give(data).await?;
        }
        if range.start < range.end {
            let (at, size) = (range.start, blob.size);
            let reason = format!("ended after {at} of {size} bytes");
            return Err(Error::Transport { url, reason }.into());
        }
        Ok(())
    }

    /// Asks one host for the range. One that knows no ranges sends the whole blob.
    async fn open(
        &self,
        endpoint: &Endpoint,
        index: usize,
        blob: &Descriptor,
        range: &Range<u64>,
        etag: Option<(usize, HeaderValue)>,
    ) -> Result<Opened, Error> {
        let url = self.url(&endpoint.host, &format!("blobs/{}", blob.digest));
        let mut outgoing = Outgoing::get(&url)?;
        if range.start > 0 || range.end < blob.size {
            let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            if let Ok(value) = HeaderValue::from_str(&text) {
                outgoing.headers.insert(RANGE, value);
            }
            if let Some((_, etag)) = etag.filter(|(from, _)| *from == index) {
                outgoing.headers.insert(IF_RANGE, etag);
            }
        }
        let answer = endpoint.client.ask(outgoing, &self.scope()).await?;
        let (status, headers) = (answer.status, answer.headers.clone());
        let body = answer.good(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await?;
        let etag = strong_etag(&headers).map(|etag| (index, etag));
        if status == StatusCode::OK {
            announced(&headers, body.url(), blob.size)?;
            return Ok(Opened { body, at: 0, whole: true, etag });
        }
        let wanted = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), blob.size);
        let got = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if got != wanted && got != wanted.replace(&format!("/{}", blob.size), "/*") {
            let url = body.url().to_owned();
            let reason = format!("answers with {got:?} where {wanted:?} was asked for");
            return Err(Error::BadAnswer { url, reason });
        }
        Ok(Opened { body, at: range.start, whole: false, etag })
    }

    /// Several ranges at once, given on in order. Returns where it ended: at the range's end, or
    /// before that where a host knows no ranges.
    async fn in_chunks(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
        chunks: super::Chunks,
        to: &mut Intake,
    ) -> Result<u64, Stop> {
        let mut at = range.start;
        let starts = (range.start..range.end).step_by(chunks.step());
        let part = |start: u64| start..start.saturating_add(chunks.size()).min(range.end);
        let fetches = starts.map(|start| self.chunk(blob, part(start), chunks.count()));
        let mut fetched = futures_util::stream::iter(fetches).buffered(chunks.count());
        while let Some(chunk) = fetched.next().await {
            let Chunk::Here(pieces, _room) = chunk? else { return Ok(at) };
            for piece in pieces {
                at += piece.len() as u64;
                to.give(piece).await?;
            }
        }
        Ok(at)
    }

    async fn chunk(
        &self,
        blob: &Descriptor,
        range: Range<u64>,
        limit: usize,
    ) -> Result<Chunk, Error> {
        let room = self.net.chunk(limit).await;
        let mut tries = Tries::new(self, PULL, self.distrusted(&blob.digest));
        while let Some(endpoint) = tries.next().await {
            let index = tries.asked().unwrap_or_default();
            self.took_from(&blob.digest, index);
            match self.collect(endpoint, index, blob, &range).await {
                Ok(Some(pieces)) => {
                    tries.served();
                    return Ok(Chunk::Here(pieces, room));
                }
                Ok(None) => return Ok(Chunk::NoRanges),
                Err(error) => tries.failed(error),
            }
        }
        Err(tries.give_up())
    }

    async fn collect(
        &self,
        endpoint: &Endpoint,
        index: usize,
        blob: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<Vec<Bytes>>, Error> {
        let mut opened = self.open(endpoint, index, blob, range, None).await?;
        if opened.whole {
            return Ok(None);
        }
        let (mut pieces, mut left) = (Vec::new(), range.end - range.start);
        let url = opened.body.url().to_owned();
        while let Some(data) = opened.body.next().await? {
            let Some(rest) = left.checked_sub(data.len() as u64) else {
                let reason = "more bytes than the range that was asked for".to_owned();
                return Err(Error::BadAnswer { url, reason });
            };
            left = rest;
            pieces.push(data);
        }
        if left > 0 {
            let reason = format!("ended {left} bytes before the range's end");
            return Err(Error::Transport { url, reason });
        }
        Ok(Some(pieces))
    }
}

/// A weak one promises the meaning, not the bytes.
fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/")).cloned()
}
