//! Images on their way out: a layer's blob as it came in, and pushing to a registry.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::layers::blocking;
use crate::layers::intake::{Copying, Intake};
use crate::manifest::Descriptor;
use crate::progress::{Entry, LayerState, Meter, PullState};
use crate::reference::Reference;
use crate::registry::push::{Found, Target};
use crate::registry::{Credentials, Error as RegistryError, Net, RegistryConfig, Source};
use crate::store::{Image, Store};
use crate::unpack::Piece;

/// Pieces that wait to be sent on.
const PIECES: usize = 8;
/// Blobs sent at a time.
const UPLOADS: usize = 3;

/// What a caller may choose for one push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Bytes per request; `None` sends each blob in one.
    pub chunk: Option<u32>,
}

/// What a push did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushReport {
    /// The manifest's digest, by which it can be pulled.
    pub digest: String,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs that the registry took from another of its repositories.
    pub mounted: usize,
    /// Blobs that were there already.
    pub present: usize,
}

/// Where a blob's bytes can come from.
#[derive(Clone)]
pub(crate) struct Origins {
    pub(crate) store: Arc<Store>,
    pub(crate) net: Arc<Net>,
    pub(crate) image: Arc<Image>,
    pub(crate) registry: RegistryConfig,
    pub(crate) credentials: Option<Credentials>,
}

/// A blob as it comes. Digest and length are verified before its last piece is given out.
pub struct BlobReader {
    from: mpsc::Receiver<Piece>,
    task: Option<JoinHandle<Result<(), Error>>>,
    blob: Descriptor,
    hasher: Option<Hasher>,
    received: u64,
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl BlobReader {
    /// The blob's length.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// The next piece; `None` at the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self.from.recv().await {
            Some(Piece::Data(data)) => {
                self.received += data.len() as u64;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&data);
                }
                // Before the last piece goes out: nobody takes the whole of a wrong blob.
                if self.received >= self.blob.size {
                    self.verify()?;
                }
                Ok(Some(data))
            }
            Some(Piece::End) => {
                self.task = None;
                self.verify().map(|()| None)
            }
            None => match self.task.take() {
                Some(task) => {
                    let ended = task.await.map_err(|e| crate::store::Error::Task(e.to_string()))?;
                    ended?;
                    Err(Error::Cancelled)
                }
                None => Ok(None),
            },
        }
    }

    fn verify(&mut self) -> Result<(), Error> {
        let (wanted, actual) = (self.blob.size, self.received);
        if wanted != actual {
            return Err(self.named(crate::unpack::Error::BlobSize { wanted, actual }));
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(actual) if actual != self.blob.digest => {
                let wanted = self.blob.digest.clone();
                Err(self.named(crate::unpack::Error::BlobDigest { wanted, actual }))
            }
            _ => Ok(()),
        }
    }

    fn named(&self, source: crate::unpack::Error) -> Error {
        Error::Layer { digest: self.blob.digest.clone(), source: Arc::new(source.into()) }
    }
}

impl Origins {
    /// One of the image's blobs, from its first byte on.
    pub(crate) fn read(&self, blob: &Descriptor) -> BlobReader {
        let (sender, from) = mpsc::channel(PIECES);
        let (origins, wanted) = (self.clone(), blob.clone());
        let task = tokio::spawn(async move { origins.send(wanted, sender).await });
        let hasher = Some(blob.digest.hasher());
        BlobReader { from, task: Some(task), blob: blob.clone(), hasher, received: 0 }
    }

    async fn send(self, blob: Descriptor, sender: mpsc::Sender<Piece>) -> Result<(), Error> {
        let (meter, blobs) = (Arc::new(Meter::default()), self.store.blobs.clone());
        let mut to = Intake::new(sender, meter, blobs, blob.clone(), Copying::None);
        if let Some(kept) = self.store.blobs.open(&blob.digest) {
            let _ = to.replay(kept).await;
        } else {
            self.fetch(&blob, &mut to).await?;
        }
        to.end().await;
        Ok(())
    }

