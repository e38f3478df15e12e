//! The images that pulls are measured with.
//!
//! Their files are this machine's own programs, libraries and documents, since what a pull costs
//! depends on what it inflates: made-up bytes are either too easy or too hard. Both sides of a
//! comparison get the same image; from machine to machine it differs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use berth_tests::image::{Built, Image, Layer, Packing};
use berth_tests::tar::{Entry, Kind, archive};

use crate::images::Noise;

/// An image to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tree {
    /// Four layers of gzip.
    Gzip,
    /// The same layers, Zstandard.
    Zstd,
    /// One layer of gzip.
    Fat,
    /// Very many very small files in one layer of gzip.
    Files,
}

impl Tree {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Gzip, Self::Zstd, Self::Fat, Self::Files];

    /// Its tag.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::Gzip => "tree-gzip",
            Self::Zstd => "tree-zstd",
            Self::Fat => "tree-fat",
            Self::Files => "tree-files",
        }
    }

    /// Builds it; `quick` makes it a sixteenth of its size.
    pub(crate) fn build(self, quick: bool) -> Result<Built> {
        let part = if quick { 16 } else { 1 };
        let layers = match self {
            Self::Gzip => usr(4, LAYER / part, Packing::Gzip)?,
            Self::Zstd => usr(4, LAYER / part, Packing::Zstd)?,
            Self::Fat => usr(1, FAT / part, Packing::Gzip)?,
            Self::Files => vec![small_files(FILES / part)?],
        };
        Ok(Image::new(layers).build())
    }
}

/// Four of these are 867 MB.
const LAYER: u64 = 867_000_000 / 4;
const FAT: u64 = 204_000_000;
const FILES: u64 = 50_000;
const PER_DIRECTORY: u64 = 100;

/// What of a system an image usually has.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/lib", "/usr/libexec", "/usr/share"];

/// Layers of this machine's files, of about this size each before packing, no file twice.
fn usr(layers: usize, size: u64, packing: Packing) -> Result<Vec<Layer>> {
    let files = choose(size * layers as u64)?;
    let mut parts: Vec<Vec<PathBuf>> = vec![Vec::new()];
    let mut filled = 0;
    for (path, length) in files {
        if filled >= size && parts.len() < layers {
            parts.push(Vec::new());
            filled = 0;
        }
        filled += length;
        parts.last_mut().context("a part")?.push(path);
    }
    thread::scope(|scope| {
        let pack =
            |part: Vec<PathBuf>| scope.spawn(move || Layer::packed_well(&tar(&part)?, packing));
        let threads: Vec<_> = parts.into_iter().map(pack).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Layer>>| {
            thread.join().map_err(|_| anyhow::anyhow!("a layer could not be packed"))?
        };
        threads.into_iter().map(join).collect()
    })
}

/// Files of this machine, spread evenly over all there are, up to this size together.
fn choose(wanted: u64) -> Result<Vec<(PathBuf, u64)>> {
    let mut all = Vec::new();
    for place in PLACES {
        walk(Path::new(place), &mut all)?;
    }
    all.sort();
    all.dedup();
    // A toolchain's largest libraries are not what images are made of.
    all.retain(|(_, length)| *length <= wanted / 16);
    let total: u64 = all.iter().map(|(_, length)| length).sum();
    ensure!(total >= wanted, "/usr has {total} bytes of files; {wanted} are needed");
    // Every file whose share of the way is due: large and small ones alike, from all places.
    let (mut passed, mut taken) = (0_u64, 0_u64);
    all.retain(|(_, length)| {
        passed += length;
        let due = u128::from(passed) * u128::from(wanted) / u128::from(total);
        let take = u128::from(taken) < due;
        if take {
            taken += length;
        }
        take
    });
    Ok(all)
}

fn walk(dir: &Path, found: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push((entry.path(), entry.metadata()?.size()));
        }
    }
    Ok(())
}

/// A tar of these files, with an entry for every directory above them.
fn tar(files: &[PathBuf]) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut made: Vec<PathBuf> = Vec::new();
    for path in files {
        let inside = path.strip_prefix("/")?;
        let mut parents: Vec<&Path> =
            inside.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        parents.reverse();
        for parent in parents {
            // Files come sorted, so what was made last is what comes again.
            if !made.iter().rev().any(|dir| dir == parent) {
                made.push(parent.to_owned());
                entries.push(Entry::dir(text(parent)?));
            }
        }
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let mode = fs::metadata(path)?.mode() & 0o7777;
        entries.push(Entry::new(text(inside)?, Kind::File(bytes)).mode(mode));
    }
    Ok(archive(&entries))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// One layer of this many files of up to 4 KiB, a hundred to a directory.
fn small_files(count: u64) -> Result<Layer> {
    let mut noise = Noise::new(1);
    let mut entries = Vec::new();
    for file in 0..count {
        let dir = file / PER_DIRECTORY;
        if file % PER_DIRECTORY == 0 {
            entries.push(Entry::dir(&format!("dir{dir}")));
        }
        let size = usize::try_from(noise.next() % 4096)?;
        entries.push(Entry::new(&format!("dir{dir}/file{file}"), Kind::File(noise.text(size))));
    }
    Layer::packed_well(&archive(&entries), Packing::Gzip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_layers_and_about_the_size_that_were_asked_for() {
        let layers = usr(2, 1_000_000, Packing::Zstd).unwrap();
        assert_eq!(layers.len(), 2);
        let files = choose(2_000_000).unwrap();
        let size: u64 = files.iter().map(|(_, length)| length).sum();
        assert!((1_900_000..2_200_000).contains(&size), "{size}");
    }

    #[test]
    fn every_file_of_a_tar_has_its_directories_before_it() {
        let dir = std::env::temp_dir().join(format!("berth-perf-tree-{}", std::process::id()));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/one"), "1").unwrap();
        fs::write(dir.join("a/two"), "2").unwrap();
        let made = tar(&[dir.join("a/b/one"), dir.join("a/two")]);
        fs::remove_dir_all(&dir).unwrap();
        let names: Vec<String> = headers(&made.unwrap());
        let inside = dir.strip_prefix("/").unwrap().display().to_string();
        assert_eq!(names.last().unwrap(), &format!("{inside}/a/two"));
        assert_eq!(names.iter().filter(|name| **name == format!("{inside}/a")).count(), 1);
        let of = |name: &str| names.iter().position(|it| *it == format!("{inside}/{name}"));
        assert!(of("a").unwrap() < of("a/b").unwrap());
        assert!(of("a/b").unwrap() < of("a/b/one").unwrap());
    }

    /// The names in a tar of files shorter than a block.
    fn headers(tar: &[u8]) -> Vec<String> {
        let blocks = tar.chunks(512).filter(|block| block.get(257..262) == Some(b"ustar"));
        blocks
            .map(|block| {
                let name = block.get(..100).unwrap_or_default();
                String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
            })
            .collect()
    }
}
