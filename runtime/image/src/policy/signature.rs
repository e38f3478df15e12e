//! Signatures as cosign writes them: foreign bytes in, a verified statement about an image out.
//!
//! Two forms:
//!
//! - The older: a "simple signing" payload that names the image, and a signature of it. See
//!   <https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>.
//! - The Sigstore bundle v0.3, which cosign 3 writes: a DSSE envelope around an in-toto statement
//!   whose subject is the image, or a signature of the manifest itself. See
//!   <https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>.
//!
//! Nothing of a payload is believed, or even parsed, before its signature is verified. What a
//! bundle says of its key (the hint) is not believed at all: the keys are the rule's.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::key::PublicKey;
use crate::digest::Digest;

/// The media types of bundles of version 0.3.
const BUNDLE_TYPES: [&str; 2] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
];
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_VERSIONS: [&str; 2] =
    ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// What `cosign sign` states. Other predicates are attestations (a bill of materials, a scan's
/// result): they speak of the image without saying that it may run.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const SIMPLE_TYPE: &str = "cosign container image signature";

/// Why a signature does not speak for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// Not a signature in a form that Berth reads.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Made with a certificate (keyless signing), where keys are configured.
    #[error("made with a certificate, not with a key")]
    Certificate,
    /// No key of the rule verifies it.
    #[error("made with none of the rule's keys")]
    Key,
    /// A good signature of something else.
    #[error("for another image ({0})")]
    OtherImage(String),
    /// A good attestation, but not a signature.
    #[error("an attestation of type {0:?}, not a signature")]
    Attestation(String),
    /// A good signature of this image in another repository, where the rule asks for this one.
    #[error("for repository {found:?}, where the rule asks for {wanted:?}")]
    Repository {
        /// The repository that the signature names; empty where it names none.
        found: String,
        /// The repository of the pull.
        wanted: String,
    },
}

/// What is to be signed: a manifest or an index.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The document's digest.
    pub digest: &'a Digest,
    /// Its very bytes.
    pub bytes: &'a [u8],
}

/// What a verified signature says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The key that made it.
    pub key: Digest,
    /// The repository it names, as its maker wrote it; empty where it names none.
    pub repository: String,
}

/// A signature, parsed as far as can be before it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    form: Form,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Simple {
        payload: Vec<u8>,
    },
    Envelope {
        payload: Vec<u8>,
    },
    /// Of the manifest itself; the digest is what the bundle says of it.
    Message {
        digest: Option<Vec<u8>>,
    },
}

fn malformed(what: &str, error: impl std::fmt::Display) -> Unfit {
    Unfit::Malformed(format!("{what}: {error}"))
}

fn base64(what: &str, text: &str) -> Result<Vec<u8>, Unfit> {
    BASE64_STANDARD.decode(text).map_err(|error| malformed(what, error))
}

impl Signature {
    /// The older form: the payload's bytes and the text of the annotation
    /// `dev.cosignproject.cosign/signature`.
    pub fn simple(payload: &[u8], annotation: &str) -> Result<Self, Unfit> {
        let bytes = base64("signature", annotation)?;
        Ok(Self { form: Form::Simple { payload: payload.to_vec() }, bytes })
    }

    /// A Sigstore bundle of version 0.3.
    pub fn bundle(json: &[u8]) -> Result<Self, Unfit> {
        let raw: RawBundle = serde_json::from_slice(json).map_err(|e| malformed("bundle", e))?;
        if !BUNDLE_TYPES.contains(&raw.media_type.as_str()) {
            return Err(Unfit::Malformed(format!(
                "bundle: media type {:?} is not that of version 0.3",
                raw.media_type
            )));
        }
        let material = raw.verification_material;
        if material.certificate.is_some() || material.x509_certificate_chain.is_some() {
            return Err(Unfit::Certificate);
        }
        match (raw.dsse_envelope, raw.message_signature) {
            (Some(envelope), None) => envelope.check(),
            (None, Some(message)) => message.check(),
            _ => Err(Unfit::Malformed("bundle: neither an envelope nor a message".to_owned())),
        }
    }

    /// Verifies the signature with the first key that fits, and then what it says of `subject`.
    pub fn verify(&self, keys: &[PublicKey], subject: Subject<'_>) -> Result<Statement, Unfit> {
        let signed = match &self.form {
            Form::Simple { payload } => payload.clone(),
            Form::Envelope { payload } => pre_authentication(payload),
            Form::Message { .. } => subject.bytes.to_vec(),
        };
        let key = keys.iter().find(|key| key.verifies(&signed, &self.bytes)).ok_or(Unfit::Key)?;
        let repository = match &self.form {
            Form::Simple { payload } => simple(payload, subject.digest)?,
            Form::Envelope { payload } => statement(payload, subject.digest)?,
            Form::Message { digest } => message(digest.as_deref(), subject)?,
        };
        Ok(Statement { key: key.id().clone(), repository })
    }
}

