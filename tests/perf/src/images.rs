//! The images that demo and benchmark run, made in this process around one static program.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use berth_tests::image::{Blob, Built, Image, Layer, Packing};
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

/// Layers of made-up files: text of words, which gzip takes to about a third, as it does with
/// program files, in sizes as a distribution has them.
pub(crate) fn large(layers: u32, mebibytes_per_layer: u32) -> Result<Built> {
    let layers = (0..layers).map(|layer| {
        let mut noise = Noise(u64::from(layer) + 1);
        let mut entries = vec![Entry::dir(&format!("layer{layer}"))];
        let mut left = usize::try_from(mebibytes_per_layer)? << 20;
        for file in 0_u32.. {
            let size = noise.file_size().min(left);
            let path = format!("layer{layer}/file{file}");
            entries.push(Entry::new(&path, Kind::File(noise.text(size))));
            left -= size;
            if left == 0 {
                break;
            }
        }
        Layer::packed(&archive(&entries), Packing::Gzip)
    });
    Ok(Image::new(layers.collect::<Result<_>>()?).build())
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
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Many small files, few large ones: 256 bytes to 8 MiB, each doubling as likely.
    fn file_size(&mut self) -> usize {
        let doublings = self.next() % 16;
        256_usize << doublings
    }

    /// Words of a small vocabulary with numbers between them.
    fn text(&mut self, size: usize) -> Vec<u8> {
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
    use super::*;

    #[test]
    fn the_large_image_is_the_same_every_time() {
        let (one, two) = (large(2, 1).unwrap(), large(2, 1).unwrap());
        assert_eq!(one.manifest.digest, two.manifest.digest);
        assert_eq!(one.blobs.len(), 3);
        let packed: usize = one.blobs.iter().map(|blob| blob.bytes.len()).sum();
        assert!((300_000..1_200_000).contains(&packed), "{packed} bytes of 2 MiB");
    }

    #[test]
    fn an_archive_holds_every_blob_and_the_index() {
        let image = large(1, 1).unwrap();
        let archive = oci_archive(&image, "localhost/x:1");
        let text = String::from_utf8_lossy(&archive);
        for blob in image.blobs.iter().chain([&image.manifest]) {
            assert!(text.contains(&blob.digest.replacen(':', "/", 1)));
        }
        assert!(text.contains("localhost/x:1"));
    }
}
