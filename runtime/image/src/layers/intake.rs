//! Where a blob's bytes go as they come: to the unpacking, and where they may be needed again, to
//! a file.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::progress::{LayerState, Meter};
use crate::registry::Resume;
use crate::store::blobs::{Begun, Blobs, From, Spool};
use crate::unpack::Piece;

/// Pieces that wait to be written to the file.
const WRITES: usize = 8;
const READ: usize = 256 << 10;
/// So long a download waits for an earlier one's last writes.
const HANDOVER: Duration = Duration::from_secs(2);

/// The unpacking takes no more: it has failed, and says why itself.
#[derive(Debug)]
pub(crate) struct Closed;

/// What becomes of a copy of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// No copy.
    None,
    /// For a later download to go on with, if this one is broken off.
    Resume(Resume),
    /// To be kept whole.
    Keep,
}

/// See the module.
pub(crate) struct Intake {
    sender: mpsc::Sender<Piece>,
    pub(crate) meter: Arc<Meter>,
    blobs: Arc<Blobs>,
    blob: Descriptor,
    copying: Copying,
    began: Instant,
    /// How many of the blob's bytes have come.
    at: u64,
    writer: Option<Writer>,
    /// Some bytes came from this machine's own disk.
    pub(super) local: bool,
}

/// Writes a copy on a thread of its own, so that a slow disk holds up no task.
struct Writer {
    to: mpsc::Sender<Bytes>,
    task: JoinHandle<Option<Spool>>,
}

impl Writer {
    fn start(spool: Spool) -> Self {
        let (to, from) = mpsc::channel(WRITES);
        Self { to, task: spawn_blocking(move || write(spool, from)) }
    }
}

/// Also when the download is dropped, all that has come is written.
fn write(mut spool: Spool, mut from: mpsc::Receiver<Bytes>) -> Option<Spool> {
    while let Some(data) = from.blocking_recv() {
        if let Err(error) = spool.write(&data) {
            tracing::warn!(%error, "no copy of a download is kept");
            spool.discard();
            return None;
        }
    }
    Some(spool)
}

impl Intake {
    pub(crate) fn new(
        sender: mpsc::Sender<Piece>,
        meter: Arc<Meter>,
        blobs: Arc<Blobs>,
        blob: Descriptor,
        copying: Copying,
    ) -> Self {
        let began = Instant::now();
        Self { sender, meter, blobs, blob, copying, began, at: 0, writer: None, local: false }
    }

    /// How many of the blob's bytes have come.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes. Waits while the unpacking is behind.
    pub(crate) async fn give(&mut self, data: Bytes) -> Result<(), Closed> {
        self.copy(&data).await;
        self.pass(data).await
    }

    async fn pass(&mut self, data: Bytes) -> Result<(), Closed> {
        self.meter.received(data.len());
        self.at += data.len() as u64;
        self.sender.send(Piece::Data(data)).await.map_err(|_| Closed)
    }

    /// All that a channel brings, up to its end.
    pub(crate) async fn relay(&mut self, mut from: mpsc::Receiver<Piece>) {
        while let Some(Piece::Data(data)) = from.recv().await {
            if self.give(data).await.is_err() {
                return;
            }
        }
    }

    async fn copy(&mut self, data: &Bytes) {
        if self.writer.is_none() && self.is_worth_it() {
            self.writer = self.spool(From::Offset(self.at)).await.map(Writer::start);
            if self.writer.is_none() {
                self.copying = Copying::None;
            }
        }
        if let Some(writer) = &self.writer
            && writer.to.send(data.clone()).await.is_err()
        {
            (self.writer, self.copying) = (None, Copying::None);
        }
    }

    fn is_worth_it(&self) -> bool {
        match self.copying {
            Copying::None => false,
            Copying::Keep => self.at == 0,
            Copying::Resume(resume) => resume.max_bytes > 0 && self.began.elapsed() >= resume.after,
        }
    }

    async fn spool(&self, from: From) -> Option<Spool> {
        let deadline = Instant::now() + HANDOVER;
        loop {
            let released = self.blobs.released.notified();
            let (blobs, digest) = (self.blobs.clone(), self.blob.digest.clone());
            let begun = spawn_blocking(move || {
                blobs.spool(&digest, from).inspect_err(|error| {
                    tracing::warn!(%digest, %error, "no copy of a download is kept");
                })
            });
            match begun.await {
                Ok(Ok(Begun::Spool(spool))) => return Some(spool),
                Ok(Ok(Begun::Busy)) => {}
                _ => return None,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, released).await.ok()?;
        }
    }

    /// The copy of an earlier download, if there is one and it may be used.
    pub(super) async fn earlier(&self) -> Option<Spool> {
        let spool = match self.copying {
            Copying::None => return None,
            Copying::Keep | Copying::Resume(_) => self.spool(From::Earlier).await?,
        };
        let end = spool.offset.saturating_add(spool.length);
        let fits = end <= self.blob.size && spool.length > 0;
        if fits && (spool.offset == 0 || self.copying != Copying::Keep) {
            return Some(spool);
        }
        spool.discard();
        None
    }

    /// Gives what an earlier download left, and goes on writing behind it.
    pub(super) async fn resume(&mut self, spool: Spool) -> Result<(), Closed> {
        self.meter.set(LayerState::Resumed);
        let file = spool.reader();
        self.writer = Some(Writer::start(spool));
        match file {
            Ok(file) => self.replay(file).await,
            Err(error) => {
                tracing::warn!(%error, "an earlier download's copy cannot be read");
                Ok(())
            }
        }
    }

    /// Gives a file's bytes, no more than the blob has left.
    pub(crate) async fn replay(&mut self, mut file: File) -> Result<(), Closed> {
        self.local = true;
        let (to, mut from) = mpsc::channel(2);
        let mut left = self.blob.size - self.at;
        let reading = spawn_blocking(move || -> std::io::Result<()> {
            while left > 0 {
                let mut piece = Vec::with_capacity(READ);
                let count = file.by_ref().take(left.min(READ as u64)).read_to_end(&mut piece)?;
                left -= count as u64;
                if count == 0 || to.blocking_send(Bytes::from(piece)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        while let Some(data) = from.recv().await {
            self.pass(data).await?;
        }
        if let Ok(Err(error)) = reading.await {
            tracing::warn!(%error, "a copy of a blob cannot be read to its end");
        }
        Ok(())
    }

    /// All has come.
    pub(crate) async fn end(self) -> Option<Copied> {
        let _ = self.sender.send(Piece::End).await;
        let Writer { to, task } = self.writer?;
        drop(to);
        let spool = task.await.ok()??;
        Some(Copied { spool, keep: self.copying == Copying::Keep, size: self.blob.size })
    }
}

/// A whole copy, not yet verified.
pub(crate) struct Copied {
    spool: Spool,
    keep: bool,
    size: u64,
}

impl Copied {
    /// The unpacking has verified the blob, or has not. Blocks.
    pub(super) fn settle(self, verified: bool) {
        let whole = self.spool.offset == 0 && self.spool.length == self.size;
        if !(verified && self.keep && whole) {
            return self.spool.discard();
        }
        if let Err(error) = self.spool.keep() {
            tracing::warn!(%error, "a blob could not be kept");
        }
    }
}

/// Throws away what this machine has of a blob: it is not the blob.
pub(super) fn forget(blobs: &Arc<Blobs>, digest: &Digest) {
    if let Err(error) = blobs.remove(digest) {
        tracing::warn!(%digest, %error, "a damaged blob could not be removed");
    }
    blobs.remove_partial(digest);
}