    /// From the registries that the image came from, in turn.
    async fn fetch(&self, blob: &Descriptor, to: &mut Intake) -> Result<(), Error> {
        let mut failure = None;
        for name in &self.image.repo_digests {
            let reference = Reference::parse(name)?;
            let source = self.source(&reference).await?;
            match source.download(blob, to.at()..blob.size, to).await {
                Ok(()) => return Ok(()),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let digest = blob.digest.clone();
        let source = match failure {
            Some(error) => Error::from(error),
            None => RegistryError::NotKept { digest: digest.clone() }.into(),
        };
        Err(Error::Layer { digest, source: Arc::new(source) })
    }

    async fn source(&self, reference: &Reference) -> Result<Source, Error> {
        let (reference, net) = (reference.clone(), self.net.clone());
        let (credentials, registry) = (self.credentials.clone(), self.registry.clone());
        blocking(move || Ok(Source::new(&reference, credentials.as_ref(), &registry, &net)?)).await
    }

    /// Sends the image to `to`. What the registry has is not sent.
    pub(crate) async fn push(
        &self,
        to: &Reference,
        options: &PushOptions,
        entry: &Entry,
    ) -> Result<PushReport, Error> {
        entry.set(PullState::Pushing);
        let record = &self.image.record;
        if let Some(digest) = to.digest().filter(|digest| **digest != record.manifest_digest) {
            let actual = record.manifest_digest.clone();
            return Err(RegistryError::OtherDigest { wanted: digest.clone(), actual }.into());
        }
        // What is told to the target is for it alone.
        let target = Target::new(self.source(to).await?, options.chunk)?;
        let reading = match self.image.repo_digests.iter().any(|name| is_on(name, to)) {
            true => self.clone(),
            false => Self { credentials: None, ..self.clone() },
        };
        let siblings = siblings(&self.image.repo_digests, to);
        let blobs = self.blobs();
        let meters: Vec<_> = blobs.iter().map(|_| Arc::new(Meter::default())).collect();
        entry.layers(blobs.iter().cloned().zip(meters.clone()));
        entry.set(PullState::Pushing);
        let sends: Vec<_> = blobs
            .iter()
            .zip(&meters)
            .map(|(blob, meter)| send_one(&target, &reading, blob, &siblings, meter))
            .collect();
        let mut sending = futures_util::stream::iter(sends).buffer_unordered(UPLOADS);
        let mut report =
            PushReport { digest: record.manifest_digest.to_string(), ..PushReport::default() };
        while let Some(found) = sending.next().await {
            match found? {
                Found::Present => report.present += 1,
                Found::Mounted => report.mounted += 1,
                Found::Sent => report.sent += 1,
            }
        }
        let manifest = Bytes::from(record.manifest.clone());
        target.manifest(&manifest, &record.manifest_digest).await?;
        Ok(report)
    }

    /// Each once: a layer may be there twice.
    fn blobs(&self) -> Vec<Descriptor> {
        let record = &self.image.record;
        let layers = record.blobs.iter().map(|blob| Descriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.clone(),
            size: blob.size,
        });
        let config = Descriptor {
            media_type: String::new(),
            digest: record.id.clone(),
            size: record.config.len() as u64,
        };
        let mut seen = BTreeSet::new();
        layers.chain([config]).filter(|blob| seen.insert(blob.digest.clone())).collect()
    }
}

async fn send_one(
    target: &Target,
    from: &Origins,
    blob: &Descriptor,
    siblings: &[String],
    meter: &Arc<Meter>,
) -> Result<Found, Error> {
    let record = &from.image.record;
    let config = (blob.digest == record.id).then(|| Bytes::from(record.config.clone()));
    let named =
        |source: Error| Error::Layer { digest: blob.digest.clone(), source: Arc::new(source) };
    let read = || match &config {
        Some(bytes) => BlobReader::of(blob, bytes.clone()),
        None => from.read(blob),
    };
    let found = target.blob(blob, siblings, read, meter).await.map_err(named)?;
    meter.set(if found == Found::Sent { LayerState::Done } else { LayerState::Shared });
    Ok(found)
}

impl BlobReader {
    /// Of bytes at hand.
    fn of(blob: &Descriptor, bytes: Bytes) -> Self {
        let (sender, from) = mpsc::channel(2);
        // There is room for both.
        let _ = sender.try_send(Piece::Data(bytes));
        let _ = sender.try_send(Piece::End);
        let hasher = Some(blob.digest.hasher());
        Self { from, task: None, blob: blob.clone(), hasher, received: 0 }
    }
}

fn is_on(name: &str, target: &Reference) -> bool {
    Reference::parse(name).is_ok_and(|from| from.registry() == target.registry())
}

/// Other repositories of the same registry that have the image.
fn siblings(names: &[String], target: &Reference) -> Vec<String> {
    let parsed = names.iter().filter_map(|name| Reference::parse(name).ok());
    let same = parsed.filter(|from| {
        from.registry() == target.registry() && from.repository() != target.repository()
    });
    same.map(|from| from.repository().to_owned()).collect()
}

/// The image's layer of this digest.
pub(crate) fn layer(image: &Image, digest: &Digest) -> Option<Descriptor> {
    let blob = image.record.blobs.iter().find(|blob| blob.digest == *digest)?;
    let (media_type, digest) = (blob.media_type.clone(), blob.digest.clone());
    Some(Descriptor { media_type, digest, size: blob.size })
}
