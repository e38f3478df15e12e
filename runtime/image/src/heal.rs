//! What a power cut or a failing disk has spoilt is found and brought in again, in the
//! background: the store serves what is sound from the first moment.
//!
//! ```text
//! another boot, no marker -> verified against the listing -> sound
//!                                                         -> damaged -> fetched again -> sound
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::digest::{Digest, InvalidDigest};
use crate::error::Error;
use crate::layers::intake::{Copying, Intake};
use crate::layers::{self, Layers, blocking};
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::registry::{Net, RegistryConfig, Resume, Source};
use crate::store::layer::LayerKey;
use crate::store::{self, Image, ImageId, Store};

/// Between two attempts to fetch what cannot be had.
const PATIENCE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];
/// How long a container's creation waits for its image.
const WAIT: Duration = Duration::from_secs(60);

/// Looks after a store's layers.
pub(crate) struct Healer {
    pub(crate) store: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) net: Arc<Net>,
    pub(crate) registry: RegistryConfig,
    /// Layers compared with their listings at a time.
    pub(crate) parallel: usize,
    /// Why the last attempt to repair an image failed.
    pub(crate) failures: Mutex<HashMap<ImageId, String>>,
}

impl Healer {
    /// Works until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.each(self.store.unverified(), Store::verify), self.tend());
    }

    /// Blocking work on layers, a few at a time.
    async fn each(&self, keys: Vec<LayerKey>, work: fn(&Store, &LayerKey)) {
        let one = |key: LayerKey| {
            let store = self.store.clone();
            async move {
                if let Err(error) = tokio::task::spawn_blocking(move || work(&store, &key)).await {
                    tracing::error!(%error, "a layer could not be checked");
                }
            }
        };
        futures_util::stream::iter(keys).for_each_concurrent(self.parallel.max(1), one).await;
    }

    async fn tend(&self) {
        let mut patience = PATIENCE[0];
        loop {
            self.each(self.store.take_suspects(), Store::recheck).await;
            // Records may wait for the markers of what was rechecked.
            self.store.untidy.notify_one();
            let ailing = self.store.ailing.notified();
            if self.refetch_all().await {
                patience = PATIENCE[0];
                ailing.await;
            } else {
                let _woken = tokio::time::timeout(patience, ailing).await;
                patience = PATIENCE[1].min(patience.saturating_mul(2));
            }
        }
    }

    /// Whether all images are whole then.
    async fn refetch_all(&self) -> bool {
        let mut whole = true;
        for image in self.store.broken() {
            if self.store.is_being_verified(&image) {
                continue;
            }
            if let Err(error) = self.refetch(&image).await {
                tracing::warn!(image = %image.id, error = error.report(), "image not repaired yet");
                whole = false;
            }
        }
        whole
    }

    /// Brings in again what the image lacks, from kept blobs or from where it came.
    pub(crate) async fn refetch(&self, image: &Arc<Image>) -> Result<(), Error> {
        let mut failure = None;
        let named = image.repo_digests.iter().map(Some);
        for name in named.chain([None]) {
            match self.refetch_from(image, name).await {
                Ok(()) => {
                    tracing::info!(image = %image.id, "image repaired");
                    self.failures().remove(&image.id);
                    self.store.changed();
                    return Ok(());
                }
                // What the first registry said tells more than what the last did.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let failure = failure.unwrap_or(Error::Cancelled);
        if self.store.is_broken(&image.id) {
            self.failures().insert(image.id.clone(), failure.report());
            self.store.changed();
        }
        Err(failure)
    }

    async fn refetch_from(&self, image: &Arc<Image>, name: Option<&String>) -> Result<(), Error> {
        let source = match name {
            Some(name) => {
                let reference = Reference::parse(name)?;
                let (config, net) = (self.registry.clone(), self.net.clone());
                Some(blocking(move || Ok(Source::new(&reference, None, &config, &net)?)).await?)
            }
            None => None,
        };
        let origin =
            Arc::new(Origin { image: image.clone(), source, resume: self.registry.resume });
        let (blobs, diff_ids) = contents(image)?;
        let entry = self.layers.board.enter(name.unwrap_or(&image.id.to_string()).clone());
        let holds = self.layers.clone().all(&origin, &blobs, &diff_ids, &entry).await?;
        let keys = holds.iter().map(|hold| hold.record.key.clone()).collect();
        let (store, id) = (self.store.clone(), image.id.clone());
        blocking(move || Ok(store.relayer(&id, keys)?)).await
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image of this name once all its layers are sound; `None` if there is none. An error,
    /// if that takes too long or a repair has failed.
    pub(crate) async fn ready(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let deadline = Instant::now() + WAIT;
        let mut changes = self.store.trust.subscribe();
        loop {
            if let Some(image) = self.store.find(name) {
                return Ok(Some(image));
            }
            let Some(image) = self.store.find_any(name) else { return Ok(None) };
            let id = image.id.clone();
            let failure = self.failures().get(&id).cloned();
            let changed = async {
                match &failure {
                    Some(_) => None,
                    None => tokio::time::timeout_at(deadline, changes.changed()).await.ok(),
                }
            };
            if changed.await.is_none() {
                let wait = || "its layers are still being checked or fetched again".to_owned();
                let reason = failure.unwrap_or_else(wait);
                return Err(store::Error::BeingRepaired { id, reason }.into());
            }
        }
    }
}

/// The image's compressed layers and their diff-ids, bottom first.
fn contents(image: &Image) -> Result<(Vec<Descriptor>, Vec<Digest>), Error> {
    let blobs = image.record.blobs.iter().map(|blob| Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: blob.size,
    });
    let diff_ids = image.config.rootfs().diff_ids().iter().map(|id| Digest::parse(id));
    Ok((blobs.collect(), diff_ids.collect::<Result<_, InvalidDigest>>()?))
}

/// The registry for what is not kept: kept blobs are looked for before this is asked.
struct Origin {
    image: Arc<Image>,
    source: Option<Source>,
    resume: Resume,
}

impl layers::Blobs for Origin {
    async fn send(
        self: Arc<Self>,
        blob: Descriptor,
        range: Range<u64>,
        to: &mut Intake,
    ) -> Result<(), Error> {
        if let Some(source) = &self.source {
            return Ok(source.download(&blob, range, to).await?);
        }
        let id = self.image.id.clone();
        let reason = format!("layer {} is not kept here; pull or load it again", blob.digest);
        Err(store::Error::BeingRepaired { id, reason }.into())
    }

    fn distrust(&self, blob: &Digest) -> bool {
        // Without a registry the next try says what is wrong.
        self.source.as_ref().is_some_and(|source| source.distrust_servers(blob))
    }

    fn copying(&self) -> Copying {
        Copying::Resume(self.resume)
    }
}
