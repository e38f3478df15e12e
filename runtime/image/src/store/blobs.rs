//! Blobs as registries have them: those kept whole, and downloads broken off that a later one
//! may go on with.
//!
//! ```text
//! blobs/ALGORITHM/HEX            a whole blob, verified when it was written
//! partial/ALGORITHM-HEX.OFFSET   what came of a blob, from OFFSET on, not verified
//! ```
//!
//! Neither is trusted: whoever reads one verifies the digest over the whole.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::digest::Digest;

/// A whole blob on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The blobs below one store's root.
#[derive(Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
    inner: Mutex<Inner>,
    /// Someone stopped writing a blob.
    pub(crate) released: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Claims of work under way, by count.
    held: HashMap<Digest, usize>,
    /// Blobs that are being written.
    spooling: HashSet<Digest>,
}

impl Blobs {
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        Arc::new(Self { root: root.to_owned(), inner: Mutex::default(), released: Notify::new() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Where the blob lies, if it is kept whole.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.kept().join(digest.algorithm()).join(digest.hex())
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// The whole blob, if it is kept.
    pub(crate) fn open(&self, digest: &Digest) -> Option<File> {
        File::open(self.path(digest)).ok()
    }

    /// A whole file that was verified gets its place here.
    pub(crate) fn adopt(&self, digest: &Digest, path: &Path) -> io::Result<()> {
        let home = self.path(digest);
        home.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::rename(path, home)
    }

    /// While the claim lives, [`remove_unneeded`](Self::remove_unneeded) lets these stay.
    pub(crate) fn hold(self: &Arc<Self>, digests: Vec<Digest>) -> BlobHold {
        let mut inner = self.inner();
        for digest in &digests {
            *inner.held.entry(digest.clone()).or_default() += 1;
        }
        BlobHold { blobs: self.clone(), digests }
    }

    /// All whole blobs.
    pub(crate) fn list(&self) -> Vec<KeptBlob> {
        let algorithms = entries(&self.kept());
        algorithms.iter().flat_map(|dir| entries(dir)).filter_map(|path| kept(&path)).collect()
    }

    /// Removes a whole blob; none is well.
    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        gone(std::fs::remove_file(self.path(digest)))
    }

    /// Removes the whole blobs that are neither claimed nor needed, and returns them. What is
    /// needed is asked after the claims were looked at; `None`: not known, so nothing goes.
    pub(crate) fn remove_unneeded(
        &self,
        needed: impl FnOnce() -> Option<HashSet<Digest>>,
    ) -> Vec<KeptBlob> {
        let mut all = self.list();
        if all.is_empty() {
            return all;
        }
        // While the lock is held nobody claims a blob, and none gets its name.
        let inner = self.inner();
        all.retain(|blob| {
            !inner.held.contains_key(&blob.digest) && !inner.spooling.contains(&blob.digest)
        });
        let Some(needed) = needed() else { return Vec::new() };
        all.retain(|blob| !needed.contains(&blob.digest));
        all.retain(|blob| match self.remove(&blob.digest) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(digest = %blob.digest, %error, "blob not removed");
                false
            }
        });
        all
    }

    /// Bytes and files of whole and partial blobs.
    #[cfg(test)]
    fn usage(&self) -> (u64, u64) {
        let whole = self.list().into_iter().map(|blob| blob.size);
        let partial = self.partial_files().into_iter().map(|file| file.length);
        whole.chain(partial).fold((0, 0), |(bytes, files), size| (bytes + size, files + 1))
    }

    /// Begins to write a blob, or goes on with what came of it before.
    pub(crate) fn spool(self: &Arc<Self>, digest: &Digest, from: From) -> io::Result<Begun> {
        if !self.inner().spooling.insert(digest.clone()) {
            return Ok(Begun::Busy);
        }
        let claim = Claim { blobs: self.clone(), digest: digest.clone() };
        let path = |offset| {
            let name = format!("{}-{}.{offset}", digest.algorithm(), digest.hex());
            self.partials().join(name)
        };
        let (offset, length) = match from {
            From::Offset(offset) => {
                self.remove_partial(digest);
                (offset, 0)
            }
            From::Earlier => match self.partial(digest) {
                Some(found) => (found.offset, found.length),
                None => return Ok(Begun::Nothing),
            },
        };
        std::fs::create_dir_all(self.partials())?;
        let path = path(offset);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        Ok(Begun::Spool(Spool { path, file, offset, length, claim }))
    }

    fn partial(&self, digest: &Digest) -> Option<PartialFile> {
        self.partial_files().into_iter().find(|file| file.digest == *digest)
    }

    /// Throws away what came of a blob before.
    pub(crate) fn remove_partial(&self, digest: &Digest) {
        for file in self.partial_files().into_iter().filter(|file| file.digest == *digest) {
            let _ = std::fs::remove_file(&file.path);
        }
    }

    fn partial_files(&self) -> Vec<PartialFile> {
        entries(&self.partials()).iter().filter_map(|path| partial_file(path)).collect()
    }

    /// Removes partial blobs that are older than `max_age`, and the oldest as long as all
    /// together have more than `max_bytes`. Those being written stay.
    pub(crate) fn trim_partials(&self, max_bytes: u64, max_age: Duration) {
        let mut files = self.partial_files();
        files.sort_by_key(|file| std::cmp::Reverse(file.written));
        let inner = self.inner();
        let mut total = 0_u64;
        for file in files {
            total = total.saturating_add(file.length);
            let old = file.written.elapsed().is_ok_and(|age| age > max_age);
            if (old || total > max_bytes) && !inner.spooling.contains(&file.digest) {
                total = total.saturating_sub(file.length);
                if let Err(error) = gone(std::fs::remove_file(&file.path)) {
                    tracing::warn!(path = %file.path.display(), %error, "cannot remove");
                }
            }
        }
    }
}

