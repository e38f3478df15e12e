//! The members of an archive: files by name, in place or spooled to disk, and links among them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{archive_error, progress::LoadProgress};
use crate::digest::Digest;
use crate::error::Error;
use crate::store::layer::Staging;
use crate::store::{self, Store};
use crate::unpack::{self, MemberKind, Piece};

/// One read or write.
const PIECE: usize = 256 << 10;
/// Files, links and directories of one archive. Images have a few per layer.
const MAX_MEMBERS: usize = 1 << 16;
/// Bytes of one archive that are spooled.
const MAX_SPOOL: u64 = 64 << 30;
/// Links to links.
const MAX_LINKS: usize = 8;

/// What an archive holds. Dropped, it takes what was spooled along.
pub(super) struct Members {
    files: HashMap<String, Place>,
    links: HashMap<String, String>,
    /// Holds the files' bytes where they were spooled.
    _spool: Option<Staging>,
}

/// Where a member's bytes lie.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
    offset: u64,
    pub(super) length: u64,
    /// Of the bytes, where they went through our hands.
    digest: Option<Digest>,
}

impl Members {
    /// Those of a tar on disk, which must stay as it is meanwhile. A compressed one is spooled.
    pub(super) fn open(store: &Arc<Store>, path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(store::Error::io("open", path))?;
        let mut head = [0_u8; 4];
        let count = file.read(&mut head).map_err(store::Error::io("read", path))?;
        file.rewind().map_err(store::Error::io("read", path))?;
        if unpack::is_compressed(head.get(..count).unwrap_or_default()) {
            let raw = BufReader::with_capacity(PIECE, file);
            return Self::spool(store, raw, &LoadProgress::default());
        }
        let mut members = Self::new(None);
        unpack::each_member_in_place(BufReader::with_capacity(PIECE, file), |member, offset| {
            if let MemberKind::File { size } = member.kind {
                let place = Place { path: path.to_owned(), offset, length: size, digest: None };
                return members.add_file(&member.path, place);
            }
            members.add_other(&member.path, member.kind)
        })?;
        Ok(members)
    }

    /// Those of an archive that comes as a stream, plain or compressed. Blocks until its end.
    pub(super) fn receive(
        store: &Arc<Store>,
        pieces: mpsc::Receiver<Piece>,
        progress: &LoadProgress,
    ) -> Result<Self, Error> {
        let mut incoming = Incoming { pieces, current: Bytes::new(), progress, state: State::Open };
        let members = Self::spool(store, BufReader::with_capacity(PIECE, &mut incoming), progress);
        match incoming.state {
            // Whatever the reader made of it, the stream's own end says more.
            State::Cut => Err(Error::Cancelled),
            _ => members,
        }
    }

    /// A stream that is one file, as it comes: with what holds it, and where it lies.
    pub(super) fn receive_whole(
        store: &Arc<Store>,
        pieces: mpsc::Receiver<Piece>,
        progress: &LoadProgress,
    ) -> Result<(Self, Place), Error> {
        let staging = store.stage()?;
        let mut incoming = Incoming { pieces, current: Bytes::new(), progress, state: State::Open };
        let place = write(&staging.fs().join("0"), &mut (&mut incoming).take(MAX_SPOOL));
        match incoming.state {
            State::Cut => Err(Error::Cancelled),
            State::Open => {
                place?;
                Err(archive_error(format!("has more than {MAX_SPOOL} bytes")))
            }
            State::Ended => Ok((Self::new(Some(staging)), place?)),
        }
    }

    fn new(spool: Option<Staging>) -> Self {
        Self { files: HashMap::new(), links: HashMap::new(), _spool: spool }
    }

