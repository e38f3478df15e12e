//! What nothing needs any more goes. Runs in the background; each step holds locks for moments.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::layer::LayerKey;
use super::usage::measured;
use super::{Error, Layout, State, Store};
use crate::digest::Digest;

/// Layers moved to the trash under one hold of the lock.
pub(super) const BATCH: usize = 16;

/// How to collect.
#[derive(Debug, Clone, Copy, Default)]
pub struct GcOptions {
    /// Only say what would go.
    pub dry_run: bool,
}

/// What a collection removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// In no order that means anything.
    pub removed: Vec<Removed>,
}

impl GcReport {
    /// Disk space, in whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|one| one.bytes).fold(0, u64::saturating_add)
    }
}

/// One thing that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Where it lay.
    pub path: PathBuf,
    /// Why it is not needed.
    pub reason: &'static str,
    /// Disk space, in whole blocks.
    pub bytes: u64,
    /// Files, directories and all other nodes.
    pub inodes: u64,
}

impl Removed {
    fn new(path: PathBuf, reason: &'static str) -> Self {
        let (bytes, inodes) = measured(&path);
        Self { path, reason, bytes, inodes }
    }
}

impl Store {
    /// Does all that waits to be done. Blocks. Errors are logged; what could not be made durable
    /// is the answer's.
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        let _one_at_a_time = self.tidying.lock().unwrap_or_else(PoisonError::into_inner);
        self.collect();
        let synced = self.sync_new();
        self.empty_trash();
        synced.map_err(Error::io("sync", self.layout.root()))
    }

    /// Moves layers that no image, no lease and no work under way needs to the trash, a few at
    /// a time.
    pub(crate) fn collect(&self) {
        loop {
            let _writer = self.writer();
            let went = self.collect_some(BATCH);
            if went < BATCH {
                self.collect_retired();
                break;
            }
        }
        self.collect_blobs();
    }

    /// Removes kept blobs that no image is made of.
    fn collect_blobs(&self) {
        // What is listed meanwhile has a claim on its blobs until then.
        for blob in self.blobs.remove_unneeded(|| self.needed_blobs()) {
            tracing::debug!(digest = %blob.digest, "blob removed");
        }
    }

    /// The blobs of all images; `None`, where not all images are known.
    fn needed_blobs(&self) -> Option<HashSet<Digest>> {
        let state = self.read();
        let blobs = state.images.values().flat_map(|image| &image.record.blobs);
        (!state.blind).then(|| blobs.map(|blob| blob.digest.clone()).collect())
    }

    /// At most so many; how many it were. For those who have the writer lock.
    pub(super) fn collect_some(&self, limit: usize) -> usize {
        let mut state = self.write();
        let mut unneeded = unneeded(&state);
        unneeded.truncate(limit);
        for key in &unneeded {
            state.layers.remove(key);
        }
        drop(state);
        for key in &unneeded {
            tracing::debug!(%key, "layer removed");
            self.discard(&self.layout.layer(&key.short()));
        }
        unneeded.len()
    }

    /// Collects all garbage, also what no record knows, and says what it was. Blocks.
    pub(crate) fn gc(&self, options: GcOptions) -> GcReport {
        let layers = unneeded(&self.read());
        let layers = layers.iter().map(|key| self.layout.layer(&key.short()));
        let mut removed: Vec<_> =
            layers.map(|path| Removed::new(path, "no image and no container needs it")).collect();
        let orphans = self.orphans();
        removed
            .extend(orphans.iter().cloned().map(|path| Removed::new(path, "no record knows it")));
        if let Some(needed) = self.needed_blobs() {
            let blobs = self.blobs.list().into_iter().filter(|b| !needed.contains(&b.digest));
            let paths = blobs.map(|blob| self.blobs.path(&blob.digest));
            removed.extend(paths.map(|path| Removed::new(path, "no image has this blob")));
        }
        for trash in self.layout.all_trash() {
            let waiting = entries(&trash).into_iter();
            removed.extend(waiting.map(|path| Removed::new(path, "it waits to be removed")));
        }
        if !options.dry_run {
            // What has become known meanwhile is none any more.
            let still: HashSet<PathBuf> = self.orphans().into_iter().collect();
            for path in orphans.iter().filter(|path| still.contains(*path)) {
                self.discard(path);
            }
            // What it could not make durable, it has logged.
            let _ = self.tidy();
        }
        GcReport { removed }
    }

    /// What lies in the store's directories and is none of its things. Nothing, where not all
    /// records could be read.
    pub(crate) fn orphans(&self) -> Vec<PathBuf> {
        let _writer = self.writer();
        let state = self.read();
        if state.blind {
            return Vec::new();
        }
        let layers: HashSet<String> = state.layers.keys().map(LayerKey::short).collect();
        let known = |name: &str| name == Layout::EMPTY || layers.contains(name);
        let mut orphans = strange(&self.layout.layers(), known);
        for staging in self.layout.all_staging() {
            orphans.extend(strange(&staging, |name| state.staged.contains(name)));
        }
        let snapshots = |name: &str| state.snapshots.contains_key(name);
        orphans.extend(strange(&self.layout.snapshots(), snapshots));
        let retired: HashSet<&Path> = state.retired.iter().map(|old| old.path.as_path()).collect();
        let retired_dir = self.layout.retired();
        orphans.extend(strange(&retired_dir, |name| {
            retired.contains(retired_dir.join(name).as_path())
        }));
        orphans
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The entries of `dir` that are not known.
fn strange(dir: &Path, known: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut entries = entries(dir);
    let is_known = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(&known);
    entries.retain(|path| !is_known(path));
    entries
}

/// Layers that nothing needs. None, where not all is known that may need them.
fn unneeded(state: &State) -> Vec<LayerKey> {
    if state.blind || state.snapshots.values().any(|lease| lease.is_unknown()) {
        return Vec::new();
    }
    let mut needed: HashSet<&LayerKey> = HashSet::new();
    needed.extend(state.images.values().flat_map(|image| &image.record.layers));
    needed.extend(state.snapshots.values().flat_map(|lease| &lease.layers));
    let free = |(key, slot): (&LayerKey, &super::Slot)| {
        (slot.holds == 0 && !needed.contains(key)).then(|| key.clone())
    };
    state.layers.iter().filter_map(free).collect()
}
