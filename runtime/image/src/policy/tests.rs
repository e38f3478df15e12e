//! Tables of cases: documents that cosign wrote, and what can be wrong with them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use super::*;

const MANIFEST: &[u8] = include_bytes!("../../tests/vectors/cosign/manifest.json");

struct Vector {
    name: &'static str,
    key: &'static [u8],
    bundle: &'static [u8],
    sig_manifest: &'static [u8],
    payload: &'static [u8],
}

macro_rules! vector {
    ($name:literal) => {
        Vector {
            name: $name,
            key: include_bytes!(concat!("../../tests/vectors/cosign/", $name, ".pub")),
            bundle: include_bytes!(concat!("../../tests/vectors/cosign/", $name, ".bundle.json")),
            sig_manifest: include_bytes!(concat!(
                "../../tests/vectors/cosign/",
                $name,
                ".sig-manifest.json"
            )),
            payload: include_bytes!(concat!("../../tests/vectors/cosign/", $name, ".payload.json")),
        }
    };
}

const VECTORS: [Vector; 3] = [vector!("p256"), vector!("p384"), vector!("rsa")];

impl Vector {
    fn keys(&self) -> Vec<PublicKey> {
        PublicKey::all_from_pem(self.key).unwrap()
    }

    fn simple(&self) -> Signature {
        Signature::simple(self.payload, &self.annotation()).unwrap()
    }

    fn annotation(&self) -> String {
        let manifest: Value = serde_json::from_slice(self.sig_manifest).unwrap();
        let annotations = &manifest["layers"][0]["annotations"];
        annotations["dev.cosignproject.cosign/signature"].as_str().unwrap().to_owned()
    }
}