    fn spool(
        store: &Arc<Store>,
        raw: impl std::io::BufRead,
        progress: &LoadProgress,
    ) -> Result<Self, Error> {
        let staging = store.stage()?;
        let dir = staging.fs();
        let mut members = Self::new(Some(staging));
        let mut left = MAX_SPOOL;
        let mut seen = 0_usize;
        let read = unpack::each_member(raw, |member, content| {
            seen += 1;
            let MemberKind::File { size } = member.kind else {
                return members.add_other(&member.path, member.kind);
            };
            left = left.checked_sub(size).ok_or_else(|| {
                archive_error(format!("has more than {MAX_SPOOL} bytes of content"))
            })?;
            let place = write(&dir.join(format!("{seen:x}")), content)?;
            progress.spooled(place.length);
            members.add_file(&member.path, place)
        });
        match read {
            Err(Error::Unpack(unpack::Error::Tar(_))) if seen == 0 => {
                Err(archive_error("is no tar, neither plain nor in gzip or zstd".to_owned()))
            }
            Ok(()) if seen == 0 => Err(archive_error("is empty".to_owned())),
            read => read.map(|()| members),
        }
    }

    fn add_file(&mut self, name: &str, place: Place) -> Result<(), Error> {
        let name = normal(name)?;
        self.room()?;
        match self.files.get(&name) {
            Some(known) if known.length != place.length || known.digest()? != place.digest()? => {
                Err(archive_error(format!("has two members {name:?} that differ")))
            }
            _ => {
                self.files.insert(name, place);
                Ok(())
            }
        }
    }

    /// Directories need no record; what is neither file nor link has no place in an archive.
    fn add_other(&mut self, name: &str, kind: MemberKind) -> Result<(), Error> {
        let normal_name = normal(name)?;
        let target = match kind {
            MemberKind::Directory | MemberKind::File { .. } => return Ok(()),
            MemberKind::Other => {
                return Err(archive_error(format!("has a device or pipe {name:?}")));
            }
            MemberKind::HardLink { target } => normal(&target)?,
            MemberKind::SymLink { target } => relative(&normal_name, &target)?,
        };
        self.room()?;
        self.links.insert(normal_name, target);
        Ok(())
    }

    fn room(&self) -> Result<(), Error> {
        if self.files.len() + self.links.len() < MAX_MEMBERS {
            return Ok(());
        }
        Err(archive_error(format!("has more than {MAX_MEMBERS} members")))
    }

    /// Whether there is such a file, or a link to one.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// The file of this name, through links.
    pub(super) fn find(&self, name: &str) -> Result<&Place, Error> {
        let mut at = normal(name)?;
        for _ in 0..MAX_LINKS {
            if let Some(place) = self.files.get(&at) {
                return Ok(place);
            }
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => break,
            }
        }
        Err(archive_error(format!("has no {name}")))
    }

    /// A small file, whole.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let place = self.find(name)?;
        let length = place.length;
        if length > limit {
            return Err(archive_error(format!("{name} has {length} bytes, more than {limit}")));
        }
        let mut bytes = Vec::new();
        let mut file = place.open()?;
        file.read_to_end(&mut bytes).map_err(store::Error::io("read", &place.path))?;
        Ok(bytes)
    }
}

impl Place {
    /// Its bytes.
    pub(super) fn open(&self) -> Result<impl Read + use<>, Error> {
        let fail = || store::Error::io("read", &self.path);
        let mut file = File::open(&self.path).map_err(fail())?;
        file.seek(SeekFrom::Start(self.offset)).map_err(fail())?;
        Ok(file.take(self.length))
    }

    /// The digest of its bytes, computed now where it is not known.
    pub(super) fn digest(&self) -> Result<Digest, Error> {
        if let Some(digest) = &self.digest {
            return Ok(digest.clone());
        }
        let mut hasher = Digest::of(b"").hasher();
        let mut file = self.open()?;
        let mut piece = vec![0_u8; PIECE];
        loop {
            let count = file.read(&mut piece).map_err(store::Error::io("read", &self.path))?;
            if count == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(piece.get(..count).unwrap_or_default());
        }
    }

    /// The digest where it is known without reading.
    pub(super) fn known_digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The file that has these bytes and nothing else, if they were spooled and are the blob.
    pub(super) fn spooled_as(&self, digest: &Digest) -> Option<&Path> {
        (self.digest.as_ref() == Some(digest)).then_some(self.path.as_path())
    }

    /// Its first bytes, by which formats are told.
    pub(super) fn head(&self) -> Result<Vec<u8>, Error> {
        let mut head = Vec::new();
        let mut start = self.open()?.take(4);
        start.read_to_end(&mut head).map_err(store::Error::io("read", &self.path))?;
        Ok(head)
    }

