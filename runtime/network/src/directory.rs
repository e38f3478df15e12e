//! Which network configuration is in force.
//!
//! As containerd does it: of the files named `*.conf`, `*.conflist` and `*.json`, the first in the
//! order of names counts. If that one is broken there is no network, and the next is *not* taken
//! in its place: a typing error must not move pods to another network. (Where containerd keeps
//! the old networks until its watcher fires, here every call looks: two stat calls when nothing
//! has changed.)

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::conf::Network;
use crate::error::NotReady;

/// A change within a file system's clock tick of the last look would go unseen; younger stamps
/// than this are not relied on.
const SETTLED: Duration = Duration::from_secs(1);

/// The configuration directory and what was last found in it.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    stamps: Stamps,
    settled: bool,
    found: Result<Arc<Network>, NotReady>,
}

/// What tells one content from another: the directory's entries and the chosen file.
#[derive(Debug, PartialEq)]
struct Stamps {
    dir: Option<Stamp>,
    file: Option<(PathBuf, Option<Stamp>)>,
}

#[derive(Debug, PartialEq)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, seen: Mutex::new(None) }
    }

    /// The network in force. Blocks on the disk, briefly.
    pub(crate) fn current(&self) -> Result<Arc<Network>, NotReady> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*seen
            && last.settled
            && last.stamps == last.stamps.again(&self.dir)
        {
            return last.found.clone();
        }
        let fresh = Seen::look(&self.dir);
        if seen.as_ref().map(|last| &last.found) != Some(&fresh.found) {
            tell(&fresh.found);
        }
        seen.insert(fresh).found.clone()
    }
}

impl Seen {
    /// Takes each stamp before what it stands for is read.
    fn look(dir: &Path) -> Self {
        let dir_stamp = stamp(dir);
        let (file, found) = match first(dir) {
            Ok(Some(path)) => {
                let file_stamp = stamp(&path);
                let found = load(&path);
                (Some((path, file_stamp)), found)
            }
            Ok(None) => {
                let message = format!("no CNI configuration found in {}", dir.display());
                (None, Err(NotReady::absent(message)))
            }
            Err(e) => {
                let message = format!("CNI configuration directory {}: {e}", dir.display());
                (None, Err(NotReady::new(message)))
            }
        };
        let stamps = Stamps { dir: dir_stamp, file };
        Self { settled: stamps.are_settled(), stamps, found }
    }
}

impl Stamps {
    fn again(&self, dir: &Path) -> Self {
        let file = self.file.as_ref().map(|(path, _)| (path.clone(), stamp(path)));
        Self { dir: stamp(dir), file }
    }

    fn are_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let file = self.file.as_ref().and_then(|(_, stamp)| stamp.as_ref());
        let mut known = self.dir.iter().chain(file);
        known.all(|s| {
            let changed = Duration::from_secs(u64::try_from(s.changed.0).unwrap_or_default());
            now > changed + SETTLED + Duration::from_secs(1)
        })
    }
}

impl From<Metadata> for Stamp {
    fn from(m: Metadata) -> Self {
        Self {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(Stamp::from)
}

/// The configuration file first in the order of names.
fn first(dir: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut first = None;
    for entry in entries {
        let path = entry?.path();
        let counts =
            path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
        if counts && !path.is_dir() && first.as_ref().is_none_or(|f| path < *f) {
            first = Some(path);
        }
    }
    Ok(first)
}

fn load(path: &Path) -> Result<Arc<Network>, NotReady> {
    let broken = |why: String| {
        NotReady::new(format!("CNI configuration {} cannot be used: {why}", path.display()))
    };
    let text = fs::read(path).map_err(|e| broken(e.to_string()))?;
    let list = path.extension().is_some_and(|e| e == "conflist");
    let parsed = if list { Network::parse_list(&text) } else { Network::parse_conf(&text) };
    parsed.map(Arc::new).map_err(|e| broken(e.to_string()))
}

fn tell(found: &Result<Arc<Network>, NotReady>) {
    match found {
        Ok(network) => tracing::info!(network = network.name, "network configuration in force"),
        Err(not_ready) => tracing::warn!("{not_ready}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"name":"a","cniVersion":"1.0.0","type":"a"}"#;
    const B: &str = r#"{"name":"b","cniVersion":"1.0.0","plugins":[{"type":"b"}]}"#;

    fn name(directory: &Directory) -> Result<String, String> {
        directory.current().map(|n| n.name.clone()).map_err(|e| e.message)
    }

    #[test]
    fn each_change_is_seen_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("net.d");
        let directory = Directory::new(dir.clone());
        let nothing = Err(format!("no CNI configuration found in {}", dir.display()));
        assert_eq!(name(&directory), nothing, "no directory");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("README"), "x").unwrap();
        fs::create_dir(dir.join("00.conf")).unwrap();
        assert_eq!(name(&directory), nothing, "no file of that kind");

        fs::write(dir.join("20-b.conflist"), B).unwrap();
        assert_eq!(name(&directory), Ok("b".into()));
        fs::write(dir.join("10-a.conf"), A).unwrap();
        assert_eq!(name(&directory), Ok("a".into()), "the first name counts");
        fs::write(dir.join("10-a.conf"), A.replace("\"a\",\"cni", "\"c\",\"cni")).unwrap();
        assert_eq!(name(&directory), Ok("c".into()), "written over in place");
        fs::write(dir.join("10-a.conf"), "{").unwrap();
        let error = name(&directory).unwrap_err();
        assert!(error.contains("10-a.conf cannot be used: not JSON"), "{error}");
        fs::rename(dir.join("10-a.conf"), dir.join("30-a.json")).unwrap();
        assert_eq!(name(&directory), Ok("b".into()));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(name(&directory), nothing);
    }

    #[test]
    fn an_old_directory_is_read_once() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a.conf"), A).unwrap();
        let directory = Directory::new(temp.path().to_owned());
        let first = directory.current().unwrap();
        // As if a while had passed since.
        directory.seen.lock().unwrap().as_mut().unwrap().settled = true;
        assert!(Arc::ptr_eq(&first, &directory.current().unwrap()));
    }
}
