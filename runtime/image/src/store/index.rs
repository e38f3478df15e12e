//! Which images there are, and by which names they are found.

use std::sync::Arc;

use super::gc::BATCH;
use super::image::{BlobRecord, Image, ImageRecord, VERSION};
use super::layer::LayerKey;
use super::{Error, ImageId, Store, record};
use crate::manifest::Manifest;
use crate::policy::Verification;
use crate::reference::Reference;

/// An image whose layers are all in the store.
pub(crate) struct NewImage {
    pub(crate) manifest: Manifest,
    pub(crate) manifest_text: String,
    pub(crate) config_text: String,
    /// Bottom first.
    pub(crate) layers: Vec<LayerKey>,
    /// Normalised, if it was asked for by tag.
    pub(crate) tag: Option<String>,
    /// `name@digest`, if a registry's or archive's digest is known.
    pub(crate) repo_digest: Option<String>,
    /// What the image policy asked for and got.
    pub(crate) verified: Option<Verification>,
}

impl Store {
    /// Images whose layers are all sound.
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.read().listed().cloned().collect()
    }

    /// Finds an image by tag, digest, bare name, or id (whole or the only one that begins so),
    /// among those whose layers are all sound.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.read();
        search(name, || state.listed())
    }

    /// As [`find`](Self::find), also among those that are being repaired.
    pub(crate) fn find_any(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.read();
        search(name, || state.images.values())
    }

    /// Images of which a layer is missing or not sound.
    pub(crate) fn broken(&self) -> Vec<Arc<Image>> {
        let state = self.read();
        state.broken.iter().filter_map(|id| state.images.get(id)).cloned().collect()
    }

    pub(crate) fn is_broken(&self, id: &ImageId) -> bool {
        self.read().broken.contains(id)
    }

    /// Lists an image, or adds its names to the one there. The tag leaves any other image.
    pub(crate) fn add_image(&self, new: NewImage) -> Result<ImageId, Error> {
        let _writer = self.writer();
        let id = new.manifest.config.digest.clone();
        let mut state = self.write();
        if !new.layers.iter().all(|key| state.layers.contains_key(key)) {
            return Err(Error::Gone { id });
        }
        let known = state.images.get(&id).cloned();
        state.serial += 1;
        let serial = state.serial;
        let loser = new.tag.as_ref().and_then(|tag| {
            state.images.values().find(|i| i.id != id && i.repo_tags.contains(tag)).cloned()
        });
        drop(state);
        self.save_image(merged(new.into_parts(), known.as_deref(), serial))?;
        let winner = self.read().images.get(&id).cloned();
        if let (Some(loser), Some(winner)) = (loser, winner) {
            self.untag(&loser, &winner.repo_tags)?;
        }
        Ok(id)
    }

    /// Gives the image one more tag (normalised), which leaves any other image.
    pub(crate) fn tag(&self, id: &ImageId, tag: &str) -> Result<(), Error> {
        let _writer = self.writer();
        let mut state = self.write();
        let image = state.images.get(id).cloned().ok_or_else(|| Error::Gone { id: id.clone() })?;
        let tag = tag.to_owned();
        let mut others = state.images.values();
        let loser = others.find(|i| i.id != *id && i.repo_tags.contains(&tag)).cloned();
        state.serial += 1;
        let serial = state.serial;
        drop(state);
        let mut record = ImageRecord::clone(&image.record);
        record.serial = serial;
        record.repo_tags = sorted(record.repo_tags.into_iter().chain([tag.clone()]));
        self.save_image(record)?;
        if let Some(loser) = loser {
            self.untag(&loser, &[tag])?;
        }
        self.unsynced().images.push(id.clone());
        self.untidy.notify_one();
        Ok(())
    }

    /// At once for all to see; on disk when the record of the image that has the tags now is
    /// there: of two records with one tag, the later has it, so that a power cut between loses
    /// none.
    fn untag(&self, image: &Image, tags: &[String]) -> Result<(), Error> {
        let mut record = ImageRecord::clone(&image.record);
        record.repo_tags.retain(|tag| !tags.contains(tag));
        let id = record.id.clone();
        let image =
            Image::new(record).map_err(|source| Error::Config { id: id.clone(), source })?;
        self.write().images.insert(id.clone(), Arc::new(image));
        self.unsynced().untagged.push(id);
        self.untidy.notify_one();
        Ok(())
    }

    /// Writes down that an image has lost tags.
    pub(super) fn save_untagged(&self, id: &ImageId) -> Result<(), Error> {
        let _writer = self.writer();
        let mut state = self.write();
        let Some(image) = state.images.get(id).cloned() else { return Ok(()) };
        state.serial += 1;
        let serial = state.serial;
        drop(state);
        self.save_image(ImageRecord { serial, ..ImageRecord::clone(&image.record) })
    }

    /// Says that an image consists of these layers now, which are all in the store.
    pub(crate) fn relayer(&self, id: &ImageId, layers: Vec<LayerKey>) -> Result<(), Error> {
        let _writer = self.writer();
        let known = self.read().images.get(id).cloned();
        let Some(known) = known.filter(|image| image.record.layers != layers) else {
            return Ok(());
        };
        let mut record = ImageRecord::clone(&known.record);
        record.layers = layers;
        self.save_image(record)
    }

    /// On disk first, then for all to see. A record that may be on disk already stays until its
    /// successor is, too.
    fn save_image(&self, record: ImageRecord) -> Result<(), Error> {
        let id = record.id.clone();
        let first = self.layout.image(&id);
        let path = if first.exists() { self.layout.next_image(&id) } else { first };
        let image =
            Image::new(record).map_err(|source| Error::Config { id: id.clone(), source })?;
        record::write(&path, &*image.record).map_err(Error::io("write", &path))?;
        let mut state = self.write();
        state.images.insert(id.clone(), Arc::new(image));
        state.refresh();
        drop(state);
        self.changed();
        self.unsynced().images.push(id);
        self.untidy.notify_one();
        Ok(())
    }

    /// Removes the image that `name` leads to, with all its names. None is well, too. Its layers
    /// leave their places; they are removed in the background.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let _writer = self.writer();
        let Some(image) = self.find_any(name) else { return Ok(()) };
        for path in [self.layout.image(&image.id), self.layout.next_image(&image.id)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        let mut state = self.write();
        state.images.remove(&image.id);
        state.broken.remove(&image.id);
        drop(state);
        self.changed();
        self.collect_some(BATCH);
        self.untidy.notify_one();
        Ok(())
    }
}

