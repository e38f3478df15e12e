//! Images in archives: OCI layouts and docker-archives, from a file or a stream.
//!
//! - `members`: the files of an archive, spooled where it comes as a stream. A docker-archive's
//!   `manifest.json` may come last: nothing can be unpacked before all is there.
//! - `oci`, `docker`: the two formats. Either gives plans: what images there are, of which blobs.
//! - `rootfs`, `change`: an image of the tar of a root filesystem.
//! - `save`, `tar_out`: images as an archive that is both formats at once.
//! - `progress`: how far a load has come.

mod change;
mod docker;
mod members;
mod oci;
mod progress;
mod rootfs;
mod save;
mod tar_out;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

pub use progress::LoadProgress;
pub use rootfs::ImportOptions;
pub(crate) use rootfs::import as import_rootfs;
pub use save::SavedArchive;
pub(crate) use save::{Fetch, prepare as prepare_save, select};

use crate::digest::Digest;
use crate::error::Error;
use crate::layers::intake::{Copying, Intake};
use crate::layers::{Blobs, Layers, PIECES, blocking};
use crate::manifest::{self, Descriptor, Manifest};
use crate::reference::Reference;
use crate::store::layer::LayerHold;
use crate::store::{self, ImageId, NewImage, Store};
use crate::unpack::Piece;
use members::{Members, Place};

/// Indexes within indexes.
const MAX_DEPTH: usize = 4;

/// How an archive is to be loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// A repository for images of an OCI layout that bear a mere tag, or nothing.
    pub repository: Option<String>,
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: ImageId,
    /// The tags that it was given; empty for one without a name.
    pub tags: Vec<String>,
}

/// An image of an archive.
struct Plan {
    names: Vec<Reference>,
    /// The digest that the archive knows it by; none where its manifest was made here.
    pin: Option<Digest>,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    blobs: HashMap<Digest, Place>,
}

impl Plan {
    fn add_names(&mut self, names: Vec<Reference>) {
        names.into_iter().for_each(|name| {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        });
    }
}

/// Loads all images of the archive at `path` that fit this machine.
pub(crate) async fn import(
    store: Arc<Store>,
    layers: Arc<Layers>,
    path: PathBuf,
) -> Result<Vec<ImageId>, Error> {
    let from = store.clone();
    let members = blocking(move || Members::open(&from, &path)).await?;
    let progress = LoadProgress::default();
    let loaded = all(store, layers, members, LoadOptions::default(), &progress).await?;
    Ok(loaded.into_iter().map(|image| image.id).collect())
}

/// Loads all images of an archive that comes as a stream.
pub(crate) async fn load(
    store: Arc<Store>,
    layers: Arc<Layers>,
    pieces: mpsc::Receiver<Piece>,
    options: LoadOptions,
    progress: Arc<LoadProgress>,
) -> Result<Vec<Loaded>, Error> {
    let from = store.clone();
    let shown = progress.clone();
    let members = blocking(move || Members::receive(&from, pieces, &shown)).await?;
    progress.complete();
    all(store, layers, members, options, &progress).await
}

/// Unpacks all layers of all images, then lists the images: one that fails is the end of all.
async fn all(
    store: Arc<Store>,
    layers: Arc<Layers>,
    members: Members,
    options: LoadOptions,
    progress: &LoadProgress,
) -> Result<Vec<Loaded>, Error> {
    let (members, plans) = blocking(move || {
        let plans = plans(&members, &options)?;
        Ok((Arc::new(members), plans))
    })
    .await?;
    let all = plans.iter().flat_map(|plan| &plan.manifest.layers);
    let _kept = store.blobs.hold(all.map(|layer| layer.digest.clone()).collect());
    let mut ready = Vec::with_capacity(plans.len());
    for plan in plans {
        let holds = unpack(&layers, &members, &plan, progress).await?;
        ready.push((plan, holds));
    }
    let list = move |(plan, holds): (Plan, Vec<_>)| list(&store, plan, &holds, &members);
    blocking(move || ready.into_iter().map(list).collect()).await
}

