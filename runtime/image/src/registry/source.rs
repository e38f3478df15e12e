//! One repository on all the hosts that may have it: the first that answers well is taken.

use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::client::{Body, Client, content_length};
use super::hosts::{Host, hosts};
use super::{Error, RegistryConfig};
use crate::digest::Digest;
use crate::manifest::{ACCEPT, Descriptor, MAX_MANIFEST};
use crate::reference::Reference;

const PULL: &str = "pull";
const RESOLVE: &str = "resolve";

/// A repository to fetch from.
pub(crate) struct Source {
    reference: Reference,
    hosts: Vec<(Host, Client)>,
}

/// A manifest or index as its registry sent it, its digest verified.
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) content_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// Reads the registry's `hosts.toml` and makes a client per host. Blocks on small files.
    pub(crate) fn new(reference: &Reference, config: &RegistryConfig) -> Result<Self, Error> {
        let hosts = hosts(config.config_path.as_deref(), reference.registry())?
            .into_iter()
            .map(|host| Client::new(&host, config).map(|client| (host, client)))
            .collect::<Result<_, _>>()?;
        Ok(Self { reference: reference.clone(), hosts })
    }

    /// The document the reference itself names.
    pub(crate) async fn top(&self) -> Result<Fetched, Error> {
        let Some(tag) = self.reference.tag() else {
            return match self.reference.digest() {
                Some(digest) => self.manifest(digest).await,
                None => self.document_from(RESOLVE, "manifests/latest", None).await,
            };
        };
        self.document_from(RESOLVE, &format!("manifests/{tag}"), None).await
    }

    /// The manifest or index of this digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched, Error> {
        self.document_from(PULL, &format!("manifests/{digest}"), Some(digest)).await
    }

    /// The manifest or index of a tag other than the reference's own.
    pub(super) async fn by_tag(&self, tag: &str) -> Result<Fetched, Error> {
        self.document_from(RESOLVE, &format!("manifests/{tag}"), None).await
    }

    /// The registry's own list of what refers to a digest.
    pub(super) async fn referrers_index(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Fetched, Error> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", escaped(t)));
        let path = format!("referrers/{digest}{}", filter.unwrap_or_default());
        self.document_from(RESOLVE, &path, None).await
    }

    async fn document_from(
        &self,
        capability: &'static str,
        path: &str,
        wanted: Option<&Digest>,
    ) -> Result<Fetched, Error> {
        let mut attempts = Attempts::default();
        for (host, client) in self.able(capability) {
            match self.document(host, client, path, wanted).await {
                Ok(found) => return Ok(found),
                Err(error) => attempts.add(host, error),
            }
        }
        Err(self.failed(capability, attempts))
    }

    /// A small blob, verified.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        let mut attempts = Attempts::default();
        for (host, client) in self.able(PULL) {
            match self.whole(host, client, blob).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => attempts.add(host, error),
            }
        }
        Err(self.failed(PULL, attempts))
    }

    /// A blob as it arrives. Its digest and length are for the reader to verify.
    pub(crate) async fn blob(&self, blob: &Descriptor) -> Result<Body, Error> {
        let mut attempts = Attempts::default();
        for (host, client) in self.able(PULL) {
            match self.open(host, client, blob).await {
                Ok(body) => return Ok(body),
                Err(error) => attempts.add(host, error),
            }
        }
        Err(self.failed(PULL, attempts))
    }

    fn able(&self, capability: &str) -> impl Iterator<Item = &(Host, Client)> {
        let resolve = capability == RESOLVE;
        self.hosts.iter().filter(move |(host, _)| if resolve { host.resolve } else { host.pull })
    }

    fn failed(&self, capability: &'static str, attempts: Attempts) -> Error {
        if attempts.0.is_empty() {
            let registry = self.reference.registry().to_owned();
            return Error::NoHost { registry, capability };
        }
        Error::AllHosts { attempts: attempts.0 }
    }

    async fn whole(
        &self,
        host: &Host,
        client: &Client,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, Error> {
        let mut body = self.open(host, client, blob).await?;
        let bytes = body.read_all(blob.size).await?;
        verify(body.url(), &blob.digest, &bytes)?;
        Ok(bytes)
    }

    async fn open(&self, host: &Host, client: &Client, blob: &Descriptor) -> Result<Body, Error> {
        let url = self.url(host, &format!("blobs/{}", blob.digest));
        let (headers, body) = client.get(&url, None).await?;
        match content_length(&headers) {
            Some(length) if length != blob.size => Err(Error::BadAnswer {
                url: body.url().to_owned(),
                reason: format!("announces {length} bytes where the manifest says {}", blob.size),
            }),
            _ => Ok(body),
        }
    }

    async fn document(
        &self,
        host: &Host,
        client: &Client,
        path: &str,
        wanted: Option<&Digest>,
    ) -> Result<Fetched, Error> {
        let (headers, mut body) = client.get(&self.url(host, path), Some(ACCEPT)).await?;
        let content_type = content_type(&headers);
        if content_type == "text/html" {
            let reason = "an HTML page where a manifest was asked for".to_owned();
            return Err(Error::BadAnswer { url: body.url().to_owned(), reason });
        }
        let bytes = body.read_all(MAX_MANIFEST).await?;
        let announced = announced_digest(&headers);
        for digest in wanted.into_iter().chain(announced.as_ref()) {
            verify(body.url(), digest, &bytes)?;
        }
        let digest = wanted.cloned().unwrap_or_else(|| Digest::of(&bytes));
        Ok(Fetched { digest, content_type, bytes })
    }

    fn url(&self, host: &Host, path: &str) -> String {
        let base = format!("{}/{}/{path}", host.base, self.reference.repository());
        // As containerd: a host that stands in for another is told for which.
        let registry = self.reference.registry();
        let is_itself = host.authority == registry
            || registry == "docker.io" && host.authority == "registry-1.docker.io";
        let joint = if path.contains('?') { '&' } else { '?' };
        if is_itself { base } else { format!("{base}{joint}ns={registry}") }
    }
}

/// Hosts that were asked and did not serve.
#[derive(Default)]
struct Attempts(Vec<Error>);

impl Attempts {
    fn add(&mut self, host: &Host, error: Error) {
        tracing::debug!(host = host.authority, %error, "host did not serve");
        self.0.push(error);
    }
}

fn verify(url: &str, wanted: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let mut hasher = wanted.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *wanted {
        return Ok(());
    }
    Err(Error::WrongDigest { url: url.to_owned(), wanted: wanted.clone(), actual })
}

/// For a query: a media type has `+` in it, which would read as a blank.
pub(super) fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().to_owned()
}

/// An announced digest that Berth cannot verify counts as none.
fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    let value = headers.get("docker-content-digest")?.to_str().ok()?;
    Digest::parse(value).ok()
}
