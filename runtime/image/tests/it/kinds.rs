//! Kinds of layers beside the usual ones.

use serde_json::json;

use crate::faults::bad_image;
use crate::images::{Blob, Compression, Dialect, TestImage, assemble, config_json, layer};
use crate::liar::Liar;
use crate::pull::{pull, store};
use crate::tarball::Tarball;

fn tar(content: &str) -> Vec<u8> {
    Tarball::new().file("which", 0o644, content.as_bytes()).finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_not_to_be_distributed_are_pulled_where_they_are_served() {
    let (_dir, store) = store().await;
    let liar = Liar::start();
    for (packing, compression) in
        [("", Compression::Plain), ("+gzip", Compression::Gzip), ("+zstd", Compression::Zstd)]
    {
        let tar = tar(packing);
        let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
        let media_type = format!("{kind}{packing}");
        let layer = Blob { media_type, ..layer(&tar, Dialect::Oci, compression) };
        let image = assemble(vec![layer], &config_json(&[tar], json!({})), Dialect::Oci);
        liar.honest("t", &image);
        let pulled =
            pull(&store, &liar.name("t")).await.unwrap_or_else(|e| panic!("{}", e.report()));
        let which = store.read_file(&pulled, "/which", 10).await.unwrap();
        assert_eq!(which.as_deref(), Some(packing.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_are_refused_though_the_registry_has_them() {
    for packing in ["", ".gzip"] {
        let tar = tar("foreign");
        let media_type = format!("application/vnd.docker.image.rootfs.foreign.diff.tar{packing}");
        let layer = Blob { media_type, ..layer(&tar, Dialect::Docker, Compression::Gzip) };
        let digest = layer.digest().to_string();
        let mut descriptor = layer.descriptor();
        descriptor["urls"] = json!(["http://127.0.0.1:9/layer"]);
        let image = assemble(vec![layer], &config_json(&[tar], json!({})), Dialect::Docker);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": image.manifest.media_type,
            "config": image.config.descriptor(), "layers": [descriptor],
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let image = TestImage { manifest: Blob { bytes, ..image.manifest }, ..image };
        bad_image(packing, &["foreign layer", &digest, "foreign.diff.tar"], image).await;
    }
}
