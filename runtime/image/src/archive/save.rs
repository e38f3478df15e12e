//! Images as a tar that is an OCI layout and a docker-archive at once, as `docker save` has
//! written it since version 25: every loader reads the one or the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{LoadProgress, docker, oci, tar_out};
use crate::digest::Digest;
use crate::error::Error;
use crate::layers::intake::Copying;
use crate::layers::{self, blocking};
use crate::manifest::Descriptor;
use crate::progress::{Board, Meter};
use crate::pull::RegistryBlobs;
use crate::reference::Reference;
use crate::registry::{Credentials, Net, RegistryConfig, Source};
use crate::store::blobs::BlobHold;
use crate::store::{self, BlobRecord, Image, Store};
use crate::unpack::Piece;

/// One piece of a blob.
const PIECE: usize = 256 << 10;

/// An image and the names it is saved under.
pub(crate) struct Selected {
    pub(crate) image: Arc<Image>,
    pub(crate) tags: BTreeSet<String>,
}

impl Selected {
    /// The digests of its layers' blobs.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.image.record.blobs.iter().map(|blob| blob.digest.clone())
    }
}

/// What the caller's names lead to, each image once. A tag selects itself alone; an id selects
/// the image with all its tags; a digest selects it without any.
pub(crate) fn select(store: &Store, names: &[String]) -> Result<Vec<Selected>, Error> {
    let mut selected: Vec<Selected> = Vec::new();
    for name in names {
        let missing = || Error::NoImage { name: name.clone() };
        let image = store.find(name).ok_or_else(missing)?;
        let tags: BTreeSet<String> = match Reference::parse(name).map(|name| name.to_string()) {
            Ok(whole) if image.repo_tags.contains(&whole) => BTreeSet::from([whole]),
            Ok(whole) if image.repo_digests.contains(&whole) => BTreeSet::new(),
            _ => image.repo_tags.iter().cloned().collect(),
        };
        match selected.iter_mut().find(|known| known.image.id == image.id) {
            Some(known) => known.tags.extend(tags),
            None => selected.push(Selected { image, tags }),
        }
    }
    Ok(selected)
}

/// The blobs of these images that are not kept here.
fn missing(store: &Store, image: &Image) -> Vec<Descriptor> {
    let mut missing: Vec<Descriptor> = Vec::new();
    for blob in &image.record.blobs {
        if store.blobs.open(&blob.digest).is_none()
            && !missing.iter().any(|known| known.digest == blob.digest)
        {
            let BlobRecord { media_type, digest, size } = blob.clone();
            missing.push(Descriptor { media_type, digest, size });
        }
    }
    missing
}

/// Fetches what is missing of these images from where they came.
pub(crate) struct Fetch<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) board: &'a Board,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) registry: &'a RegistryConfig,
    pub(crate) net: &'a Arc<Net>,
    pub(crate) progress: &'a LoadProgress,
}

