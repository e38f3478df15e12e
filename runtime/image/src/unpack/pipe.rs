//! The bounded channels between the steps of one layer's pass.
//!
//! ```text
//! async receiver --Piece--> [blob hash, inflate] --chunks--> [tar hash, untar]
//!                                                <-- empty --
//! ```
//!
//! Two threads to a layer: what they do costs about the same. The chunks go round, so that no
//! memory is asked for or touched anew while a layer streams by.

use std::cell::Cell;
use std::io::{BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::decompress::Inflater;
use super::{Counts, Error, Expected, Facts, Piece};
use crate::digest::Hasher;
use crate::progress::Meter;

const CHUNK: usize = 256 << 10;
/// Chunks that go round between inflating and writing.
const CHUNKS: usize = 6;

/// A buffer of fixed length and how much of it is filled: nothing, at the stream's end.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    filled: usize,
}

/// The inflating side of the round.
struct Lanes {
    full: SyncSender<Chunk>,
    empty: Receiver<Chunk>,
}

/// Whether the blob was read to its end, and so had the right length and digest.
struct Verified(bool);

type Applied = Result<((Facts, Counts), ChunkReader), Error>;

/// Runs both steps and verifies both digests.
pub(super) fn run(
    pieces: mpsc::Receiver<Piece>,
    expected: &Expected,
    apply: impl FnOnce(ChunkReader) -> Applied,
) -> Result<(Facts, Counts), Error> {
    let (full, chunks) = sync_channel(CHUNKS);
    let (returns, empty) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        // It has room for all.
        let _ = returns.send(Chunk { bytes: vec![0; CHUNK], filled: 0 });
    }
    let lanes = Lanes { full, empty };
    std::thread::scope(|scope| {
        let inflater = std::thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || inflate(pieces, expected, &lanes))
            .map_err(|e| Error::Thread(e.to_string()))?;
        let applied = apply(ChunkReader::new(chunks, returns, expected));
        let inflated =
            inflater.join().map_err(|_| Error::Thread("inflating panicked".to_owned()))?;
        finish(applied, inflated, expected)
    })
}

/// The first cause speaks: a broken stream before what the tar reader made of it.
fn finish(
    applied: Applied,
    inflated: Result<Verified, Error>,
    expected: &Expected,
) -> Result<(Facts, Counts), Error> {
    match (applied, inflated) {
        (_, Err(cause)) => Err(cause),
        (Err(error), Ok(_)) => Err(error),
        (Ok(_), Ok(Verified(false))) => {
            Err(Error::Thread("the blob was not read whole".to_owned()))
        }
        (Ok((result, reader)), Ok(Verified(true))) => {
            let actual = reader.finish();
            if actual == expected.diff_id {
                return Ok(result);
            }
            Err(Error::DiffId { wanted: expected.diff_id.clone(), actual })
        }
    }
}

fn inflate(
    pieces: mpsc::Receiver<Piece>,
    expected: &Expected,
    lanes: &Lanes,
) -> Result<Verified, Error> {
    let outcome = Cell::new(None);
    let blob = BlobReader {
        pieces,
        current: Bytes::new(),
        hasher: Some(expected.blob.hasher()),
        received: 0,
        expected,
        outcome: &outcome,
    };
    let result = inflate_all(blob, expected, lanes);
    match outcome.take() {
        Some(Err(cause)) => Err(cause),
        Some(Ok(())) => result.map(|()| Verified(true)),
        // The reader went away before the blob's end; its own error says why.
        None => result.map(|()| Verified(false)),
    }
}

fn inflate_all(blob: BlobReader<'_>, expected: &Expected, lanes: &Lanes) -> Result<(), Error> {
    let mut plain =
        Inflater::open(blob).map_err(|source| Error::Inflate { format: "none", source })?;
    let mut total = 0_u64;
    // When the other side has gone away, its own error says why.
    while let Ok(mut chunk) = lanes.empty.recv() {
        let filled = plain.fill(&mut chunk.bytes);
        chunk.filled =
            filled.map_err(|source| Error::Inflate { format: plain.format(), source })?;
        total += chunk.filled as u64;
        expected.limits.check_size(plain.raw().received, total)?;
        let end = chunk.filled == 0;
        if lanes.full.send(chunk).is_err() || end {
            break;
        }
    }
    Ok(())
}

/// The blob as a reader: hashes what passes and verifies digest and length at the end.
struct BlobReader<'a> {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    hasher: Option<Hasher>,
    received: u64,
    expected: &'a Expected,
    /// Set once, when the blob ended well or badly.
    outcome: &'a Cell<Option<Result<(), Error>>>,
}

impl BlobReader<'_> {
    fn refill(&mut self) -> std::io::Result<()> {
        while self.current.is_empty() && self.hasher.is_some() {
            let verdict = match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.take(data),
                Some(Piece::End) => self.end().map(|()| self.outcome.set(Some(Ok(())))),
                None => Err(Error::Cancelled),
            };
            if let Err(error) = verdict {
                self.outcome.set(Some(Err(error)));
                return Err(std::io::Error::other("the blob is broken"));
            }
        }
        Ok(())
    }

    fn take(&mut self, data: Bytes) -> Result<(), Error> {
        self.received = self.received.saturating_add(data.len() as u64);
        let wanted = self.expected.blob_size;
        if self.received > wanted {
            return Err(Error::BlobSize { wanted, actual: self.received });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&data);
        }
        self.current = data;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let wanted = self.expected.blob_size;
        if self.received != wanted {
            return Err(Error::BlobSize { wanted, actual: self.received });
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(actual) if actual != self.expected.blob => {
                Err(Error::BlobDigest { wanted: self.expected.blob.clone(), actual })
            }
            _ => Ok(()),
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.refill()?;
        let count = buffer.len().min(self.current.len());
        self.current.split_to(count).copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

impl BufRead for BlobReader<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.refill()?;
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }
}

/// The inflated stream as a reader: hashes what passes.
pub(super) struct ChunkReader {
    chunks: Receiver<Chunk>,
    returns: SyncSender<Chunk>,
    current: Chunk,
    at: usize,
    hasher: Hasher,
    ended: bool,
    meter: Arc<Meter>,
}

impl ChunkReader {
    fn new(chunks: Receiver<Chunk>, returns: SyncSender<Chunk>, expected: &Expected) -> Self {
        let (hasher, meter) = (expected.diff_id.hasher(), expected.meter.clone());
        let current = Chunk::default();
        Self { chunks, returns, current, at: 0, hasher, ended: false, meter }
    }

    fn finish(self) -> crate::digest::Digest {
        self.hasher.finish()
    }

    fn rest(&self) -> &[u8] {
        self.current.bytes.get(self.at..self.current.filled).unwrap_or_default()
    }

    fn refill(&mut self) -> std::io::Result<()> {
        self.meter.unpacked(self.current.filled);
        // A channel that closes without the empty chunk belongs to a stream that broke.
        let next = self.chunks.recv().map_err(|_| std::io::Error::other("cut short"))?;
        let used = std::mem::replace(&mut self.current, next);
        if !used.bytes.is_empty() {
            // Nobody takes it any more once the stream has ended.
            let _ = self.returns.send(used);
        }
        self.at = 0;
        self.ended = self.current.filled == 0;
        self.hasher.update(self.current.bytes.get(..self.current.filled).unwrap_or_default());
        Ok(())
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let available = self.fill_buf()?;
        let count = buffer.len().min(available.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), available.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at >= self.current.filled && !self.ended {
            self.refill()?;
        }
        Ok(self.rest())
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.current.filled);
    }
}
