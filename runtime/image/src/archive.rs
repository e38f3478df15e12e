//! Importing images from a tar of an OCI image layout.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>. Docker writes such
//! tars too (`docker save` since version 25).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::error::Error;
use crate::layers::{Blobs, Layers, blocking};
use crate::manifest::{self, Descriptor, Document, IndexEntry, MAX_MANIFEST, Manifest};
use crate::platform::Platform;
use crate::progress::Meter;
use crate::reference::Reference;
use crate::store::{ImageId, NewImage, Store};
use crate::unpack::{Piece, tar_contents};

const INDEX: &str = "index.json";
const PIECE: usize = 256 << 10;
const MAX_DEPTH: usize = 4;
/// Where names stand, the better first: containerd's own is always a whole reference.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Imports all images that the archive's index names and that fit this machine.
pub(crate) async fn import(
    store: Arc<Store>,
    layers: Arc<Layers>,
    path: PathBuf,
) -> Result<Vec<ImageId>, Error> {
    let (archive, entries) = blocking(move || {
        let archive = Archive::open(&path)?;
        let entries = archive.index()?;
        Ok((Arc::new(archive), entries))
    })
    .await?;
    let mut ids: Vec<ImageId> = Vec::new();
    for entry in entries {
        let id = import_one(store.clone(), layers.clone(), archive.clone(), entry).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

async fn import_one(
    store: Arc<Store>,
    layers: Arc<Layers>,
    archive: Arc<Archive>,
    entry: IndexEntry,
) -> Result<ImageId, Error> {
    let name = name(&entry.annotations);
    let digest = entry.descriptor.digest.clone();
    let from = archive.clone();
    let (manifest, manifest_bytes, config_bytes) = blocking(move || {
        let (manifest, bytes) = from.choose(entry.descriptor)?;
        let config = from.document(&manifest.config, manifest::MAX_CONFIG)?;
        Ok((manifest, bytes, config))
    })
    .await?;
    let (_, diff_ids) = manifest::parse_config(&manifest, &config_bytes)?;
    let label =
        name.as_ref().map_or_else(|| archive.path.display().to_string(), Reference::to_string);
    let entry = layers.board.enter(label);
    let holds = layers.all(&archive, &manifest.layers, &diff_ids, &entry).await?;
    let image = NewImage {
        manifest_text: manifest::text(&manifest.digest, manifest_bytes)?,
        config_text: manifest::text(&manifest.config.digest, config_bytes)?,
        layers: holds.iter().map(|hold| hold.record.key.clone()).collect(),
        tag: name.as_ref().filter(|name| name.tag().is_some()).map(Reference::to_string),
        repo_digest: name.map(|name| name.pinned(&digest)),
        manifest,
    };
    let id = blocking(move || Ok(store.add_image(image)?)).await?;
    drop(holds);
    Ok(id)
}

/// The image's name. A mere tag, which the layout's specification allows, names no repository:
/// such an image is imported without a name.
fn name(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let named = |key: &&str| annotations.get(*key).filter(|name| name.contains(['/', ':']));
    let name = NAMES.iter().find_map(named)?;
    Reference::parse(name)
        .inspect_err(|error| tracing::warn!(%error, "imported without a name"))
        .ok()
}

/// An archive on disk and where its members are.
struct Archive {
    path: PathBuf,
    /// Offset and length of each file.
    members: HashMap<String, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(crate::store::Error::io("open", path))?;
        let members = tar_contents(BufReader::with_capacity(PIECE, file))
            .map_err(crate::unpack::Error::from)?;
        Ok(Self { path: path.to_owned(), members })
    }

    fn index(&self) -> Result<Vec<IndexEntry>, Error> {
        let bytes = self.read(INDEX, MAX_MANIFEST)?;
        match manifest::parse(&Digest::of(&bytes), manifest::OCI_INDEX, &bytes)? {
            Document::Index(entries) => Ok(entries),
            Document::Manifest(_) => Err(archive_error(format!("{INDEX} is no index"))),
        }
    }

    /// Follows indexes to the manifest for this machine.
    fn choose(&self, mut at: Descriptor) -> Result<(Manifest, Vec<u8>), Error> {
        for _ in 0..MAX_DEPTH {
            let bytes = self.document(&at, MAX_MANIFEST)?;
            match manifest::parse(&at.digest, &at.media_type, &bytes)? {
                Document::Manifest(manifest) => return Ok((manifest, bytes)),
                Document::Index(entries) => {
                    let entry = manifest::choose(&at.digest, &entries, &Platform::host())?;
                    at = entry.descriptor.clone();
                }
            }
        }
        Err(manifest::Error::TooDeep { digest: at.digest }.into())
    }

    /// A small blob, verified.
    fn document(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.read(&member(&blob.digest), limit)?;
        let mut hasher = blob.digest.hasher();
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual == blob.digest {
            return Ok(bytes);
        }
        Err(archive_error(format!("{} holds {actual}", member(&blob.digest))))
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let (mut file, length) = self.member(name)?;
        if length > limit {
            return Err(archive_error(format!("{name} has {length} bytes, more than {limit}")));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(crate::store::Error::io("read", &self.path))?;
        Ok(bytes)
    }

    fn member(&self, name: &str) -> Result<(impl Read + use<>, u64), Error> {
        let place = self.members.get(name).copied();
        let (offset, length) = place.ok_or_else(|| archive_error(format!("has no {name}")))?;
        let fail = || crate::store::Error::io("read", &self.path);
        let mut file = File::open(&self.path).map_err(fail())?;
        file.seek(SeekFrom::Start(offset)).map_err(fail())?;
        Ok((file.take(length), length))
    }

    fn send_all(
        &self,
        blob: &Descriptor,
        to: &mpsc::Sender<Piece>,
        meter: &Meter,
    ) -> Result<(), Error> {
        let (mut file, _) = self.member(&member(&blob.digest))?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            file.by_ref()
                .take(PIECE as u64)
                .read_to_end(&mut piece)
                .map_err(crate::store::Error::io("read", &self.path))?;
            let end = piece.is_empty();
            meter.received(piece.len());
            let next = if end { Piece::End } else { Piece::Data(Bytes::from(piece)) };
            if to.blocking_send(next).is_err() || end {
                return Ok(());
            }
        }
    }
}

impl Blobs for Archive {
    async fn send(
        self: Arc<Self>,
        blob: Descriptor,
        to: mpsc::Sender<Piece>,
        meter: Arc<Meter>,
    ) -> Result<(), Error> {
        blocking(move || self.send_all(&blob, &to, &meter)).await
    }
}

fn member(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}

fn archive_error(reason: String) -> Error {
    Error::Archive { reason: format!("the archive {reason}") }
}
