//! The record of each attachment on disk: `<cache>/<id>-<ifname>.json`.
//!
//! It is written before the first plugin runs and after each one, by atomic replace, and removed
//! once DEL succeeded. So whatever a crash interrupts, DEL finds what ADD was going to do, with the
//! configuration of that time. A power cut may tear a record; such a one reads as
//! [`Found::Torn`].

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::builtin::Lease;
use crate::conf::{ConfError, Network};
use crate::error::Error;

/// The version this build writes.
const VERSION: u32 = 1;
const RECORD: &str = "json";
/// A record on its way.
const FRESH: &str = "fresh";
const INPUT: &str = "input";
/// Between two looks at a lock that a plugin of an earlier daemon holds.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How far an ADD came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Some plugins may have run.
    Adding,
    /// All have succeeded.
    Attached,
}

/// What is remembered of one attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) phase: Phase,
    pub(crate) id: String,
    pub(crate) ifname: String,
    pub(crate) netns: PathBuf,
    /// The configuration in force at ADD.
    network: Value,
    /// CNI_ARGS at ADD.
    pub(crate) args: String,
    /// The capabilities' arguments at ADD, those no plugin declares included.
    pub(crate) capability_args: Map<String, Value>,
    /// The answer of the last plugin that succeeded.
    #[serde(default)]
    pub(crate) result: Option<Value>,
    /// Of the built-in network; plugins have no part in it then.
    #[serde(default)]
    pub(crate) lease: Option<Lease>,
}

impl Record {
    /// The intent to attach.
    pub(crate) fn intent(
        attachment: &crate::Attachment,
        network: &Network,
        capability_args: Map<String, Value>,
    ) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Adding,
            id: attachment.id.clone(),
            ifname: attachment.ifname.clone(),
            netns: attachment.netns.clone(),
            network: network.to_list(),
            args: attachment.args(),
            capability_args,
            result: None,
            lease: None,
        }
    }

    /// The intent to attach to the built-in network.
    pub(crate) fn own(attachment: &crate::Attachment, lease: Lease) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Adding,
            id: attachment.id.clone(),
            ifname: attachment.ifname.clone(),
            netns: attachment.netns.clone(),
            network: Value::Null,
            args: attachment.args(),
            capability_args: attachment.capability_args(),
            result: None,
            lease: Some(lease),
        }
    }

    pub(crate) fn network(&self) -> Result<Network, ConfError> {
        Network::parse_list(self.network.to_string().as_bytes())
    }
}

/// What is on disk for an attachment.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// There is a file, but it is no record.
    Torn,
    Record(Box<Record>),
}

