//! What nothing needs any more goes; what is new becomes durable. Runs in the background.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::PoisonError;

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::layer::{self, LayerKey};
use super::{State, Store, Unsynced, record};

#[derive(Serialize)]
struct Durable<'a> {
    version: u32,
    boot_id: &'a str,
}

impl Store {
    /// Does all that waits to be done. Blocks; errors are logged here.
    pub(crate) fn tidy(&self) {
        let _one_at_a_time = self.tidying.lock().unwrap_or_else(PoisonError::into_inner);
        self.collect();
        self.sync_new();
        self.empty_trash();
    }

    /// Moves layers that no image, no lease and no work under way needs to the trash.
    pub(crate) fn collect(&self) {
        let _writer = self.writer();
        self.collect_unneeded();
    }

    /// As [`collect`](Self::collect), for those who have the writer lock.
    pub(super) fn collect_unneeded(&self) {
        let mut state = self.write();
        let unneeded = unneeded(&state);
        for key in &unneeded {
            state.layers.remove(key);
        }
        drop(state);
        for key in &unneeded {
            tracing::debug!(%key, "layer removed");
            self.discard(&self.layout.layer(&key.short()));
        }
    }

    fn sync_dir(&self, path: &Path) {
        if let Err(error) = record::sync(path) {
            tracing::warn!(path = %path.display(), %error, "cannot sync a directory");
        }
    }

    /// The order that survives a power cut: data, then markers, then the index entries.
    fn sync_new(&self) {
        let unsynced = std::mem::take(&mut *self.unsynced());
        if let Err(error) = self.sync_all(&unsynced) {
            // Without a marker the layers are not trusted after an unclean boot; until then
            // they serve from memory, as any file on a failing disk.
            tracing::error!(%error, "new layers could not be made durable");
        }
    }

    fn sync_all(&self, unsynced: &Unsynced) -> std::io::Result<()> {
        if let Some(oldest) = unsynced.layers.first() {
            // The oldest descriptor reports the errors since the first write of them all.
            rustix::fs::syncfs(oldest)?;
            for dir in &unsynced.layers {
                self.mark_durable(dir.as_fd())?;
            }
            record::sync(&self.layout.layers())?;
        }
        for id in &unsynced.images {
            match record::sync(&self.layout.image(id)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if unsynced.images.is_empty() { Ok(()) } else { record::sync(&self.layout.images()) }
    }

    /// Writes through the open directory: if the layer has gone to the trash meanwhile, the
    /// marker goes with it, and not to another layer of its name.
    fn mark_durable(&self, dir: BorrowedFd<'_>) -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let marker: OwnedFd =
            match rustix::fs::openat(dir, layer::DURABLE, flags, Mode::RUSR | Mode::WUSR) {
                Ok(marker) => marker,
                // The directory has been removed already.
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
        let mut marker = std::fs::File::from(marker);
        serde_json::to_writer(&mut marker, &Durable { version: 1, boot_id: &self.boot_id })?;
        marker.sync_all()?;
        Ok(rustix::fs::fsync(dir)?)
    }

    fn empty_trash(&self) {
        let trash = self.layout.trash();
        let Ok(entries) = std::fs::read_dir(&trash) else { return };
        let entries: Vec<_> = entries.flatten().collect();
        if entries.is_empty() {
            return;
        }
        // That they left their places must be on disk before their contents go.
        for dir in [self.layout.images(), self.layout.layers(), self.layout.snapshots()] {
            self.sync_dir(&dir);
        }
        for entry in entries {
            let path = entry.path();
            let result = match entry.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
                _ => std::fs::remove_file(&path),
            };
            if let Err(error) = result {
                tracing::warn!(path = %path.display(), %error, "cannot remove from the trash");
            }
        }
    }
}

fn unneeded(state: &State) -> Vec<LayerKey> {
    let mut needed: HashSet<&LayerKey> = HashSet::new();
    needed.extend(state.images.values().flat_map(|image| &image.record.layers));
    needed.extend(state.snapshots.values().flat_map(|lease| &lease.layers));
    let free = |(key, slot): (&LayerKey, &super::Slot)| {
        (slot.holds == 0 && !needed.contains(key)).then(|| key.clone())
    };
    state.layers.iter().filter_map(free).collect()
}
