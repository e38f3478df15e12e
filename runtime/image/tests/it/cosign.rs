//! Signing as cosign does: the documents have the shape of those in `tests/vectors/cosign`, which
//! it wrote itself.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_image::Digest;
use berth_image::policy::PublicKey;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::images::Blob;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A key pair.
pub(crate) struct Signer(KeyPair);

/// A signature in a registry: a manifest and its blobs.
pub(crate) struct Signed {
    pub(crate) blobs: Vec<Blob>,
    pub(crate) manifest: Blob,
}

fn blob(media_type: &str, bytes: Vec<u8>) -> Blob {
    Blob { media_type: media_type.to_owned(), bytes }
}

fn document(media_type: &str, value: &Value) -> Blob {
    blob(media_type, serde_json::to_vec(value).unwrap())
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    pub(crate) fn keys(&self) -> Vec<PublicKey> {
        PublicKey::all_from_pem(self.0.public_key_pem().as_bytes()).unwrap()
    }

    fn sign(&self, bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(self.0.sign(bytes).unwrap())
    }

    /// What goes under the tag `sha256-HEX.sig`.
    pub(crate) fn simple(&self, subject: &Blob, repository: &str) -> Signed {
        let payload = json!({"critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": subject.digest().as_str()},
            "type": "cosign container image signature",
        }, "optional": null});
        let payload = document("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
        let config = json!({
            "architecture": "", "os": "", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [payload.digest().as_str()]},
        });
        let config = document("application/vnd.oci.image.config.v1+json", &config);
        let mut layer = payload.descriptor();
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": self.sign(&payload.bytes)});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": config.descriptor(), "layers": [layer],
        });
        Signed { blobs: vec![config, payload], manifest: document(MANIFEST, &manifest) }
    }

    /// What refers to the subject.
    pub(crate) fn bundle(&self, subject: &Blob) -> Signed {
        let digest = subject.digest();
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.hex()}, "annotations": {}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        });
        let (statement, kind) = (statement.to_string(), "application/vnd.in-toto+json");
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "a hint"}},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&statement),
                "payloadType": kind,
                "signatures": [{"sig": self.sign(signed.as_bytes())}],
            },
        });
        referring(subject, document(BUNDLE, &bundle))
    }
}

/// A manifest that refers to the subject and has this bundle.
pub(crate) fn referring(subject: &Blob, bundle: Blob) -> Signed {
    let config = blob(EMPTY, b"{}".to_vec());
    let mut config_descriptor = config.descriptor();
    config_descriptor["artifactType"] = json!(BUNDLE);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config_descriptor, "layers": [bundle.descriptor()],
        "annotations": {"dev.sigstore.bundle.content": "dsse-envelope"},
        "subject": subject.descriptor(), "artifactType": BUNDLE,
    });
    Signed { blobs: vec![config, bundle], manifest: document(MANIFEST, &manifest) }
}

/// The list of what refers to an image: as a registry keeps it, or as cosign does where a
/// registry keeps none (with the configuration's type for the artifact's).
pub(crate) fn referrers(signed: &[&Signed], kept_by_registry: bool) -> Blob {
    let entry = |signed: &&Signed| {
        let mut entry = signed.manifest.descriptor();
        entry["artifactType"] = json!(if kept_by_registry { BUNDLE } else { EMPTY });
        entry
    };
    let manifests: Vec<_> = signed.iter().map(entry).collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    document(kind, &json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}))
}

/// The tag by which clients keep a list of referrers; with `.sig`, that of the older form.
pub(crate) fn tag(subject: &Digest) -> String {
    subject.as_str().replace(':', "-")
}
