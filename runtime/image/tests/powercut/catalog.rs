//! The images that are pulled, all from one seed: what a file must hold can always be told.

use std::collections::BTreeMap;

use serde_json::json;

use crate::images::{Compression, Dialect, TestImage, image};
use crate::tarball::Tarball;

/// Random numbers that a seed brings back (splitmix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(length).collect()
    }
}

/// How many images there are.
pub(crate) const IMAGES: u64 = 8;

type Files = BTreeMap<String, Vec<u8>>;

/// One image: what is pushed, and each of its files.
pub(crate) struct Entry {
    pub(crate) tars: Vec<Vec<u8>>,
    pub(crate) files: Files,
}

/// Image `n`: a bottom layer that some share, and layers of its own, of which some leave their
/// parent directories out.
pub(crate) fn entry(seed: u64, n: u64) -> Entry {
    let mut files = Files::new();
    let mut tars =
        vec![layer(&mut Chance(seed ^ (n % 3)), &format!("base{}", n % 3), true, &mut files)];
    let mut chance = Chance(seed ^ (1000 + n));
    for own in 0..1 + n % 3 {
        let whole = (n + own).is_multiple_of(2);
        tars.push(layer(&mut chance, &format!("own{n}x{own}"), whole, &mut files));
    }
    Entry { tars, files }
}

fn layer(chance: &mut Chance, name: &str, whole: bool, files: &mut Files) -> Vec<u8> {
    let mut tar = Tarball::new();
    if whole {
        tar = tar.dir("data/", 0o755).dir(&format!("data/{name}/"), 0o750);
    }
    for file in 0..3 + chance.below(8) {
        let length = match chance.below(6) {
            0 => 0,
            1 => 4096,
            2 => 60_000,
            _ => chance.below(9000),
        };
        let content = chance.bytes(usize::try_from(length).unwrap());
        let path = format!("data/{name}/f{file}");
        tar = tar.file(&path, 0o640, &content);
        files.insert(path, content);
    }
    tar.symlink(&format!("data/{name}/link"), "f0").finish()
}

pub(crate) fn packed(entry: &Entry, n: u64) -> TestImage {
    image(&entry.tars, Dialect::Oci, Compression::Gzip, json!({"User": n.to_string()}))
}
