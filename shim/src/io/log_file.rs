//! A container's log file, which may stand on a full or failing disk.
//!
//! Writing never fails for the caller: what cannot be written is dropped and counted, and as soon
//! as writing works again a line tells how much is missing. The file never holds half a line.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::lines::{self, PREFIX_LEN, Stream};

/// An open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: OwnedFd,
    /// Bytes of content dropped since the log was opened first.
    lost: u64,
    /// Of these, the ones that no line tells of yet, and why the last of them were lost.
    untold: u64,
    reason: Option<Errno>,
}

impl LogFile {
    /// Opens the file for appending; makes it (mode 0640) and its directory where absent.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let file = open(path)?;
        Ok(Self { path: path.to_owned(), file, lost: 0, untold: 0, reason: None })
    }

    /// Opens the same path anew: the old file was renamed. On an error the old one stays open.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of content that could not be written.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends whole lines.
    pub(crate) fn write(&mut self, batch: &[u8]) {
        if self.tell_loss().is_err() {
            self.lose(batch);
        } else if let Err((written, errno)) = append(&self.file, batch) {
            self.reason = Some(errno);
            self.lose(batch.get(written..).unwrap_or_default());
        }
    }

    /// Writes the line that tells of a loss, if there is one to tell of.
    pub(crate) fn tell_loss(&mut self) -> Result<(), Errno> {
        let Some(reason) = self.reason.filter(|_| self.untold > 0) else { return Ok(()) };
        let text = format!("berth: {} bytes of log were lost: {}", self.untold, plain(reason));
        match append(&self.file, &lines::full_line(Stream::Stderr, &text)) {
            Ok(()) => {
                self.untold = 0;
                self.reason = None;
                Ok(())
            }
            Err((_, errno)) => {
                self.reason = Some(errno);
                Err(errno)
            }
        }
    }

    fn lose(&mut self, batch: &[u8]) {
        if self.untold == 0 {
            let reason = self.reason.map(plain).unwrap_or_default();
            crate::log::say(format_args!("write {}: {reason}; log is lost", self.path.display()));
        }
        let frames = memchr::memchr_iter(b'\n', batch).count() * PREFIX_LEN;
        let content = u64::try_from(batch.len().saturating_sub(frames)).unwrap_or(u64::MAX);
        self.lost = self.lost.saturating_add(content);
        self.untold = self.untold.saturating_add(content);
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        // A container that can write to the log's directory must not lead us to another file.
        | OFlags::NOFOLLOW
        // Nothing that blocks an open (a FIFO in the log's place) may stop the shim.
        | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?)
}

/// The error's text without the number that Rust adds.
fn plain(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Appends all of `batch`, or whole lines of it and an error. On an error gives how many bytes
/// of `batch` stand in the file.
fn append(file: &OwnedFd, batch: &[u8]) -> Result<(), (usize, Errno)> {
    let mut written = 0;
    loop {
        let rest = batch.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        match rustix::io::write(file, rest) {
            Ok(0) => return Err((take_back(file, batch, written), Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err((take_back(file, batch, written), errno)),
        }
    }
}

/// Cuts off the half line that a failed write left, and gives how many bytes of `batch` stay.
/// Nobody else writes to the file. Where the cut fails too, the half line stays.
fn take_back(file: &OwnedFd, batch: &[u8], written: usize) -> usize {
    let done = batch.get(..written).unwrap_or_default();
    let whole = memchr::memrchr(b'\n', done).map_or(0, |end| end + 1);
    let torn = u64::try_from(written - whole).unwrap_or_default();
    if torn > 0 {
        let cut = rustix::fs::fstat(file).and_then(|stat| {
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            rustix::fs::ftruncate(file, size.saturating_sub(torn))
        });
        if let Err(error) = cut {
            crate::log::say(format_args!("half a line stays in a log: {error}"));
        }
    }
    whole
}