/// Where a spool begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// Anew, with the blob's byte of this number.
    Offset(u64),
    /// Where an earlier one was broken off; none is well.
    Earlier,
}

/// What became of a spool that was asked for.
#[derive(Debug)]
pub(crate) enum Begun {
    Spool(Spool),
    /// Another is writing it, or writes its last bytes: [`Blobs::released`] tells.
    Busy,
    /// There is nothing to go on with.
    Nothing,
}

/// See [`Blobs::hold`].
#[derive(Debug)]
pub(crate) struct BlobHold {
    blobs: Arc<Blobs>,
    digests: Vec<Digest>,
}

impl Drop for BlobHold {
    fn drop(&mut self) {
        let mut inner = self.blobs.inner();
        for digest in &self.digests {
            let left = inner.held.get(digest).map_or(0, |count| count.saturating_sub(1));
            if left == 0 {
                inner.held.remove(digest);
            } else {
                inner.held.insert(digest.clone(), left);
            }
        }
    }
}

/// The right to write one blob.
#[derive(Debug)]
struct Claim {
    blobs: Arc<Blobs>,
    digest: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.blobs.inner().spooling.remove(&self.digest);
        self.blobs.released.notify_waiters();
    }
}

/// A blob being written. Dropped, what was written stays for a later download.
#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
    file: File,
    /// The number of the blob's first byte in the file.
    pub(crate) offset: u64,
    /// Bytes in the file.
    pub(crate) length: u64,
    claim: Claim,
}

impl Spool {
    /// What was written before, to be read from its beginning.
    pub(crate) fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// The whole blob is in the file and verified: it gets its name.
    pub(crate) fn keep(self) -> io::Result<()> {
        let home = self.claim.blobs.path(&self.claim.digest);
        home.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::rename(&self.path, home)
    }