fn with_subject<T>(bytes: &[u8], run: impl FnOnce(Subject<'_>) -> T) -> T {
    run(Subject { digest: &Digest::of(bytes), bytes })
}

#[test]
fn what_cosign_signed_is_verified() {
    for vector in &VECTORS {
        let (keys, name) = (vector.keys(), vector.name);
        with_subject(MANIFEST, |subject| {
            let bundle = Signature::bundle(vector.bundle).unwrap().verify(&keys, subject).unwrap();
            assert_eq!(bundle, Statement { key: keys[0].id().clone(), repository: String::new() });
            let simple = vector.simple().verify(&keys, subject).unwrap();
            assert_eq!(simple.key, bundle.key);
            assert_eq!(simple.repository, format!("127.0.0.1:5977/v/{name}"));
        });
    }
}

#[test]
fn cosigns_hint_is_the_keys_id() {
    for vector in &VECTORS {
        let bundle: Value = serde_json::from_slice(vector.bundle).unwrap();
        let hint = bundle["verificationMaterial"]["publicKey"]["hint"].as_str().unwrap();
        let hint = crate::digest::hex(&BASE64_STANDARD.decode(hint).unwrap());
        assert_eq!(vector.keys()[0].id().hex(), hint);
    }
}

#[test]
fn a_signature_of_the_manifest_itself_is_verified() {
    let vectors: [(&[u8], &[u8]); 2] = [
        (
            include_bytes!("../../tests/vectors/cosign/p256.pub"),
            include_bytes!("../../tests/vectors/cosign/p256.message.json"),
        ),
        (
            include_bytes!("../../tests/vectors/cosign/ed25519.pub"),
            include_bytes!("../../tests/vectors/cosign/ed25519.message.json"),
        ),
    ];
    for (key, bundle) in vectors {
        let keys = PublicKey::all_from_pem(key).unwrap();
        let signature = Signature::bundle(bundle).unwrap();
        with_subject(MANIFEST, |subject| signature.verify(&keys, subject).unwrap());
        let other = with_subject(b"{}", |subject| signature.verify(&keys, subject).unwrap_err());
        assert_eq!(other, Unfit::Key);
    }
}

/// cosign 3 signs images by Ed25519 keys with the prehashed variant (RFC 8032, Ed25519ph), which
/// ring does not have. Such an image is refused, not let through.
#[test]
fn prehashed_ed25519_is_not_verified() {
    let vector = vector!("ed25519");
    for signature in [Signature::bundle(vector.bundle).unwrap(), vector.simple()] {
        let verified = with_subject(MANIFEST, |s| signature.verify(&vector.keys(), s));
        assert_eq!(verified, Err(Unfit::Key));
    }
}

#[test]
fn any_of_several_keys_will_do_and_no_other() {
    let [p256, p384, rsa] = &VECTORS;
    let all: Vec<_> = [rsa, p384, p256].iter().flat_map(|vector| vector.keys()).collect();
    with_subject(MANIFEST, |subject| {
        let signature = Signature::bundle(p256.bundle).unwrap();
        assert_eq!(&signature.verify(&all, subject).unwrap().key, p256.keys()[0].id());
        assert_eq!(signature.verify(&p384.keys(), subject), Err(Unfit::Key));
        assert_eq!(signature.verify(&[], subject), Err(Unfit::Key));
        assert_eq!(p256.simple().verify(&rsa.keys(), subject), Err(Unfit::Key));
    });
}

#[test]
fn a_good_signature_of_another_image_is_none() {
    let other = [MANIFEST, b" "].concat();
    for vector in &VECTORS {
        for signature in [Signature::bundle(vector.bundle).unwrap(), vector.simple()] {
            let verified = with_subject(&other, |s| signature.verify(&vector.keys(), s));
            let signed = Digest::of(MANIFEST).to_string();
            assert_eq!(verified, Err(Unfit::OtherImage(signed)), "{}", vector.name);
        }
    }
}

#[test]
fn an_attestation_is_no_signature() {
    let keys =
        PublicKey::all_from_pem(include_bytes!("../../tests/vectors/cosign/attestation.pub"));
    let bundle = include_bytes!("../../tests/vectors/cosign/attestation.bundle.json");
    let signature = Signature::bundle(bundle).unwrap();
    let verified = with_subject(MANIFEST, |subject| signature.verify(&keys.unwrap(), subject));
    assert_eq!(
        verified,
        Err(Unfit::Attestation("https://cosign.sigstore.dev/attestation/v1".into()))
    );
}

#[test]
fn a_changed_payload_is_not_believed() {
    let vector = &VECTORS[0];
    let other = Digest::of(b"evil");
    let swap = |text: &[u8]| {
        let text = String::from_utf8(text.to_vec()).unwrap();
        text.replace(Digest::of(MANIFEST).hex(), other.hex())
    };
    let mut bundle: Value = serde_json::from_slice(vector.bundle).unwrap();
    let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
    let payload = swap(&BASE64_STANDARD.decode(payload).unwrap());
    bundle["dsseEnvelope"]["payload"] = json!(BASE64_STANDARD.encode(payload));
    let changed = [
        Signature::bundle(bundle.to_string().as_bytes()).unwrap(),
        Signature::simple(swap(vector.payload).as_bytes(), &vector.annotation()).unwrap(),
    ];
    for signature in changed {
        let verified = with_subject(b"evil", |s| signature.verify(&vector.keys(), s));
        assert_eq!(verified, Err(Unfit::Key));
    }
}

/// Signs with a key of its own, in both forms, whatever it is asked to.
struct Maker(KeyPair);

impl Maker {
    fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    fn keys(&self) -> Vec<PublicKey> {
        PublicKey::all_from_pem(self.0.public_key_pem().as_bytes()).unwrap()
    }

    fn sign(&self, bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(self.0.sign(bytes).unwrap())
    }

    fn simple(&self, payload: &Value) -> Result<Statement, Unfit> {
        let payload = payload.to_string();
        let signature = Signature::simple(payload.as_bytes(), &self.sign(payload.as_bytes()))?;
        with_subject(MANIFEST, |subject| signature.verify(&self.keys(), subject))
    }

    fn bundle(&self, statement: &str) -> Value {
        let kind = "application/vnd.in-toto+json";
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "any"}},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(statement),
                "payloadType": kind,
                "signatures": [{"sig": self.sign(signed.as_bytes())}],
            },
        })
    }

    fn verify(&self, bundle: &Value) -> Result<Statement, Unfit> {
        let signature = Signature::bundle(bundle.to_string().as_bytes())?;
        with_subject(MANIFEST, |subject| signature.verify(&self.keys(), subject))
    }
}

fn good_payload() -> Value {
    json!({"critical": {
        "identity": {"docker-reference": "a.example/b"},
        "image": {"docker-manifest-digest": Digest::of(MANIFEST).as_str()},
        "type": "cosign container image signature",
    }, "optional": null})
}

fn good_statement() -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": Digest::of(MANIFEST).hex()}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    })
}

fn changed(mut value: Value, pointer: &str, to: Value) -> Value {
    *value.pointer_mut(pointer).unwrap() = to;
    value
}