/// What a DSSE signature is of: <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let (kind, length) = (STATEMENT_TYPE, payload.len());
    let head = format!("DSSEv1 {} {kind} {length} ", kind.len());
    [head.as_bytes(), payload].concat()
}

fn simple(payload: &[u8], wanted: &Digest) -> Result<String, Unfit> {
    let raw: RawSimple = serde_json::from_slice(payload).map_err(|e| malformed("payload", e))?;
    let critical = raw.critical;
    if critical.kind != SIMPLE_TYPE {
        return Err(Unfit::Malformed(format!("payload: type {:?}", critical.kind)));
    }
    let found = critical.image.docker_manifest_digest;
    if found != wanted.as_str() {
        return Err(Unfit::OtherImage(found));
    }
    Ok(critical.identity.docker_reference)
}

fn statement(payload: &[u8], wanted: &Digest) -> Result<String, Unfit> {
    let raw: RawStatement = serde_json::from_slice(payload).map_err(|e| malformed("payload", e))?;
    if !STATEMENT_VERSIONS.contains(&raw.version.as_str()) {
        return Err(Unfit::Malformed(format!("payload: type {:?}", raw.version)));
    }
    if raw.predicate_type != PREDICATE {
        return Err(Unfit::Attestation(raw.predicate_type));
    }
    let is_it = |subject: &&RawSubject| {
        subject.digest.iter().any(|(kind, hex)| format!("{kind}:{hex}") == wanted.as_str())
    };
    if let Some(subject) = raw.subject.iter().find(is_it) {
        return Ok(subject.name.clone());
    }
    let named = raw.subject.iter().flat_map(|subject| &subject.digest);
    let named: Vec<_> = named.map(|(kind, hex)| format!("{kind}:{hex}")).collect();
    Err(Unfit::OtherImage(named.join(", ")))
}

/// The signature is of the manifest's bytes, so all is said; a digest beside it must not differ.
fn message(digest: Option<&[u8]>, subject: Subject<'_>) -> Result<String, Unfit> {
    let hex = digest.map(crate::digest::hex).filter(|hex| !hex.is_empty());
    match hex {
        Some(hex) if hex != subject.digest.hex() => Err(Unfit::OtherImage(hex)),
        _ => Ok(String::new()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBundle {
    media_type: String,
    verification_material: RawMaterial,
    dsse_envelope: Option<RawEnvelope>,
    message_signature: Option<RawMessage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMaterial {
    certificate: Option<serde::de::IgnoredAny>,
    x509_certificate_chain: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
struct RawSignature {
    sig: String,
}

impl RawEnvelope {
    fn check(self) -> Result<Signature, Unfit> {
        if self.payload_type != STATEMENT_TYPE {
            return Err(Unfit::Malformed(format!(
                "envelope: payload type {:?}",
                self.payload_type
            )));
        }
        // As the bundle's specification demands: exactly one.
        let [signature] = self.signatures.as_slice() else {
            let count = self.signatures.len();
            return Err(Unfit::Malformed(format!("envelope: {count} signatures instead of one")));
        };
        let bytes = base64("signature", &signature.sig)?;
        let payload = base64("payload", &self.payload)?;
        Ok(Signature { form: Form::Envelope { payload }, bytes })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMessage {
    message_digest: Option<RawMessageDigest>,
    signature: String,
}

#[derive(Deserialize)]
struct RawMessageDigest {
    digest: Option<String>,
}

impl RawMessage {
    fn check(self) -> Result<Signature, Unfit> {
        let bytes = base64("signature", &self.signature)?;
        let digest = self.message_digest.and_then(|digest| digest.digest);
        let digest = digest.map(|digest| base64("digest", &digest)).transpose()?;
        Ok(Signature { form: Form::Message { digest }, bytes })
    }
}

#[derive(Deserialize)]
struct RawSimple {
    critical: RawCritical,
}

#[derive(Deserialize)]
struct RawCritical {
    identity: RawIdentity,
    image: RawImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawIdentity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawImage {
    #[serde(alias = "Docker-manifest-digest")]
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatement {
    #[serde(rename = "_type")]
    version: String,
    predicate_type: String,
    subject: Vec<RawSubject>,
}

#[derive(Deserialize)]
struct RawSubject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}
