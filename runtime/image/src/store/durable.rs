//! What is new becomes durable, in the order that survives a power cut: data, then markers, then
//! the images' records.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::layer::{self, LayerKey};
use super::{ImageId, Store, Unsynced, record};
use crate::digest::Digest;
use crate::unpack::listing::LISTING;

/// Says that what it stands beside is on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    version: u32,
    /// In which boot that came to be known.
    boot_id: String,
    /// The listing's digest; `None` where the layer has none.
    pub(super) listing: Option<Digest>,
}

/// What earlier versions wrote, without a checksum.
#[derive(Deserialize)]
struct OldMarker {
    version: u32,
}

/// The marker in a layer's directory, if there is a good one.
pub(super) fn marker(layer: &Path) -> Option<Marker> {
    let path = layer.join(layer::DURABLE);
    if let Ok(marker) = record::read::<Marker>(&path) {
        return Some(marker);
    }
    path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
    let old = io::Read::take(File::open(&path).ok()?, 4096);
    let old: OldMarker = serde_json::from_reader(old).ok()?;
    (old.version == 1).then_some(Marker { version: 1, boot_id: String::new(), listing: None })
}

impl Store {
    /// Syncs what was renamed in since the last time. What could not be synced is checked later.
    pub(super) fn sync_new(&self) -> io::Result<()> {
        while let Some(unsynced) = self.take_unsynced() {
            if let Err(error) = self.sync_all(&unsynced) {
                tracing::error!(%error, "new layers could not be made durable; they are checked");
                let mut waiting = self.unsynced();
                waiting.suspects.extend(unsynced.layers.into_iter().map(|(key, _)| key));
                waiting.images.extend(unsynced.images);
                waiting.untagged.extend(unsynced.untagged);
                drop(waiting);
                self.ailing.notify_one();
                return Err(error);
            }
            for id in &unsynced.untagged {
                if let Err(error) = self.save_untagged(id) {
                    tracing::error!(%id, %error, "it may have a tag again after a restart");
                }
            }
        }
        Ok(())
    }

    fn take_unsynced(&self) -> Option<Unsynced> {
        let mut waiting = self.unsynced();
        if waiting.is_empty() {
            return None;
        }
        let suspects = std::mem::take(&mut waiting.suspects);
        Some(std::mem::replace(&mut *waiting, Unsynced { suspects, ..Unsynced::default() }))
    }

    fn sync_all(&self, unsynced: &Unsynced) -> io::Result<()> {
        if let Some((_, oldest)) = unsynced.layers.first() {
            // The oldest descriptor reports the errors since the first write of them all.
            rustix::fs::syncfs(oldest)?;
            for (_, dir) in &unsynced.layers {
                self.mark_durable(dir.as_fd())?;
            }
            record::sync(&self.layout.layers())?;
        }
        for id in &unsynced.images {
            self.sync_image(id)?;
        }
        if unsynced.images.is_empty() { Ok(()) } else { record::sync(&self.layout.images()) }
    }

    /// A record that is on disk is replaced only by one that is, too.
    fn sync_image(&self, id: &ImageId) -> io::Result<()> {
        let serial = || self.read().images.get(id).map(|image| image.record.serial);
        let (before, next) = (serial(), self.layout.next_image(id));
        match record::sync(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return gone_is_well(record::sync(&self.layout.image(id)));
            }
            synced => synced?,
        }
        let _writer = self.writer();
        // A still later one waits for the next round.
        if before.is_some() && serial() == before {
            gone_is_well(std::fs::rename(&next, self.layout.image(id)))?;
        }
        Ok(())
    }

    /// Writes through the open directory: if the layer has gone to the trash meanwhile, the
    /// marker goes with it, and not to another layer of its name.
    pub(super) fn mark_durable(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let listing = match digest_of(dir, LISTING) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            digest => Some(digest?),
        };
        // Whatever has the name is of no use; a FIFO must not even be opened.
        let _ = rustix::fs::unlinkat(dir, layer::DURABLE, rustix::fs::AtFlags::empty());
        let marker: OwnedFd =
            match rustix::fs::openat(dir, layer::DURABLE, flags, Mode::RUSR | Mode::WUSR) {
                Ok(marker) => marker,
                // The directory has been removed already.
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
        let content =
            record::encode(&Marker { version: 2, boot_id: self.boot_id.clone(), listing })?;
        let mut marker = File::from(marker);
        io::Write::write_all(&mut marker, &content)?;
        marker.sync_all()?;
        Ok(rustix::fs::fsync(dir)?)
    }

    /// Has a layer of this boot looked at whose syncing failed, or was left to an earlier
    /// process: what its descriptors had to tell, nobody may have heard.
    pub(super) fn suspect(&self, key: LayerKey) {
        self.unsynced().suspects.push(key);
        self.ailing.notify_one();
    }

    /// Layers that [`suspect`](Self::suspect) named since the last time.
    pub(crate) fn take_suspects(&self) -> Vec<LayerKey> {
        std::mem::take(&mut self.unsynced().suspects)
    }
}

fn gone_is_well(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The digest of a file in `dir`, read in pieces.
pub(super) fn digest_of(dir: BorrowedFd<'_>, name: &str) -> io::Result<Digest> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "is no regular file"));
    }
    let mut hasher = Digest::of(&[]).hasher();
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = io::Read::read(&mut file, &mut piece)?;
        if length == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(piece.get(..length).unwrap_or_default());
    }
}