#[test]
fn payloads_that_are_signed_but_wrong() {
    let maker = Maker::new();
    assert_eq!(maker.simple(&good_payload()).unwrap().repository, "a.example/b");
    let cases = [
        ("/critical/type", json!("atomic container signature"), "payload: type"),
        ("/critical/image/docker-manifest-digest", json!("sha256:00"), "another image (sha256:00)"),
        ("/critical/image/docker-manifest-digest", json!(""), "another image ()"),
        ("/critical/image", json!({}), "missing field `docker-manifest-digest`"),
        ("/critical/identity", json!({}), "missing field `docker-reference`"),
        ("/critical", json!([]), "malformed: payload"),
    ];
    for (pointer, to, reason) in cases {
        let error = maker.simple(&changed(good_payload(), pointer, to)).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    let twice = good_payload().to_string().replacen("{", "{\"critical\":{},", 1);
    let signature = Signature::simple(twice.as_bytes(), &maker.sign(twice.as_bytes())).unwrap();
    let error = with_subject(MANIFEST, |s| signature.verify(&maker.keys(), s)).unwrap_err();
    assert!(matches!(error, Unfit::Malformed(_)), "{error}");
}

#[test]
fn statements_that_are_signed_but_wrong() {
    let maker = Maker::new();
    let verify = |statement: &Value| maker.verify(&maker.bundle(&statement.to_string()));
    assert!(verify(&good_statement()).is_ok());
    let cases = [
        ("/_type", json!("https://in-toto.io/Statement/v2"), "payload: type"),
        ("/predicateType", json!("https://slsa.dev/provenance/v1"), "not a signature"),
        ("/subject", json!([]), "another image ()"),
        ("/subject/0/digest", json!({"sha256": "00"}), "another image (sha256:00)"),
        ("/subject/0/digest", json!({"sha512": Digest::of(MANIFEST).hex()}), "another image"),
        ("/subject/0/digest", json!({}), "another image ()"),
        ("/subject", json!("x"), "malformed: payload"),
    ];
    for (pointer, to, reason) in cases {
        let error = verify(&changed(good_statement(), pointer, to)).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    let second = json!([{"digest": {"sha256": "00"}}, good_statement()["subject"][0]]);
    assert!(verify(&changed(good_statement(), "/subject", second)).is_ok());
}

#[test]
fn bundles_of_other_shapes_are_told_apart() {
    let maker = Maker::new();
    let good = maker.bundle(&good_statement().to_string());
    let signature = good["dsseEnvelope"]["signatures"][0].clone();
    let version = |v: &str| json!(format!("application/vnd.dev.sigstore.bundle{v}"));
    assert!(
        maker.verify(&changed(good.clone(), "/mediaType", version("+json;version=0.3"))).is_ok()
    );
    let cases = [
        ("/mediaType", version("+json;version=0.2"), "is not that of version 0.3"),
        ("/verificationMaterial", json!({"certificate": {"rawBytes": ""}}), "with a certificate"),
        ("/verificationMaterial", json!({"x509CertificateChain": {}}), "with a certificate"),
        ("/dsseEnvelope/payloadType", json!("text/plain"), "payload type \"text/plain\""),
        ("/dsseEnvelope/signatures", json!([]), "0 signatures"),
        ("/dsseEnvelope/signatures", json!([signature, signature]), "2 signatures"),
        ("/dsseEnvelope/signatures/0/sig", json!("&"), "malformed: signature"),
        ("/dsseEnvelope/signatures/0/sig", json!(""), "none of the rule's keys"),
        ("/dsseEnvelope/payload", json!("&"), "malformed: payload"),
        ("/dsseEnvelope", json!(null), "neither"),
    ];
    for (pointer, to, reason) in cases {
        let error = maker.verify(&changed(good.clone(), pointer, to)).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    let mut both = good;
    both["messageSignature"] = json!({"signature": ""});
    assert!(maker.verify(&both).unwrap_err().to_string().contains("neither"));
}

#[test]
fn a_message_of_another_digest_is_refused() {
    let maker = Maker::new();
    let bundle = |digest: &[u8]| {
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {}},
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode(digest)},
                "signature": maker.sign(MANIFEST),
            },
        })
    };
    assert!(maker.verify(&bundle(b"")).is_ok());
    assert_eq!(maker.verify(&bundle(b"a")), Err(Unfit::OtherImage("61".into())));
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    let private = Maker::new().0.serialize_pem();
    let p224 = "-----BEGIN PUBLIC KEY-----\n\
        ME4wEAYHKoZIzj0CAQYFK4EEACEDOgAEA2dTe+ak0Y5dKUzJGaynDbc/JLBY4LMV\n\
        5c7ywBd5sQZgfyvTkRijp4HEEa54S+gTW0XiGqFYgeI=\n-----END PUBLIC KEY-----\n";
    let cases = ["", "junk", private.as_str(), p224];
    for text in cases {
        assert!(PublicKey::all_from_pem(text.as_bytes()).is_err(), "{text}");
    }
    let two = [Maker::new(), Maker::new()].map(|maker| maker.0.public_key_pem()).concat();
    assert_eq!(PublicKey::all_from_pem(two.as_bytes()).unwrap().len(), 2);
}
