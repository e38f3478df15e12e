//! Damaged layers that were replaced while containers ran on them.
//!
//! A layer is never repaired in place: what replaces it is made beside it and renamed. The old
//! directory stays for the containers that have it mounted, and goes with the last of them.

use std::path::{Path, PathBuf};

use super::layer::{self, LayerKey, LayerRecord};
use super::{Error, Retired, State, Store, record};

impl State {
    fn is_leased(&self, key: Option<&LayerKey>) -> bool {
        self.snapshots
            .values()
            .any(|lease| lease.is_unknown() || key.is_none_or(|key| lease.layers.contains(key)))
    }
}

impl Store {
    /// Frees a layer's place. For those who have the writer lock.
    pub(super) fn make_way(&self, key: &LayerKey, home: &Path) -> Result<(), Error> {
        if home.symlink_metadata().is_err() {
            return Ok(());
        }
        let state = self.read();
        let mounted = state.layers.get(key).is_some_and(|slot| slot.was_sound);
        let mounted = mounted && state.is_leased(Some(key));
        drop(state);
        if !mounted {
            return self.throw(home).map_err(Error::io("move to the trash", home));
        }
        let path = self.layout.retired().join(self.unique());
        std::fs::rename(home, &path).map_err(Error::io("put aside", home))?;
        self.write().retired.push(Retired { path, key: Some(key.clone()) });
        Ok(())
    }

    /// What an earlier process left.
    pub(super) fn load_retired(&self, paths: Vec<PathBuf>) {
        let key = |path: &Path| {
            record::read::<LayerRecord>(&path.join(layer::RECORD)).ok().map(|record| record.key)
        };
        let retired = paths.into_iter().map(|path| Retired { key: key(&path), path });
        self.write().retired = retired.collect();
    }

    /// Throws away those that no container can have mounted any more. For those who have the
    /// writer lock.
    pub(super) fn collect_retired(&self) {
        let mut state = self.write();
        let retired = std::mem::take(&mut state.retired);
        let (kept, free) =
            retired.into_iter().partition(|old: &Retired| state.is_leased(old.key.as_ref()));
        state.retired = kept;
        drop(state);
        for old in free as Vec<Retired> {
            self.discard(&old.path);
        }
    }
}