    /// Brings its bytes piece by piece. A receiver that went away is no error.
    pub(super) fn send(&self, to: &mpsc::Sender<Piece>) -> Result<(), Error> {
        let mut file = self.open()?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            file.by_ref()
                .take(PIECE as u64)
                .read_to_end(&mut piece)
                .map_err(store::Error::io("read", &self.path))?;
            let end = piece.is_empty();
            let next = if end { Piece::End } else { Piece::Data(Bytes::from(piece)) };
            if to.blocking_send(next).is_err() || end {
                return Ok(());
            }
        }
    }
}

/// As [`Place::open`] gives it, for those who read little at a time.
pub(super) fn buffered(file: impl Read) -> BufReader<impl Read> {
    BufReader::with_capacity(PIECE, file)
}

/// Writes a member's bytes to a file of its own.
fn write(path: &Path, content: &mut dyn Read) -> Result<Place, Error> {
    let mut file = File::create_new(path).map_err(store::Error::io("make", path))?;
    let mut hasher = Digest::of(b"").hasher();
    let mut piece = vec![0_u8; PIECE];
    let mut length = 0_u64;
    loop {
        let count = content.read(&mut piece).map_err(unpack::archive_read_error)?;
        let bytes = piece.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            let digest = Some(hasher.finish());
            return Ok(Place { path: path.to_owned(), offset: 0, length, digest });
        }
        hasher.update(bytes);
        file.write_all(bytes).map_err(store::Error::io("write", path))?;
        length = length.saturating_add(count as u64);
    }
}

/// A member's name without `./`, doubled and trailing slashes. One that climbs or starts at the
/// root is refused: no archive of images has any.
fn normal(name: &str) -> Result<String, Error> {
    let refused = || archive_error(format!("has a member {name:?} outside of itself"));
    if name.starts_with('/') || name.contains('\0') {
        return Err(refused());
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") { Err(refused()) } else { Ok(parts.join("/")) }
}

/// A symlink's target as a member's name. docker writes `../ID/layer.tar` for a layer that is in
/// the archive already.
fn relative(link: &str, target: &str) -> Result<String, Error> {
    let refused = || archive_error(format!("has a link {link:?} to {target:?}, outside of itself"));
    if target.starts_with('/') || target.contains('\0') {
        return Err(refused());
    }
    let mut at: Vec<&str> = link.split('/').collect();
    at.pop();
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." => drop(at.pop().ok_or_else(refused)?),
            part => at.push(part),
        }
    }
    Ok(at.join("/"))
}

/// How the stream stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Ended,
    /// It closed without its end: the caller has gone.
    Cut,
}

/// The incoming stream as a reader.
struct Incoming<'a> {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    progress: &'a LoadProgress,
    state: State,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() && self.state == State::Open {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => {
                    self.progress.received(data.len() as u64);
                    self.current = data;
                }
                Some(Piece::End) => self.state = State::Ended,
                None => self.state = State::Cut,
            }
        }
        if self.state == State::Cut {
            return Err(std::io::Error::other("cut short"));
        }
        let count = buffer.len().min(self.current.len());
        let taken = self.current.split_to(count);
        if let Some(to) = buffer.get_mut(..count) {
            to.copy_from_slice(&taken);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normal_or_refused() {
        for (name, want) in [("a/b", "a/b"), ("./a//b/", "a/b"), ("index.json", "index.json")] {
            assert_eq!(normal(name).unwrap(), want);
        }
        for name in ["/a", "../a", "a/../b", "a/..", "a\0b"] {
            let error = normal(name).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn links_stay_within_the_archive() {
        assert_eq!(relative("one/layer.tar", "../two/layer.tar").unwrap(), "two/layer.tar");
        assert_eq!(relative("a/b/c", "d").unwrap(), "a/b/d");
        for (link, target) in [("layer.tar", "../x"), ("a/b", "../../x"), ("a/b", "/etc/passwd")] {
            let error = relative(link, target).unwrap_err().to_string();
            assert!(error.contains(target), "{error}");
        }
    }
}
