//! Records of pods and containers on disk, below `root`.
//!
//! ```text
//! ROOT/pods/POD/pod.json                 one pod
//! ROOT/pods/POD/containers/CTR.json      one container
//! ROOT/torn/                             what could not be read, moved aside
//! ```
//!
//! A record is replaced by a rename, so a reader sees the old or the new one. There is no fsync:
//! a power cut kills the things the records speak of, too, and a record it tears fails its
//! checksum and is moved aside.

mod file;
mod record;

use std::io;
use std::path::{Path, PathBuf};

use berth_proto::ids::{ContainerId, PodId};

pub use record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};

/// What could not be done to a record.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path:?}: {source}")]
pub struct StoreError {
    /// What was being done.
    pub what: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

type Result<T> = std::result::Result<T, StoreError>;

/// All records of one pod.
#[derive(Debug)]
pub struct Recorded {
    /// The pod's.
    pub pod: PodRecord,
    /// Its containers', in no order.
    pub containers: Vec<ContainerRecord>,
}

/// The home of the records.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Makes the directories below `root` where they are not there.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self { root: root.to_owned() };
        make_dir(&store.pods())?;
        Ok(store)
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    fn pod_dir(&self, id: &PodId) -> PathBuf {
        self.pods().join(id.as_str())
    }

    fn containers(&self, pod: &PodId) -> PathBuf {
        self.pod_dir(pod).join("containers")
    }

    fn container(&self, pod: &PodId, id: &ContainerId) -> PathBuf {
        self.containers(pod).join(format!("{id}.json"))
    }

    /// Replaces (or makes) a pod's record.
    pub fn save_pod(&self, record: &PodRecord) -> Result<()> {
        make_dir(&self.containers(&record.id))?;
        file::write(&self.pod_dir(&record.id).join("pod.json"), record)
    }

    /// Replaces (or makes) a container's record. Its pod's must be there.
    pub fn save_container(&self, record: &ContainerRecord) -> Result<()> {
        file::write(&self.container(&record.pod, &record.id), record)
    }

    /// Removes a pod's record and those of its containers. Ok when there is none.
    pub fn remove_pod(&self, id: &PodId) -> Result<()> {
        let dir = self.pod_dir(id);
        // Without it the rest is nothing, should this be cut short.
        let record = dir.join("pod.json");
        absent_is_fine(std::fs::remove_file(&record), "remove", &record)?;
        absent_is_fine(std::fs::remove_dir_all(&dir), "remove", &dir)
    }

    /// Removes a container's record. Ok when there is none.
    pub fn remove_container(&self, pod: &PodId, id: &ContainerId) -> Result<()> {
        let path = self.container(pod, id);
        absent_is_fine(std::fs::remove_file(&path), "remove", &path)
    }

    /// Reads everything. What cannot be understood is moved aside and said in the log; only a
    /// directory that cannot be listed is an error.
    pub fn load(&self) -> Result<Vec<Recorded>> {
        let mut all = Vec::new();
        for name in list(&self.pods())? {
            let Ok(id) = PodId::parse(&name) else { continue };
            match file::read::<PodRecord>(&self.pod_dir(&id).join("pod.json")) {
                Ok(pod) => all.push(Recorded { containers: self.load_containers(&id)?, pod }),
                // Cut short before the record was there, or after it went.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.remove_pod(&id)?,
                Err(error) => self.set_aside(&self.pod_dir(&id), &name, &error),
            }
        }
        Ok(all)
    }

    fn load_containers(&self, pod: &PodId) -> Result<Vec<ContainerRecord>> {
        let dir = self.containers(pod);
        let mut all = Vec::new();
        for name in list(&dir)? {
            let Some(id) = name.strip_suffix(".json") else { continue };
            match file::read::<ContainerRecord>(&dir.join(&name)) {
                Ok(record) if record.id.as_str() == id => all.push(record),
                Ok(_) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "another id within");
                    self.set_aside(&dir.join(&name), id, &error);
                }
                Err(error) => self.set_aside(&dir.join(&name), id, &error),
            }
        }
        Ok(all)
    }

    /// A torn record must never keep the daemon from starting: what it spoke of is found again
    /// as an orphan and taken down.
    fn set_aside(&self, path: &Path, name: &str, error: &io::Error) {
        let torn = self.root.join("torn");
        let to = torn.join(format!("{name}.{}", crate::clock::now()));
        let moved = std::fs::create_dir_all(&torn).and_then(|()| std::fs::rename(path, &to));
        match moved {
            Ok(()) => tracing::warn!(?path, ?to, %error, "record cannot be read: moved aside"),
            Err(why) => {
                tracing::warn!(?path, %error, %why, "record cannot be read, nor moved aside");
            }
        }
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| StoreError {
        what: "make directory",
        path: dir.to_owned(),
        source,
    })
}

fn absent_is_fine(done: io::Result<()>, what: &'static str, path: &Path) -> Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError { what, path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// The names in a directory; none when it is not there.
fn list(dir: &Path) -> Result<Vec<String>> {
    let failed = |source| StoreError { what: "list directory", path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