fn plans(members: &Members, options: &LoadOptions) -> Result<Vec<Plan>, Error> {
    if members.has(oci::INDEX) {
        oci::plans(members, options)
    } else if members.has(docker::MANIFEST) {
        docker::plans(members)
    } else {
        let (oci, docker) = (oci::INDEX, docker::MANIFEST);
        Err(archive_error(format!("has neither {oci} nor {docker}: it is no archive of images")))
    }
}

async fn unpack(
    layers: &Arc<Layers>,
    members: &Arc<Members>,
    plan: &Plan,
    progress: &LoadProgress,
) -> Result<Vec<Arc<LayerHold>>, Error> {
    let (_, diff_ids) = manifest::parse_config(&plan.manifest, &plan.config_bytes)?;
    let blobs = ArchiveBlobs { places: plan.blobs.clone(), _members: members.clone() };
    let label = plan.names.first().map(Reference::to_string);
    let entry =
        layers.board.enter(label.unwrap_or_else(|| plan.manifest.config.digest.to_string()));
    progress.unpacks(entry.clone());
    layers.clone().all(&Arc::new(blobs), &plan.manifest.layers, &diff_ids, &entry).await
}

/// Lists an image whose layers are there. Its blobs are kept: they may be nowhere else.
fn list(
    store: &Store,
    plan: Plan,
    holds: &[Arc<LayerHold>],
    _members: &Members,
) -> Result<Loaded, Error> {
    for (digest, place) in &plan.blobs {
        if let Some(path) = place.spooled_as(digest)
            && store.blobs.open(digest).is_none()
        {
            store.blobs.adopt(digest, path).map_err(store::Error::io("keep", path))?;
        }
    }
    let mut tags: Vec<String> = Vec::new();
    let mut names = plan.names.iter();
    let first = names.next();
    let image = NewImage {
        manifest_text: manifest::text(&plan.manifest.digest, plan.manifest_bytes)?,
        config_text: manifest::text(&plan.manifest.config.digest, plan.config_bytes)?,
        layers: holds.iter().map(|hold| hold.record.key.clone()).collect(),
        tag: first.filter(|name| name.tag().is_some()).map(Reference::to_string),
        repo_digest: first.zip(plan.pin.as_ref()).map(|(name, digest)| name.pinned(digest)),
        verified: None,
        manifest: plan.manifest,
    };
    tags.extend(image.tag.clone());
    let id = store.add_image(image)?;
    for name in names.filter(|name| name.tag().is_some()) {
        let name = name.to_string();
        store.tag(&id, &name)?;
        tags.push(name);
    }
    Ok(Loaded { id, tags })
}

/// An image's blobs, as the archive has them.
struct ArchiveBlobs {
    places: HashMap<Digest, Place>,
    /// What was spooled stays until the last layer is unpacked.
    _members: Arc<Members>,
}

impl ArchiveBlobs {
    fn place(&self, blob: &Descriptor) -> Result<&Place, Error> {
        let name = oci::member(&blob.digest);
        let place =
            self.places.get(&blob.digest).ok_or_else(|| archive_error(format!("has no {name}")))?;
        match place.known_digest() {
            Some(actual) if *actual != blob.digest && actual.is_like(&blob.digest) => {
                Err(archive_error(format!("{name} holds {actual}")))
            }
            _ => Ok(place),
        }
    }
}

impl Blobs for ArchiveBlobs {
    async fn send(
        self: Arc<Self>,
        blob: Descriptor,
        _range: Range<u64>,
        to: &mut Intake,
    ) -> Result<(), Error> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let reading = blocking(move || self.place(&blob)?.send(&sender));
        let (sent, ()) = tokio::join!(reading, to.relay(receiver));
        sent
    }

    /// What is loaded can come from nowhere else. What was spooled is kept as it lies.
    fn copying(&self) -> Copying {
        let spooled = self.places.values().all(|place| place.known_digest().is_some());
        if spooled { Copying::None } else { Copying::Keep }
    }
}

fn archive_error(reason: String) -> Error {
    Error::Archive { reason: format!("the archive {reason}") }
}
