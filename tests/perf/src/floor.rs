//! What a pull of an image costs at the least: hashing, inflating and writing its files, with
//! nothing else around. One layer, two threads, as many layers at once as the image has.
//!
//! Left out are the network, names, owners, times, the store and durability: no runtime can be
//! faster than this with the same libraries on the same disk, and how far one is from it is what
//! the rest of it costs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 6;
const BLOCK: usize = 512;
const PER_DIRECTORY: u64 = 100;

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    /// From the first byte to the last file written (not synced).
    pub(crate) wall: Duration,
    /// The processor time of this process meanwhile.
    pub(crate) cpu: Duration,
}

/// Measures the floor of an image with these layers (gzip or Zstandard), writing into a new
/// directory in `dir`, which is removed again afterwards, outside the time.
pub(crate) fn measure(layers: &[&[u8]], dir: &Path) -> Result<Floor> {
    let dir = dir.join(format!("floor-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let (start, used) = (Instant::now(), cpu_time()?);
    let result = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, blob) in layers.iter().copied().enumerate() {
            let dir = dir.join(format!("layer-{number}"));
            threads.push(scope.spawn(move || layer(blob, &dir)));
        }
        threads.into_iter().try_for_each(|layer| layer.join().map_err(|_| panicked())?)
    });
    let floor = Floor { wall: start.elapsed(), cpu: cpu_time()?.saturating_sub(used) };
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    result.map(|()| floor)
}

/// getrusage(2) by way of proc(5): clock ticks of 10 ms.
fn cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn panicked() -> anyhow::Error {
    anyhow!("a thread panicked")
}

/// A buffer that goes round, and how much of it is filled.
type Chunk = (Vec<u8>, usize);

fn layer(blob: &[u8], dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let (full, chunks) = sync_channel::<Chunk>(CHUNKS);
    let (empty, returned) = sync_channel::<Chunk>(CHUNKS);
    for _ in 0..CHUNKS {
        empty.send((vec![0; CHUNK], 0))?;
    }
    thread::scope(|scope| {
        let inflating = scope.spawn(move || inflate(blob, &full, &returned));
        let written = write(&chunks, &empty, dir);
        inflating.join().map_err(|_| panicked())??;
        written
    })
}

fn inflate(blob: &[u8], full: &SyncSender<Chunk>, returned: &Receiver<Chunk>) -> Result<()> {
    let hashed = Hashed { rest: blob, hash: Sha256::new() };
    let gzip = blob.starts_with(&[0x1f, 0x8b]);
    let mut plain: Box<dyn Read> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(hashed))
    } else {
        Box::new(zstd::stream::read::Decoder::with_buffer(hashed)?)
    };
    while let Ok((mut bytes, _)) = returned.recv() {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match plain.read(rest)? {
                0 => break,
                count => filled += count,
            }
        }
        if full.send((bytes, filled)).is_err() || filled == 0 {
            break;
        }
    }
    Ok(())
}

/// The blob, hashed as it is read.
struct Hashed<'a> {
    rest: &'a [u8],
    hash: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.rest.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

impl std::io::BufRead for Hashed<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(self.rest.get(..self.rest.len().min(CHUNK)).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        let (used, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.hash.update(used);
        self.rest = rest;
    }
}

fn write(chunks: &Receiver<Chunk>, empty: &SyncSender<Chunk>, dir: &Path) -> Result<()> {
    let (mut hash, mut files) = (Sha256::new(), Files::new(dir));
    loop {
        let chunk = chunks.recv().map_err(|_| anyhow!("the layer cannot be inflated"))?;
        let bytes = chunk.0.get(..chunk.1).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        hash.update(bytes);
        files.take(bytes)?;
        // The other side has ended when it takes none back.
        let _ = empty.send(chunk);
    }
}

/// The regular files of a tar, numbered instead of named.
struct Files<'a> {
    dir: &'a Path,
    count: u64,
    header: Vec<u8>,
    file: Option<File>,
    left: usize,
    padding: usize,
}

impl<'a> Files<'a> {
    fn new(dir: &'a Path) -> Self {
        Self { dir, count: 0, header: Vec::new(), file: None, left: 0, padding: 0 }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let wanted = match (self.left, self.padding) {
                (0, 0) => BLOCK - self.header.len(),
                (0, padding) => padding,
                (left, _) => left,
            };
            let (piece, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            self.piece(piece)?;
        }
        Ok(())
    }

    fn piece(&mut self, piece: &[u8]) -> Result<()> {
        if self.left > 0 {
            if let Some(file) = &mut self.file {
                file.write_all(piece)?;
            }
            self.left -= piece.len();
            if self.left == 0 {
                self.file = None;
            }
        } else if self.padding > 0 {
            self.padding -= piece.len();
        } else {
            self.header.extend_from_slice(piece);
            if self.header.len() == BLOCK {
                let header = std::mem::take(&mut self.header);
                self.entry(&header)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &[u8]) -> Result<()> {
        let size = header.get(124..136).map(String::from_utf8_lossy).unwrap_or_default();
        let size = size.trim_matches(['\0', ' ']);
        self.left = if size.is_empty() { 0 } else { usize::from_str_radix(size, 8)? };
        self.padding = self.left.wrapping_neg() % BLOCK;
        if header.get(156) == Some(&b'0') {
            self.file = Some(File::create_new(self.next()?)?);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<PathBuf> {
        let dir = self.dir.join((self.count / PER_DIRECTORY).to_string());
        if self.count.is_multiple_of(PER_DIRECTORY) {
            fs::create_dir(&dir)?;
        }
        self.count += 1;
        Ok(dir.join(self.count.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use berth_tests::image::{Layer, Packing};
    use berth_tests::tar::{Entry, Kind, archive};

    use super::*;

    #[test]
    fn every_file_is_written_whole_and_nothing_stays() {
        let size = |n: usize| if n == 7 { CHUNK + 5 } else { n * 13 };
        let entry = |n| Entry::new(&format!("f{n}"), Kind::File(vec![7; size(n)]));
        let entries: Vec<_> = (0..120).map(entry).collect();
        let tar = archive(&entries);
        let dir = std::env::temp_dir().join(format!("berth-perf-floor-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        for packing in [Packing::Gzip, Packing::Zstd] {
            let layer = Layer::packed_well(&tar, packing).unwrap();
            super::layer(&layer.blob.bytes, &dir.join("one")).unwrap();
            for n in 0..120 {
                let path = dir.join(format!("one/{}/{}", n / 100, n + 1));
                assert_eq!(fs::read(path).unwrap().len(), size(n), "{n}");
            }
            fs::remove_dir_all(dir.join("one")).unwrap();
            let floor = measure(&[&layer.blob.bytes, &layer.blob.bytes], &dir).unwrap();
            assert!(floor.wall > Duration::ZERO);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        }
        assert!(measure(&[b"\x1f\x8bnothing of the kind"], &dir).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
