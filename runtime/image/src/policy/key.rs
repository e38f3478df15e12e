//! Public keys, and verifying with them.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{Error as Webpki, RawPublicKeyEntity, ring};

use crate::digest::Digest;

/// What cosign signs with: P-256 by default, the others with keys of one's own. For P-384 the
/// hash was SHA-256 in cosign 2 and is SHA-384 in cosign 3.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 5] = [
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::ECDSA_P384_SHA256,
    ring::ED25519,
    ring::RSA_PKCS1_2048_8192_SHA256,
];

/// Why a text holds no usable key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// The text is not PEM, or has no part `PUBLIC KEY`.
    #[error("no PEM block \"PUBLIC KEY\" can be read: {0}")]
    Pem(rustls_pki_types::pem::Error),
    /// The key is of another algorithm, or malformed.
    #[error(
        "the key is malformed or of an algorithm other than ECDSA P-256, ECDSA P-384, Ed25519 and \
         RSA of 2048 bits or more"
    )]
    Algorithm,
}

/// A public key for signatures of images.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: SubjectPublicKeyInfoDer<'static>,
    id: Digest,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

impl PublicKey {
    /// Reads the keys of a PEM text, as `cosign generate-key-pair` and `openssl pkey -pubout`
    /// write them. Never empty.
    pub fn all_from_pem(text: &[u8]) -> Result<Vec<Self>, InvalidKey> {
        let keys = SubjectPublicKeyInfoDer::pem_slice_iter(text)
            .map(|spki| Self::new(spki.map_err(InvalidKey::Pem)?))
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(InvalidKey::Pem(rustls_pki_types::pem::Error::NoItemsFound));
        }
        Ok(keys)
    }

    fn new(spki: SubjectPublicKeyInfoDer<'static>) -> Result<Self, InvalidKey> {
        let key = Self { id: Digest::of(&spki), spki };
        // A wrong signature tells more than that the key's algorithm is unknown.
        let usable = ALGORITHMS.iter().any(|algorithm| {
            matches!(key.verify_by(*algorithm, b"", b""), Err(Webpki::InvalidSignatureForPublicKey))
        });
        if usable { Ok(key) } else { Err(InvalidKey::Algorithm) }
    }

    /// The sha256 of the key's SubjectPublicKeyInfo: what cosign's hint says in base64.
    #[must_use]
    pub fn id(&self) -> &Digest {
        &self.id
    }

    /// Whether the signature is of these bytes and by this key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        ALGORITHMS.iter().any(|algorithm| self.verify_by(*algorithm, message, signature).is_ok())
    }

    fn verify_by(
        &self,
        algorithm: &dyn SignatureVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Webpki> {
        let key = RawPublicKeyEntity::try_from(&self.spki)?;
        key.verify_signature(algorithm, message, signature)
    }
}
