//! Records on disk: one line with a checksum, then JSON. A torn record is told from a good one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;

const MAGIC: &str = "berth-record ";
/// No record is longer: manifest and configuration have limits of their own.
const MAX_RECORD: u64 = 64 << 20;

/// Writes `record` under a temporary name and renames it to `path`. Nothing is synced.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let bytes = encode(record)?;
    let temporary = path.with_extension("new");
    let result =
        std::fs::write(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, path));
    if result.is_err() {
        // Whatever was written is no record; its name is overwritten next time.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// A record as it stands in its file.
pub(crate) fn encode(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut bytes = format!("{MAGIC}{}\n", Digest::of(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// Reads the record at `path`; a damaged one is an error of kind `InvalidData`, and so is
/// anything that is no regular file, such as a FIFO that nobody writes to.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
            return Err(damaged("is no regular file"));
        }
        file => File::from(file?),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_RECORD {
        return Err(damaged("is no regular file, or too long"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    let text = bytes.strip_prefix(MAGIC.as_bytes()).ok_or_else(|| damaged("is no record"))?;
    let end = text.iter().position(|&b| b == b'\n').ok_or_else(|| damaged("is cut short"))?;
    let (checksum, rest) = text.split_at(end);
    let json = rest.get(1..).unwrap_or_default();
    if Digest::of(json).as_str().as_bytes() != checksum {
        return Err(damaged("does not match its checksum"));
    }
    Ok(serde_json::from_slice(json)?)
}

/// The record is damaged, and no failing disk the reason.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::InvalidData | Kind::UnexpectedEof | Kind::NotFound)
        || matches!(error.kind(), Kind::NotADirectory | Kind::IsADirectory)
}

/// Makes a file's or directory's contents durable.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_or_is_known_to_be_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, &vec!["some", "words"]).unwrap();
        assert_eq!(read::<Vec<String>>(&path).unwrap(), ["some", "words"]);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read::<Vec<String>>(&path).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert!(read::<Vec<String>>(&path).is_err(), "flipped at {at}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
