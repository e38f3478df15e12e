//! Pulling an image: resolve, choose, fetch its configuration and layers, list it.

use std::ops::Range;
use std::sync::Arc;

use crate::PullOptions;
use crate::digest::Digest;
use crate::error::Error;
use crate::layers::intake::{Copying, Intake};
use crate::layers::{Blobs, Layers, blocking};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::platform::Platform;
use crate::policy::{self, Policy, Subject};
use crate::progress::PullState;
use crate::reference::Reference;
use crate::registry::{Credentials, Fetched, Net, RegistryConfig, Source};
use crate::store::{ImageId, NewImage, Store};

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// All that one pull needs.
pub(crate) struct Pull {
    pub(crate) store: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) net: Arc<Net>,
    pub(crate) reference: Reference,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) registry: RegistryConfig,
    pub(crate) policy: Arc<Policy>,
    pub(crate) options: PullOptions,
}

impl Pull {
    /// Does all of it. Dropping the future stops it; nothing is listed before all is there.
    pub(crate) async fn run(self) -> Result<ImageId, Error> {
        let Self { store, layers, net, reference, credentials, registry, policy, options } = self;
        policy::check_name(&policy, &reference)?;
        let entry = layers.board.enter(reference.to_string());
        let keep = options.keep_blobs;
        let copying = if keep { Copying::Keep } else { Copying::Resume(registry.resume) };
        let source = {
            let (reference, blobs) = (reference.clone(), store.blobs.clone());
            let start = move || {
                blobs.trim_partials(registry.resume.max_bytes, registry.resume.max_age);
                Ok(Source::new(&reference, credentials.as_ref(), &registry, &net)?)
            };
            blocking(start).await?
        };
        let top = source.top().await?;
        let (top_digest, top_bytes) = (top.digest.clone(), top.bytes.clone());
        let (manifest, manifest_bytes) = choose(&source, top).await?;
        let mut subjects = vec![Subject { digest: &top_digest, bytes: &top_bytes }];
        if manifest.digest != top_digest {
            subjects.push(Subject { digest: &manifest.digest, bytes: &manifest_bytes });
        }
        let verified = policy::check(&policy, &reference, &subjects, &source).await?;
        let config_bytes = source.small_blob(&manifest.config).await?;
        let (_, diff_ids) = manifest::parse_config(&manifest, &config_bytes)?;
        let kept = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
        let _kept = store.blobs.hold(kept);
        let blobs = Arc::new(RegistryBlobs { source, copying });
        let holds = layers.all(&blobs, &manifest.layers, &diff_ids, &entry).await?;
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

/// A registry's blobs, and whether this pull keeps them.
pub(crate) struct RegistryBlobs {
    pub(crate) source: Source,
    pub(crate) copying: Copying,
}

impl Blobs for RegistryBlobs {
    async fn send(
        self: Arc<Self>,
        blob: Descriptor,
        range: Range<u64>,
        to: &mut Intake,
    ) -> Result<(), Error> {
        Ok(self.source.download(&blob, range, to).await?)
    }

    fn distrust(&self, blob: &Digest) -> bool {
        self.source.distrust_servers(blob)
    }

    fn copying(&self) -> Copying {
        self.copying
    }
}
