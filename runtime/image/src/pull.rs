//! Pulling an image: resolve, choose, fetch its configuration and layers, list it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::Error;
use crate::layers::{Blobs, Layers, blocking};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{Fetched, RegistryConfig, Source};
use crate::store::{ImageId, NewImage, Store};
use crate::unpack::Piece;

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// Does all of one pull. Dropping the future stops it; nothing is listed before all is there.
pub(crate) async fn pull(
    store: Arc<Store>,
    layers: Arc<Layers>,
    reference: Reference,
    config: RegistryConfig,
) -> Result<ImageId, Error> {
    let source = {
        let reference = reference.clone();
        blocking(move || Ok(Arc::new(Source::new(&reference, &config)?))).await?
    };
    let top = source.top().await?;
    let repo_digest = reference.pinned(&top.digest);
    let (manifest, manifest_bytes) = choose(&source, top).await?;
    let config_bytes = source.small_blob(&manifest.config).await?;
    let (_, diff_ids) = manifest::parse_config(&manifest, &config_bytes)?;
    let holds = layers.all(&source, &manifest.layers, &diff_ids).await?;
    let image = NewImage {
        manifest_text: manifest::text(&manifest.digest, manifest_bytes)?,
        config_text: manifest::text(&manifest.config.digest, config_bytes)?,
        layers: holds.iter().map(|hold| hold.record.key.clone()).collect(),
        tag: reference.tag().map(|_| reference.to_string()),
        repo_digest: Some(repo_digest),
        manifest,
    };
    let id = blocking(move || Ok(store.add_image(image)?)).await?;
    drop(holds);
    Ok(id)
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
    async fn send(self: Arc<Self>, blob: Descriptor, to: mpsc::Sender<Piece>) -> Result<(), Error> {
        let mut body = self.blob(&blob).await?;
        while let Some(data) = body.next().await? {
            if to.send(Piece::Data(data)).await.is_err() {
                // The unpacking has failed and says why.
                return Ok(());
            }
        }
        let _ = to.send(Piece::End).await;
        Ok(())
    }
}