fn search<'a, I: Iterator<Item = &'a Arc<Image>>>(
    name: &str,
    images: impl Fn() -> I,
) -> Option<Arc<Image>> {
    if let Ok(reference) = Reference::parse(name) {
        let wanted = reference.to_string();
        let has = |image: &&Arc<Image>| {
            image.repo_tags.contains(&wanted) || image.repo_digests.contains(&wanted)
        };
        if let Some(image) = images().find(has) {
            return Some(image.clone());
        }
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut begin = images().filter(|image| image.id.hex().starts_with(hex));
    let found = begin.next()?;
    begin.next().is_none().then(|| found.clone())
}

type Parts = (ImageRecord, Option<String>, Option<String>);

impl NewImage {
    fn into_parts(self) -> Parts {
        let record = ImageRecord {
            version: VERSION,
            id: self.manifest.config.digest.clone(),
            serial: 0,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            manifest_digest: self.manifest.digest.clone(),
            manifest: self.manifest_text,
            config: self.config_text,
            blobs: self.manifest.layers.iter().map(BlobRecord::from).collect(),
            layers: self.layers,
            verified: self.verified.into_iter().collect(),
        };
        (record, self.tag, self.repo_digest)
    }
}

/// The new record with the names that the image has already.
fn merged((mut record, tag, digest): Parts, known: Option<&Image>, serial: u64) -> ImageRecord {
    let tags = known.into_iter().flat_map(|image| image.repo_tags.iter().cloned()).chain(tag);
    let digests = known.into_iter().flat_map(|i| i.repo_digests.iter().cloned()).chain(digest);
    record.serial = serial;
    record.repo_tags = sorted(tags);
    record.repo_digests = sorted(digests);
    let known_verified = known.into_iter().flat_map(|image| image.verified());
    for earlier in known_verified {
        if !record.verified.iter().any(|new| new.replaces(earlier)) {
            record.verified.push(earlier.clone());
        }
    }
    record
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}
