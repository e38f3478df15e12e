//! Cgroup directories above the pods' containers that were not there before Berth came.
//!
//! kubelet makes a pod's cgroup in the hierarchies it knows, and not in others; a pod that names
//! no parent gets one that nobody else makes. Whatever was absent just before a shim was told to
//! make it is ours to remove with its last user. The list is kept in `STATE/cgroups.json`, as a
//! shim or the daemon may die in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use berth_proto::ids::PodId;

use crate::shim::Hierarchies;

#[derive(Debug, Default)]
struct Inner {
    made: BTreeSet<PathBuf>,
    live: BTreeMap<PodId, String>,
}

/// The directories, and the pods that still need them.
#[derive(Debug)]
pub(crate) struct Parents {
    file: PathBuf,
    cgroups: Hierarchies,
    inner: Mutex<Inner>,
}

impl Parents {
    /// Reads the list. One that cannot be read is as good as an empty one.
    pub(crate) fn open(state: &Path, cgroups: Hierarchies) -> Self {
        let file = state.join("cgroups.json");
        let made = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let inner = Inner { made: made.unwrap_or_default(), live: BTreeMap::new() };
        Self { file, cgroups, inner: Mutex::new(inner) }
    }

    /// A pod is about to be made, or was found, below `parent`. Blocks on small files.
    pub(crate) fn enter(&self, pod: &PodId, parent: &str) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.live.insert(pod.clone(), parent.to_owned());
        let absent = self.cgroups.absent(parent);
        if absent.is_subset(&inner.made) {
            return Ok(());
        }
        inner.made.extend(absent);
        self.save(&inner.made)
    }

    /// The pod has no cgroup any more. Removes what nobody needs, deepest first.
    pub(crate) fn leave(&self, pod: &PodId) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.live.remove(pod);
        let before = inner.made.len();
        let Inner { made, live } = &mut *inner;
        let unused: Vec<PathBuf> = made
            .iter()
            .rev()
            .filter(|dir| !live.values().any(|p| needs(p, dir)))
            .cloned()
            .collect();
        for dir in unused {
            match std::fs::remove_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(?dir, %error, "cgroup stays for now");
                }
                _ => {
                    made.remove(&dir);
                }
            }
        }
        if made.len() != before
            && let Err(error) = self.save(made)
        {
            tracing::warn!(file = ?self.file, %error, "list of made cgroups not written");
        }
    }

    fn save(&self, made: &BTreeSet<PathBuf>) -> io::Result<()> {
        if made.is_empty() {
            return std::fs::remove_file(&self.file);
        }
        let temporary = self.file.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec(made)?)?;
        std::fs::rename(&temporary, &self.file)
    }
}

/// Whether `dir` (of any hierarchy) is `parent` or above it.
fn needs(parent: &str, dir: &Path) -> bool {
    let mut prefix = PathBuf::new();
    Path::new(parent.trim_start_matches('/')).components().any(|part| {
        prefix.push(part);
        dir.ends_with(&prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_goes_with_its_last_pod() {
        let state = std::env::temp_dir().join(format!("berth-test-parents-{}", std::process::id()));
        std::fs::create_dir(&state).unwrap();
        let cgroups = Hierarchies::probe().unwrap();
        let name = format!("/berth-test-parents-{}/pod", std::process::id());
        let (one, two) = (PodId::from_random([1; 32]), PodId::from_random([2; 32]));
        let parents = Parents::open(&state, cgroups.clone());
        let absent = cgroups.absent(&name);
        parents.enter(&one, &name).unwrap();
        for dir in &absent {
            std::fs::create_dir(dir).unwrap();
        }
        parents.enter(&two, &name).unwrap();
        parents.leave(&one);
        assert!(absent.iter().all(|dir| dir.exists()));
        // Another daemon takes over, with one pod left.
        let parents = Parents::open(&state, cgroups);
        parents.enter(&two, &name).unwrap();
        parents.leave(&two);
        assert!(absent.iter().all(|dir| !dir.exists()));
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0, "the list is gone too");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
