//! The images that demo and benchmark run, made in this process around one static program.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use berth_tests::image::{Blob, Built, Image, Layer};
use berth_tests::tar::{Entry, Kind, archive};
use serde_json::json;

/// Where the program lies in the images.
pub(crate) const APP: &str = "/berth-app";

/// The program and the directories a container expects.
pub(crate) fn app(program: &Path) -> Result<Built> {
    let entries = [
        executable("berth-app", program)?,
        Entry::dir("etc"),
        Entry::file("etc/passwd", "root:x:0:0:root:/:/berth-app\napp:x:1000:1000::/:/berth-app\n"),
        Entry::file("etc/group", "root:x:0:\napp:x:1000:\n"),
        Entry::dir("tmp").mode(0o1777),
    ];
    let config = json!({"Entrypoint": [APP], "Cmd": ["pause"], "Env": ["PATH=/"]});
    Ok(Image::new(vec![Layer::new(&entries)?]).config(config).build())
}

/// The same program under the name `pause`: a container that does nothing.
pub(crate) fn pause(program: &Path) -> Result<Built> {
    let layer = Layer::new(&[executable("pause", program)?])?;
    Ok(Image::new(vec![layer]).config(json!({"Entrypoint": ["/pause"]})).build())
}

/// The image as an OCI image layout in a tar, under this name.
pub(crate) fn oci_archive(image: &Built, name: &str) -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": image.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.bytes.len(),
            "annotations": {
                "org.opencontainers.image.ref.name": name,
                "io.containerd.image.name": name,
            },
        }],
    });
    let mut entries = vec![
        Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        Entry::file("index.json", &index.to_string()),
        Entry::dir("blobs"),
        Entry::dir("blobs/sha256"),
    ];
    let blobs = image.blobs.iter().chain([&image.manifest]);
    entries.extend(blobs.map(|Blob { digest, bytes }| {
        let path = format!("blobs/{}", digest.replacen(':', "/", 1));
        Entry::new(&path, Kind::File(bytes.clone()))
    }));
    archive(&entries)
}

fn executable(name: &str, program: &Path) -> Result<Entry> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    Ok(Entry::new(name, Kind::File(bytes)).mode(0o755))
}

/// The same bytes in every run (xorshift64).
pub(crate) struct Noise(u64);

impl Noise {
    /// A stream of its own for every seed but 0, which gives nothing.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Words of a small vocabulary with numbers between them.
    pub(crate) fn text(&mut self, size: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "anchor", "berth", "cargo", "dock", "engine", "freight", "gangway", "harbour", "keel",
            "lading", "manifest", "pilot", "quay", "rudder", "stowage", "tide",
        ];
        let mut out = Vec::with_capacity(size + 64);
        while out.len() < size {
            let draw = self.next();
            let word = usize::try_from(draw % 16).ok().and_then(|index| WORDS.get(index));
            out.extend(word.copied().unwrap_or_default().as_bytes());
            out.extend(format!(" {:x}\n", draw >> 44).as_bytes());
        }
        out.truncate(size);
        out
    }
}

#[cfg(test)]
mod tests {
    use berth_tests::image::Packing;

    use super::*;

    #[test]
    fn made_up_text_is_the_same_every_time_and_packs_like_text() {
        let text = Noise::new(7).text(1 << 20);
        assert_eq!(text, Noise::new(7).text(1 << 20));
        let packed = Layer::packed(&text, Packing::Gzip).unwrap().blob.bytes.len();
        assert!((150_000..700_000).contains(&packed), "{packed} bytes of 1 MiB");
    }

    #[test]
    fn an_archive_holds_every_blob_and_the_index() {
        let text = String::from_utf8(Noise::new(1).text(5000)).unwrap();
        let layer = Layer::new(&[Entry::file("text", &text)]).unwrap();
        let image = Image::new(vec![layer]).build();
        let archive = oci_archive(&image, "localhost/x:1");
        let text = String::from_utf8_lossy(&archive);
        for blob in image.blobs.iter().chain([&image.manifest]) {
            assert!(text.contains(&blob.digest.replacen(':', "/", 1)));
        }
        assert!(text.contains("localhost/x:1"));
    }
}