    /// What was written is of no use.
    pub(crate) fn discard(self) {
        if let Err(error) = gone(std::fs::remove_file(&self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove");
        }
    }
}

struct PartialFile {
    path: PathBuf,
    digest: Digest,
    offset: u64,
    length: u64,
    written: SystemTime,
}

fn partial_file(path: &Path) -> Option<PartialFile> {
    let (name, offset) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let (algorithm, hex) = name.split_once('-')?;
    let about = std::fs::metadata(path).ok()?;
    Some(PartialFile {
        path: path.to_owned(),
        digest: Digest::parse(&format!("{algorithm}:{hex}")).ok()?,
        offset: offset.parse().ok()?,
        length: about.len(),
        written: about.modified().ok()?,
    })
}

fn kept(path: &Path) -> Option<KeptBlob> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    let hex = path.file_name()?.to_str()?;
    let digest = Digest::parse(&format!("{algorithm}:{hex}")).ok()?;
    Some(KeptBlob { digest, size: std::fs::metadata(path).ok()?.len() })
}

/// None where the directory is not there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .map(|list| list.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn begun(blobs: &Arc<Blobs>, digest: &Digest, from: From) -> Spool {
        match blobs.spool(digest, from).unwrap() {
            Begun::Spool(spool) => spool,
            other => panic!("{other:?}"),
        }
    }

    fn content(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_came_is_gone_on_with_and_then_kept() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(root.path());
        let digest = Digest::of(b"one two");
        assert!(matches!(blobs.spool(&digest, From::Earlier), Ok(Begun::Nothing)));
        let mut spool = begun(&blobs, &digest, From::Offset(0));
        assert!(matches!(blobs.spool(&digest, From::Offset(0)), Ok(Begun::Busy)), "one writes it");
        spool.write(b"one ").unwrap();
        drop(spool);
        // As another process finds it.
        let blobs = Blobs::new(root.path());
        let mut spool = begun(&blobs, &digest, From::Earlier);
        assert_eq!((spool.offset, spool.length), (0, 4));
        assert_eq!(content(spool.reader().unwrap()), "one ");
        spool.write(b"two").unwrap();
        assert!(blobs.open(&digest).is_none());
        spool.keep().unwrap();
        assert_eq!(content(blobs.open(&digest).unwrap()), "one two");
        assert_eq!(blobs.list(), [KeptBlob { digest: digest.clone(), size: 7 }]);
        assert_eq!(blobs.usage(), (7, 1));
        let hold = blobs.hold(vec![digest.clone(), digest.clone()]);
        assert!(blobs.remove_unneeded(|| Some(HashSet::new())).is_empty(), "it is claimed");
        drop(hold);
        assert!(
            blobs.remove_unneeded(|| Some(HashSet::from([digest.clone()]))).is_empty(),
            "it is needed"
        );
        assert_eq!(blobs.remove_unneeded(|| Some(HashSet::new())).len(), 1);
        assert_eq!(blobs.usage(), (0, 0));
    }

    #[test]
    fn another_beginning_replaces_what_came_before() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(root.path());
        let digest = Digest::of(b"x");
        for offset in [0, 77] {
            let mut spool = begun(&blobs, &digest, From::Offset(offset));
            spool.write(b"abc").unwrap();
        }
        let spool = begun(&blobs, &digest, From::Earlier);
        assert_eq!((spool.offset, spool.length), (77, 3));
        spool.discard();
        assert_eq!(blobs.usage(), (0, 0));
    }

    #[test]
    fn partial_blobs_are_bounded_in_age_and_size() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(root.path());
        let now = SystemTime::now();
        let digests: Vec<_> = (0..4_u8).map(|n| Digest::of(&[n])).collect();
        for (digest, age) in digests.iter().zip([0, 10, 20, 3000]) {
            let mut spool = begun(&blobs, digest, From::Offset(0));
            spool.write(&[0; 100]).unwrap();
            spool.file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        let writing = begun(&blobs, &digests[2], From::Earlier);
        blobs.trim_partials(1000, Duration::from_secs(1000));
        assert_eq!(blobs.usage(), (300, 3), "the oldest is gone");
        blobs.trim_partials(100, Duration::from_secs(1000));
        assert!(blobs.partial(&digests[0]).is_some() && blobs.partial(&digests[1]).is_none());
        assert!(blobs.partial(&digests[2]).is_some(), "it is being written");
        drop(writing);
        blobs.trim_partials(100, Duration::from_secs(1000));
        assert_eq!(blobs.usage(), (100, 1));
    }
}
