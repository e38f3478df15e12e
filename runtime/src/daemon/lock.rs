//! One daemon per directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Others may pass through, not list: the socket may lie below.
const DIRECTORY_MODE: u32 = 0o711;
const NAME: &str = "lock";

/// A directory that no other daemon uses while this lives. The kernel gives the lock back when
/// the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Why the directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has it.
    #[error("{} is in use by another berthd (process {holder})", dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who has it, as the lock file says.
        holder: String,
    },
    /// The directory or its lock file can't be made.
    #[error("lock {}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Lock {
    /// Makes the directory where it is absent and locks it, without waiting.
    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { dir: dir.to_owned(), source };
        make_directory(dir).map_err(failed)?;
        let mut file = open(&dir.join(NAME)).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed)?;
                return Err(Error::Held { dir: dir.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        sign(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Makes a directory and its parents, with the daemon's mode.
pub(super) fn make_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes our process id, for the message of the next one. A full disk does not matter here.
fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let _unsigned = writeln!(file, "{}", std::process::id());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_dir::TestDir;

    #[test]
    fn a_directory_is_locked_once_and_free_again_after() {
        let dir = TestDir::new("lock");
        let path = dir.path().join("a/b");
        let first = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err();
        let holder = std::process::id().to_string();
        assert!(matches!(&error, Error::Held { holder: h, .. } if *h == holder), "{error}");
        drop(first);
        Lock::take(&path).unwrap();
    }
}
