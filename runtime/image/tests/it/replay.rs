//! The log of the kernel's dm-log-writes, and the disks that a power cut could have left
//! (<https://docs.kernel.org/admin-guide/device-mapper/log-writes.html>).
//!
//! On the log device: one sector with the header; then for each entry a sector that describes it
//! (for a mark, with the mark's text behind the description), and the data that was written.
//! A write is logged once a flush has followed it, so what stands between two flushes may have
//! reached the disk in any order, in part, or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// The unit of sector numbers in the header of a device with sectors of 512 bytes.
const SECTOR: u64 = 512;

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Where on the device, and how much, in sectors.
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where the data lies in the log, in bytes.
    data: u64,
    pub(crate) mark: Option<String>,
}

impl Entry {
    fn flushes(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// On the disk once it has been answered.
    fn forced(&self) -> bool {
        self.flags & FUA != 0
    }

    fn has_data(&self) -> bool {
        self.flags & (DISCARD | MARK) == 0 && self.sectors > 0
    }
}

/// A log, read whole but for its data.
pub(crate) struct Log {
    file: File,
    unit: u64,
    pub(crate) entries: Vec<Entry>,
}

impl Log {
    pub(crate) fn read(file: File) -> io::Result<Self> {
        let mut header = [0; 28];
        file.read_exact_at(&mut header, 0)?;
        let unit = u64::from(u32::from_le_bytes(header[24..].try_into().unwrap()));
        if number(&header, 0) != MAGIC || number(&header, 1) != 1 || !(512..=4096).contains(&unit) {
            return Err(io::Error::other(format!("no log of writes: {header:x?}")));
        }
        let mut log = Self { file, unit, entries: Vec::new() };
        let mut at = unit;
        for _ in 0..number(&header, 2) {
            let entry = log.entry(at)?;
            let data = if entry.has_data() { entry.sectors * unit } else { 0 };
            at = entry.data + data;
            log.entries.push(entry);
        }
        Ok(log)
    }

    fn entry(&self, at: u64) -> io::Result<Entry> {
        let mut bytes = vec![0; usize::try_from(self.unit).unwrap()];
        self.file.read_exact_at(&mut bytes, at)?;
        let flags = number(&bytes, 2);
        let length = usize::try_from(number(&bytes, 3)).unwrap();
        let text = bytes.get(32..32 + length).unwrap_or_default();
        Ok(Entry {
            sector: number(&bytes, 0),
            sectors: number(&bytes, 1),
            flags,
            data: at + self.unit,
            mark: (flags & MARK != 0)
                .then(|| String::from_utf8_lossy(text).trim_end_matches(['\0', '\n']).to_owned()),
        })
    }

    /// Entries from `from` on that are on the disk for certain when power fails at entry `until`:
    /// all up to the last flush before it.
    pub(crate) fn settled(&self, from: usize, until: usize) -> usize {
        let flush = self.entries[from..until].iter().rposition(Entry::flushes);
        flush.map_or(from, |at| from + at + 1)
    }

    /// Entries between a flush and the cut, as far as they reached the disk: what was forced, and
    /// of the rest what `lucky` says, cut short by sectors as it says.
    pub(crate) fn unsettled(
        &self,
        from: usize,
        until: usize,
        mut lucky: impl FnMut(&Entry) -> u64,
    ) -> Vec<Entry> {
        let reached = |entry: &Entry| {
            let sectors = if entry.forced() { entry.sectors } else { lucky(entry) };
            Entry { sectors: sectors.min(entry.sectors), ..entry.clone() }
        };
        self.entries[from..until].iter().map(reached).collect()
    }

    /// Writes an entry's data to where it was written.
    pub(crate) fn apply(&self, entry: &Entry, disk: &File) -> io::Result<()> {
        if !entry.has_data() {
            return Ok(());
        }
        let mut data = vec![0; usize::try_from(entry.sectors * self.unit).unwrap()];
        self.file.read_exact_at(&mut data, entry.data)?;
        disk.write_all_at(&data, entry.sector * SECTOR.max(self.unit))
    }
}

impl Entry {
    /// How many sectors it wrote.
    pub(crate) fn length(&self) -> u64 {
        self.sectors
    }
}

fn number(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap())
}

/// A log of these entries: (sector, flags, data or mark).
fn write_log(entries: &[(u64, u64, &[u8])]) -> File {
    let file = tempfile::tempfile().unwrap();
    let mut bytes = Vec::new();
    for value in [MAGIC, 1, entries.len() as u64, SECTOR] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(512), 0);
    for (sector, flags, data) in entries {
        pad(&mut bytes);
        let mark = flags & MARK != 0;
        let length = data.len() as u64;
        let (sectors, text) = if mark { (0, length) } else { (length / SECTOR, 0) };
        for value in [*sector, sectors, *flags, text] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        if !mark {
            pad(&mut bytes);
        }
        bytes.extend_from_slice(data);
    }
    pad(&mut bytes);
    file.write_all_at(&bytes, 0).unwrap();
    file
}

#[test]
fn a_log_is_read_as_it_was_written() {
    let (a, b) = ([b'a'; 1024], [b'b'; 512]);
    let log = write_log(&[
        (8, 0, &a),
        (0, FLUSH, &[]),
        (0, MARK, b"have x"),
        (9, FUA, &b),
        (100, DISCARD, &[]),
        (2, FLUSH | FUA, &b),
    ]);
    let log = Log::read(log).unwrap();
    assert_eq!(log.entries.len(), 6);
    assert_eq!(log.entries[2].mark.as_deref(), Some("have x"));
    let disk = tempfile::tempfile().unwrap();
    log.entries.iter().for_each(|entry| log.apply(entry, &disk).unwrap());
    let mut bytes = vec![0; 12 * 512];
    let length = disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!(length, 10 * 512, "the mark and the discard write nothing");
    assert!(bytes[1024..1536].iter().all(|byte| *byte == b'b'));
    assert!(bytes[8 * 512..9 * 512].iter().all(|byte| *byte == b'a'));
    assert!(bytes[9 * 512..10 * 512].iter().all(|byte| *byte == b'b'), "the later write");
    assert!(Log::read(tempfile::tempfile().unwrap()).is_err());
    assert!(Log::read(write_log(&[])).unwrap().entries.is_empty());
}

#[test]
fn only_what_no_flush_followed_may_be_lost() {
    let block = [b'x'; 1024];
    let log = write_log(&[
        (0, 0, &block),
        (0, FLUSH, &[]),
        (2, 0, &block),
        (4, FUA, &block),
        (6, 0, &block),
        (0, FLUSH, &[]),
    ]);
    let log = Log::read(log).unwrap();
    assert_eq!([0, 1, 2, 5, 6].map(|until| log.settled(0, until)), [0, 0, 2, 2, 6]);
    let sectors = |until, lucky| -> Vec<u64> {
        log.unsettled(2, until, |_| lucky).iter().map(Entry::length).collect()
    };
    assert_eq!(sectors(5, 0), [0, 2, 0], "what was forced is there");
    assert_eq!(sectors(5, 1), [1, 2, 1], "torn");
    assert_eq!(sectors(3, 9), [2]);
}
