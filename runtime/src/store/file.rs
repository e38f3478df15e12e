//! One record in one file: a line of header (version, checksum), then JSON.
//!
//! ```text
//! berth 1 <sha256 of all that follows this line>
//! {...}
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::StoreError;

/// The layout this build writes. Readers refuse newer ones.
const VERSION: u32 = 1;

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect()
}

/// Replaces the file by a rename; nothing is left behind when it fails.
pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), StoreError> {
    let failed = |source| StoreError { what: "write record", path: path.to_owned(), source };
    let body = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
    let temporary = path.with_extension("tmp");
    let written = write_through(&temporary, &body).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // The write has failed; what the removal says adds nothing.
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}

fn write_through(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut text = format!("berth {VERSION} {}\n", checksum(body)).into_bytes();
    text.extend_from_slice(body);
    let mut file = File::create(path)?;
    file.write_all(&text)
}

/// Reads what [`write`] wrote. A torn or foreign file is `InvalidData`.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    parse(&std::fs::read(path)?)
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> io::Result<T> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let end = text.iter().position(|b| *b == b'\n').ok_or_else(|| bad("no header"))?;
    let (head, body) = text.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| bad("no header"))?;
    let mut words = head.split(' ');
    if words.next() != Some("berth") {
        return Err(bad("no header"));
    }
    match words.next().and_then(|v| v.parse::<u32>().ok()) {
        Some(version) if version <= VERSION => {}
        _ => return Err(bad("written by a newer daemon")),
    }
    if words.next() != Some(checksum(body).as_str()) {
        return Err(bad("the checksum differs"));
    }
    serde_json::from_slice(body).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(version: u32, sum: &str, body: &str) -> Vec<u8> {
        format!("berth {version} {sum}\n{body}").into_bytes()
    }

    #[test]
    fn only_a_whole_record_of_a_known_version_is_read() {
        let sum = checksum(b"[1]");
        assert_eq!(parse::<Vec<u32>>(&text(1, &sum, "[1]")).unwrap(), [1]);
        for torn in [
            Vec::new(),
            b"[1]".to_vec(),
            text(1, &sum, "[1"),
            text(1, &sum, "[2]"),
            text(2, &sum, "[1]"),
            text(1, "", "[1]"),
        ] {
            let error = parse::<Vec<u32>>(&torn).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{torn:?}");
        }
    }
}
