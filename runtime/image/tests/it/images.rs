//! Making images: layers, configuration, manifest; as OCI or docker has them.

use std::io::Write;

use berth_image::Digest;
use serde_json::{Value, json};

use crate::tarball::Tarball;

/// A blob with its media type.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub(crate) fn descriptor(&self) -> Value {
        let (media_type, size) = (&self.media_type, self.bytes.len());
        json!({"mediaType": media_type, "digest": self.digest().as_str(), "size": size})
    }
}

/// Whose media types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Dialect {
    Oci,
    Docker,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    MultiGzip,
    Zstd,
}

/// All of one image.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Blob>,
    pub(crate) config: Blob,
    pub(crate) manifest: Blob,
}

impl TestImage {
    pub(crate) fn id(&self) -> Digest {
        self.config.digest()
    }
}

pub(crate) fn compress(tar: &[u8], compression: Compression) -> Vec<u8> {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    match compression {
        Compression::Plain => tar.to_vec(),
        Compression::Gzip => gzip(tar),
        Compression::MultiGzip => {
            let (a, b) = tar.split_at(tar.len() / 2);
            [gzip(a), gzip(b)].concat()
        }
        Compression::Zstd => zstd::encode_all(tar, 3).unwrap(),
    }
}

pub(crate) fn layer(tar: &[u8], dialect: Dialect, compression: Compression) -> Blob {
    let media_type = match (dialect, compression) {
        (Dialect::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Dialect::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Dialect::Oci, _) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Dialect::Docker, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (Dialect::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    };
    Blob { media_type: media_type.to_owned(), bytes: compress(tar, compression) }
}

pub(crate) fn config_json(tars: &[Vec<u8>], settings: Value) -> Value {
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// An image of these tars, bottom first.
pub(crate) fn image(
    tars: &[Vec<u8>],
    dialect: Dialect,
    compression: Compression,
    settings: Value,
) -> TestImage {
    let layers = tars.iter().map(|tar| layer(tar, dialect, compression)).collect();
    assemble(layers, &config_json(tars, settings), dialect)
}

pub(crate) fn assemble(layers: Vec<Blob>, config: &Value, dialect: Dialect) -> TestImage {
    let (config_type, manifest_type) = match dialect {
        Dialect::Oci => (
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
        ),
        Dialect::Docker => (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
    };
    let config =
        Blob { media_type: config_type.to_owned(), bytes: serde_json::to_vec(config).unwrap() };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config.descriptor(),
        "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
    });
    let bytes = serde_json::to_vec(&manifest).unwrap();
    TestImage { layers, config, manifest: Blob { media_type: manifest_type.to_owned(), bytes } }
}

/// An index of manifests, each with its platform as `os/arch[/variant]`.
pub(crate) fn index(entries: &[(&Blob, &str)], dialect: Dialect) -> Blob {
    let media_type = match dialect {
        Dialect::Oci => "application/vnd.oci.image.index.v1+json",
        Dialect::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let entry = |(blob, platform): &(&Blob, &str)| {
        let mut entry = blob.descriptor();
        let mut parts = platform.split('/');
        entry["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
        if let Some(variant) = parts.next() {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    };
    let manifests: Vec<_> = entries.iter().map(entry).collect();
    let document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    Blob { media_type: media_type.to_owned(), bytes: serde_json::to_vec(&document).unwrap() }
}

/// A tar of an OCI image layout with these images, each with its annotations.
pub(crate) fn oci_archive(images: &[(&TestImage, &[(&str, &str)])]) -> Vec<u8> {
    let mut tar = Tarball::new().file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    let mut manifests = Vec::new();
    for (image, annotations) in images {
        for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
            let name = format!("blobs/{}", blob.digest().as_str().replace(':', "/"));
            tar = tar.file(&name, 0o644, &blob.bytes);
        }
        let mut entry = image.manifest.descriptor();
        entry["annotations"] = annotations.iter().copied().collect();
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    tar.file("index.json", 0o644, &serde_json::to_vec(&index).unwrap()).finish()
}