impl Fetch<'_> {
    /// Brings in all blobs that are not kept; they go again with the answer, if nobody else
    /// wants to keep them.
    pub(crate) async fn all(&self, selected: &[Selected]) -> Result<Passing, Error> {
        let mut passing = Passing { store: self.store.clone(), digests: Vec::new() };
        for one in selected {
            let blobs = missing(self.store, &one.image);
            if !blobs.is_empty() {
                passing.digests.extend(blobs.iter().map(|blob| blob.digest.clone()));
                self.image(&one.image, &blobs).await?;
            }
        }
        Ok(passing)
    }

    /// Every repository that the image is known by may have its blobs.
    async fn image(&self, image: &Image, blobs: &[Descriptor]) -> Result<(), Error> {
        let names = image.repo_digests.iter().chain(&image.repo_tags);
        let references = names.filter_map(|name| Reference::parse(name).ok());
        let mut asked = BTreeSet::new();
        let mut failure = None;
        for reference in references.filter(|reference| asked.insert(reference.name())) {
            match self.from(&reference, blobs).await {
                Ok(()) => return Ok(()),
                // What the first registry said tells more than what the last did.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let nowhere = || blobs.first().map(|blob| Error::NoBlob { digest: blob.digest.clone() });
        let Some(error) = failure.or_else(nowhere) else { return Ok(()) };
        let digest = image.id.clone();
        Err(Error::Fetch { digest, source: Box::new(error) })
    }

    async fn from(&self, reference: &Reference, blobs: &[Descriptor]) -> Result<(), Error> {
        let start = {
            let (reference, credentials) = (reference.clone(), self.credentials.clone());
            let (registry, net) = (self.registry.clone(), self.net.clone());
            move || Ok(Source::new(&reference, credentials.as_ref(), &registry, &net)?)
        };
        let source = blocking(start).await?;
        let from = Arc::new(RegistryBlobs { source, copying: Copying::Keep });
        let entry = self.board.enter(reference.to_string());
        let meters: Vec<_> = blobs.iter().map(|blob| (blob, Arc::new(Meter::default()))).collect();
        entry.layers(meters.iter().map(|(blob, meter)| ((*blob).clone(), meter.clone())));
        self.progress.unpacks(entry);
        for (blob, meter) in meters {
            layers::keep(self.store, &from, blob, meter).await?;
        }
        Ok(())
    }
}

/// Blobs that are here for one archive only.
pub(crate) struct Passing {
    store: Arc<Store>,
    digests: Vec<Digest>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        for digest in &self.digests {
            if let Err(error) = self.store.blobs.remove(digest) {
                tracing::warn!(%digest, %error, "a blob could not be removed");
            }
        }
    }
}

/// An archive about to be written: every part of it is there and held.
pub struct SavedArchive {
    members: Vec<(String, Content)>,
    length: u64,
    _held: BlobHold,
    _passing: Passing,
}

enum Content {
    Text(Vec<u8>),
    Blob { file: File, digest: Digest, size: u64 },
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }
}

/// Opens all parts. All blobs must be here; `held` and `passing` go when it is written.
pub(crate) async fn prepare(
    store: Arc<Store>,
    selected: Vec<Selected>,
    held: BlobHold,
    passing: Passing,
) -> Result<SavedArchive, Error> {
    blocking(move || {
        let members = members(&store, &selected)?;
        let sizes = members.iter().map(|(_, content)| tar_out::whole(content.size()));
        let length = sizes.fold(tar_out::END.len() as u64, u64::saturating_add);
        Ok(SavedArchive { members, length, _held: held, _passing: passing })
    })
    .await
}

fn members(store: &Store, selected: &[Selected]) -> Result<Vec<(String, Content)>, Error> {
    let mut blobs: BTreeMap<String, Content> = BTreeMap::new();
    let mut index = Vec::new();
    let mut items = Vec::new();
    for Selected { image, tags } in selected {
        let record = &image.record;
        let texts = [(&record.manifest_digest, &record.manifest), (&record.id, &record.config)];
        for (digest, text) in texts {
            blobs.insert(oci::member(digest), Content::Text(text.clone().into_bytes()));
        }
        for blob in &record.blobs {
            let name = oci::member(&blob.digest);
            if let Entry::Vacant(place) = blobs.entry(name) {
                place.insert(kept(store, blob)?);
            }
        }
        index.extend(entries(image, tags));
        let layers: Vec<_> = record.blobs.iter().map(|blob| oci::member(&blob.digest)).collect();
        let config = oci::member(&record.id);
        items.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": crate::manifest::OCI_INDEX, "manifests": index,
    });
    let text = |value: Value| Content::Text(value.to_string().into_bytes());
    let directory = |name: &str| (name.to_owned(), Content::Text(Vec::new()));
    // The names first: who reads the archive as a stream knows early what is coming.
    let mut members = vec![
        ("oci-layout".to_owned(), text(json!({"imageLayoutVersion": "1.0.0"}))),
        (oci::INDEX.to_owned(), text(index)),
        (docker::MANIFEST.to_owned(), text(Value::from(items))),
        directory("blobs/"),
        directory("blobs/sha256/"),
    ];
    members.extend(blobs);
    Ok(members)
}

