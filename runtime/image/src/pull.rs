//! Pulling an image: resolve, choose, fetch its configuration and layers, list it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::PullOptions;
use crate::error::Error;
use crate::layers::{Blobs, Layers, blocking};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::platform::Platform;
use crate::policy::{self, Policy, Subject};
use crate::progress::{Meter, PullState};
use crate::reference::Reference;
use crate::registry::{Credentials, Fetched, RegistryConfig, Source};
use crate::store::{ImageId, NewImage, Store};
use crate::unpack::Piece;

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// All that one pull needs.
pub(crate) struct Pull {
    pub(crate) store: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) reference: Reference,
    #[allow(dead_code, reason = "sent with the next slice")]
    pub(crate) credentials: Option<Credentials>,
    pub(crate) registry: RegistryConfig,
    pub(crate) policy: Arc<Policy>,
    #[allow(dead_code, reason = "followed with the next slice")]
    pub(crate) options: PullOptions,
}

impl Pull {
    /// Does all of it. Dropping the future stops it; nothing is listed before all is there.
    pub(crate) async fn run(self) -> Result<ImageId, Error> {
        let Self { store, layers, reference, registry, policy, .. } = self;
        policy::check_name(&policy, &reference)?;
        let entry = layers.board.enter(reference.to_string());
        let source = {
            let reference = reference.clone();
            blocking(move || Ok(Arc::new(Source::new(&reference, &registry)?))).await?
        };
        let top = source.top().await?;
        let (top_digest, top_bytes) = (top.digest.clone(), top.bytes.clone());
        let (manifest, manifest_bytes) = choose(&source, top).await?;
        let mut subjects = vec![Subject { digest: &top_digest, bytes: &top_bytes }];
        if manifest.digest != top_digest {
            subjects.push(Subject { digest: &manifest.digest, bytes: &manifest_bytes });
        }
        let verified = policy::check(&policy, &reference, &subjects, &*source).await?;
        let config_bytes = source.small_blob(&manifest.config).await?;
        let (_, diff_ids) = manifest::parse_config(&manifest, &config_bytes)?;
        let holds = layers.all(&source, &manifest.layers, &diff_ids, &entry).await?;
        entry.set(PullState::Finishing);
        let image = NewImage {
            manifest_text: manifest::text(&manifest.digest, manifest_bytes)?,
            config_text: manifest::text(&manifest.config.digest, config_bytes)?,
            layers: holds.iter().map(|hold| hold.record.key.clone()).collect(),
            tag: reference.tag().map(|_| reference.to_string()),
            repo_digest: Some(reference.pinned(&top_digest)),
            verified,
            manifest,
        };
        let id = blocking(move || Ok(store.add_image(image)?)).await?;
        drop(holds);
        Ok(id)
    }
}

/// Follows indexes to the manifest for this machine.
async fn choose(source: &Source, top: Fetched) -> Result<(Manifest, Vec<u8>), Error> {
    let mut fetched = top;
    for _ in 0..MAX_DEPTH {
        match manifest::parse(&fetched.digest, &fetched.content_type, &fetched.bytes)? {
            Document::Manifest(manifest) => return Ok((manifest, fetched.bytes)),
            Document::Index(entries) => {
                let entry = manifest::choose(&fetched.digest, &entries, &Platform::host())?;
                fetched = source.manifest(&entry.descriptor.digest).await?;
            }
        }
    }
    Err(manifest::Error::TooDeep { digest: fetched.digest }.into())
}

impl Blobs for Source {
    async fn send(
        self: Arc<Self>,
        blob: Descriptor,
        to: mpsc::Sender<Piece>,
        meter: Arc<Meter>,
    ) -> Result<(), Error> {
        let mut body = self.blob(&blob).await?;
        meter.comes_from(body.host());
        while let Some(data) = body.next().await? {
            meter.received(data.len());
            if to.send(Piece::Data(data)).await.is_err() {
                // The unpacking has failed and says why.
                return Ok(());
            }
        }
        let _ = to.send(Piece::End).await;
        Ok(())
    }
}