/// The directory of records. All calls block on the disk.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(|e| record_error("make", dir, e))?;
        let cache = Self { dir: dir.to_owned() };
        // Records that a crash left half-written: their ADD had not gone on.
        for path in cache.files()?.into_iter().filter(|p| has_extension(p, FRESH)) {
            fs::remove_file(&path).map_err(|e| record_error("remove", &path, e))?;
        }
        Ok(cache)
    }

    fn files(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(&self.dir).and_then(|dir| dir.collect::<io::Result<Vec<_>>>());
        let entries = entries.map_err(|e| record_error("list", &self.dir, e))?;
        Ok(entries.into_iter().map(|entry| entry.path()).collect())
    }

    /// Id and interface of every record, in the order of names.
    pub(crate) fn list(&self) -> Result<Vec<(String, String)>, Error> {
        let mut all = Vec::new();
        for path in self.files()?.iter().filter(|p| has_extension(p, RECORD)) {
            let name = path.file_stem().and_then(|name| name.to_str());
            if let Some((id, ifname)) = name.and_then(|name| name.rsplit_once('-')) {
                all.push((id.to_owned(), ifname.to_owned()));
            }
        }
        all.sort();
        Ok(all)
    }

    pub(crate) fn read(&self, id: &str, ifname: &str) -> Result<Found, Error> {
        let path = self.path(id, ifname, RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(record_error("read", &path, e)),
        };
        Ok(serde_json::from_slice(&text).map_or(Found::Torn, |r| Found::Record(Box::new(r))))
    }

    /// The leases of the built-in network on record.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>, Error> {
        let mut found = Vec::new();
        for (id, ifname) in self.list()? {
            if let Found::Record(record) = self.read(&id, &ifname)? {
                found.extend(record.lease);
            }
        }
        Ok(found)
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.id, &record.ifname, RECORD);
        let fresh = self.path(&record.id, &record.ifname, FRESH);
        let done = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&fresh, text))
            .and_then(|()| fs::rename(&fresh, &path));
        done.map_err(|e| {
            // Best effort: a left-over is overwritten by the next write.
            let _ = fs::remove_file(&fresh);
            record_error("write", &path, e)
        })
    }

    /// Removes all files of the attachment, the record last.
    pub(crate) fn remove(&self, id: &str, ifname: &str) -> Result<(), Error> {
        for extension in [INPUT, FRESH, RECORD] {
            let path = self.path(id, ifname, extension);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(record_error("remove", &path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens and locks the plugins' input. Waits up to `patience` for a plugin that an earlier
    /// daemon left running, then goes on without the lock, as it does on a disk that takes no file.
    pub(crate) fn input(&self, id: &str, ifname: &str, patience: Duration) -> Input {
        let path = self.path(id, ifname, INPUT);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let locked = options.open(&path).and_then(|file| lock(&file, patience).map(|()| file));
        let file = locked.map_err(|error| {
            tracing::warn!(%error, path = %path.display(), "plugins run without a lock");
        });
        Input { path, file: file.ok().map(Arc::new) }
    }

    fn path(&self, id: &str, ifname: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{id}-{ifname}.{extension}"))
    }
}

/// Takes the lock; fails when someone has it for longer than `patience`.
fn lock(file: &File, patience: Duration) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("a plugin of an earlier daemon still runs"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// The file that plugins of one attachment read as standard input.
///
/// It is locked (flock) as long as a chain runs. A plugin inherits the locked description, so the
/// lock outlives a killed daemon exactly as long as the plugin it left behind: the next daemon's
/// DEL waits for that, and does not undo what is only about to be done.
///
/// On a disk that is full or broken the input lies in memory instead, without the lock: what was
/// attached can still be detached.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    path: PathBuf,
    file: Option<Arc<File>>,
}

impl Input {
    /// One that lies in memory: for verbs that concern no attachment.
    pub(crate) fn in_memory() -> Self {
        Self { path: PathBuf::from("cni-input"), file: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts `text` in and returns the file at its beginning.
    pub(crate) fn fill(&self, text: &[u8]) -> io::Result<Stdio> {
        let on_disk = self.file.as_ref().map(|file| fill(file, text));
        if let Some(Ok(stdin)) = on_disk {
            return Ok(stdin);
        }
        let memory = rustix::fs::memfd_create("cni-input", rustix::fs::MemfdFlags::CLOEXEC)?;
        fill(&File::from(memory), text)
    }

    /// Gives the lock up, also for a process that a plugin left behind on purpose.
    pub(crate) fn release(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.unlock()) {
            tracing::warn!(%error, path = %self.path.display(), "unlock a plugin's input");
        }
    }
}

fn fill(mut file: &File, text: &[u8]) -> io::Result<Stdio> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text)?;
    file.rewind()?;
    Ok(Stdio::from(file.try_clone()?))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

fn record_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Record { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attachment;

    fn record() -> Record {
        let network = br#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#;
        let network = Network::parse_list(network).unwrap();
        let attachment =
            Attachment { id: "a-b".into(), ifname: "eth0".into(), ..Attachment::default() };
        Record::intent(&attachment, &network, Map::new())
    }

    #[test]
    fn a_record_comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cni")).unwrap();
        assert!(matches!(cache.read("a-b", "eth0").unwrap(), Found::Nothing));
        cache.write(&record()).unwrap();
        let Found::Record(back) = cache.read("a-b", "eth0").unwrap() else { panic!("no record") };
        assert_eq!(*back, record());
        assert_eq!(cache.list().unwrap(), [("a-b".to_owned(), "eth0".to_owned())]);
        cache.remove("a-b", "eth0").unwrap();
        cache.remove("a-b", "eth0").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("cni")).unwrap().count(), 0);
    }

    #[test]
    fn a_half_written_record_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x-eth0.fresh"), "{").unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert!(cache.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_record_is_told_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        for text in ["", "\0\0\0\0", "{\"version\":1,\"phase\":\"add"] {
            fs::write(dir.path().join("x-eth0.json"), text).unwrap();
            assert!(matches!(cache.read("x", "eth0").unwrap(), Found::Torn), "{text:?}");
        }
    }

    #[test]
    fn the_input_is_locked_until_released() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let held = cache.input("x", "eth0", Duration::ZERO);
        // What a plugin inherits keeps the lock when the daemon's own descriptor is gone.
        let inherited = held.file.as_ref().unwrap().try_clone().unwrap();
        drop(held);
        assert!(cache.input("x", "eth0", Duration::ZERO).file.is_none());
        drop(inherited);
        let again = cache.input("x", "eth0", Duration::ZERO);
        let left_behind = again.file.as_ref().unwrap().try_clone().unwrap();
        again.release();
        assert!(cache.input("x", "eth0", Duration::ZERO).file.is_some());
        drop(left_behind);
    }
}