/// One entry per name, as an index can say but one name in each.
fn entries(image: &Image, tags: &BTreeSet<String>) -> Vec<Value> {
    let record = &image.record;
    let media_type = serde_json::from_str::<Value>(&record.manifest)
        .ok()
        .and_then(|manifest| manifest.get("mediaType")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| crate::manifest::OCI_MANIFEST.to_owned());
    let bare = json!({
        "mediaType": media_type, "digest": record.manifest_digest.as_str(),
        "size": record.manifest.len(),
    });
    if tags.is_empty() {
        return vec![bare];
    }
    let named = |name: &String| {
        let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag);
        let mut entry = bare.clone();
        if let Some(fields) = entry.as_object_mut() {
            let names = json!({oci::NAME: name, oci::REF_NAME: tag});
            fields.insert("annotations".to_owned(), names);
        }
        entry
    };
    tags.iter().map(named).collect()
}

fn kept(store: &Store, blob: &BlobRecord) -> Result<Content, Error> {
    let gone = || Error::NoBlob { digest: blob.digest.clone() };
    let file = store.blobs.open(&blob.digest).ok_or_else(gone)?;
    Ok(Content::Blob { file, digest: blob.digest.clone(), size: blob.size })
}

impl SavedArchive {
    /// The archive's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Sends the archive, [`Piece::End`] last. Blobs are verified as they are read: an error
    /// means that what was sent is of no use. A receiver that went away is no error.
    pub async fn send(self, to: mpsc::Sender<Piece>) -> Result<(), Error> {
        blocking(move || match self.write(&to) {
            Ok(()) | Err(Stop::Closed) => Ok(()),
            Err(Stop::Failed(error)) => Err(*error),
        })
        .await
    }

    fn write(self, to: &mpsc::Sender<Piece>) -> Result<(), Stop> {
        for (name, content) in self.members {
            let size = content.size();
            give(to, tar_out::header(&name, size).to_vec())?;
            match content {
                Content::Text(text) => give(to, text)?,
                Content::Blob { file, digest, size } => copy(to, file, &digest, size)?,
            }
            let padding = usize::try_from(tar_out::padding(size)).unwrap_or(0);
            give(to, vec![0; padding])?;
        }
        give(to, tar_out::END.to_vec())?;
        to.blocking_send(Piece::End).map_err(|_| Stop::Closed)
    }
}

/// Why writing ends early.
enum Stop {
    Closed,
    Failed(Box<Error>),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(Box::new(error))
    }
}

fn give(to: &mpsc::Sender<Piece>, bytes: Vec<u8>) -> Result<(), Stop> {
    if bytes.is_empty() {
        return Ok(());
    }
    to.blocking_send(Piece::Data(Bytes::from(bytes))).map_err(|_| Stop::Closed)
}

fn copy(to: &mpsc::Sender<Piece>, mut file: File, digest: &Digest, size: u64) -> Result<(), Stop> {
    let damaged = |source: io::Error| {
        let action = "read the kept blob";
        Error::from(store::Error::Io { action, path: digest.to_string(), source })
    };
    let mut hasher = digest.hasher();
    let mut sent = 0_u64;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        file.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(damaged)?;
        if piece.is_empty() {
            break;
        }
        hasher.update(&piece);
        sent = sent.saturating_add(piece.len() as u64);
        if sent > size {
            break;
        }
        give(to, piece)?;
    }
    if sent == size && hasher.finish() == *digest {
        return Ok(());
    }
    Err(damaged(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")).into())
}
