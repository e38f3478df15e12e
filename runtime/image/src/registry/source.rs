//! One repository on all the hosts that may have it: the first that answers well is taken.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::client::{Client, content_length};
use super::credentials::{AuthFile, choose};
use super::hosts::{Host, hosts};
use super::net::Net;
use super::tries::Tries;
use super::{Credentials, Error, RegistryConfig};
use crate::digest::Digest;
use crate::manifest::{ACCEPT, Descriptor, MAX_MANIFEST};
use crate::reference::Reference;

pub(super) const PULL: &str = "pull";
pub(super) const RESOLVE: &str = "resolve";
pub(super) const PUSH: &str = "push";

/// A repository to fetch from.
pub(crate) struct Source {
    pub(super) reference: Reference,
    pub(super) config: Arc<RegistryConfig>,
    pub(super) net: Arc<Net>,
    pub(super) endpoints: Vec<Endpoint>,
    /// Whose bytes went into a blob, and whose turned out not to be the blob's.
    servers: Mutex<HashMap<Digest, Servers>>,
}

/// See [`Source::distrust`].
#[derive(Default)]
struct Servers {
    now: BTreeSet<usize>,
    distrusted: BTreeSet<usize>,
}

/// One host that may have the repository.
pub(super) struct Endpoint {
    pub(super) host: Host,
    pub(super) client: Client,
}

/// A manifest or index as its registry sent it, its digest verified.
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) content_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// Reads the registry's `hosts.toml` and the auth file and makes a client per host. Blocks
    /// on small files.
    pub(crate) fn new(
        reference: &Reference,
        credentials: Option<&Credentials>,
        config: &RegistryConfig,
        net: &Arc<Net>,
    ) -> Result<Self, Error> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let file = AuthFile::read(config.auth_file.as_deref())?;
        let config = Arc::new(config.clone());
        let endpoint = |host: Host| {
            // The host as its own clients would call it in a reference.
            let told = choose(credentials, &file, &host.authority, registry, repository);
            Ok(Endpoint { client: Client::new(&host, told, &config, net)?, host })
        };
        let all = hosts(config.config_path.as_deref(), registry)?;
        let endpoints = all.into_iter().map(endpoint).collect::<Result<_, Error>>()?;
        let (reference, net) = (reference.clone(), net.clone());
        Ok(Self { reference, config, net, endpoints, servers: Mutex::default() })
    }

    /// The document the reference itself names.
    pub(crate) async fn top(&self) -> Result<Fetched, Error> {
        match (self.reference.tag(), self.reference.digest()) {
            (Some(tag), _) => self.by_tag(tag).await,
            (None, Some(digest)) => self.manifest(digest).await,
            (None, None) => self.by_tag("latest").await,
        }
    }

    /// The manifest or index of this digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched, Error> {
        self.document_from(PULL, &format!("manifests/{digest}"), Some(digest)).await
    }

    /// The manifest or index of a tag.
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
        let mut tries = Tries::new(self, capability, BTreeSet::new());
        while let Some(endpoint) = tries.next().await {
            match self.document(endpoint, path, wanted).await {
                Ok(found) => {
                    tries.served();
                    return Ok(found);
                }
                Err(error) => tries.failed(error),
            }
        }
        Err(tries.give_up())
    }

    /// A small blob, verified.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        let mut tries = Tries::new(self, PULL, BTreeSet::new());
        while let Some(endpoint) = tries.next().await {
            match self.whole(endpoint, blob).await {
                Ok(bytes) => {
                    tries.served();
                    return Ok(bytes);
                }
                Err(error) => tries.failed(error),
            }
        }
        Err(tries.give_up())
    }

    /// The hosts with this capability, with their numbers.
    pub(super) fn able(&self, capability: &str) -> impl Iterator<Item = (usize, &Endpoint)> {
        self.endpoints.iter().enumerate().filter(move |(_, endpoint)| match capability {
            RESOLVE => endpoint.host.resolve,
            PUSH => endpoint.host.push,
            _ => endpoint.host.pull,
        })
    }

    /// What token servers call the right to pull from here.
    pub(super) fn scope(&self) -> String {
        format!("repository:{}:pull", self.reference.repository())
    }

    async fn whole(&self, endpoint: &Endpoint, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        let url = self.url(&endpoint.host, &format!("blobs/{}", blob.digest));
        let (headers, mut body) = endpoint.client.get(&url, None, &self.scope()).await?;
        announced(&headers, body.url(), blob.size)?;
        let bytes = body.read_all(blob.size).await?;
        verify(body.url(), &blob.digest, &bytes)?;
        Ok(bytes)
    }

    async fn document(
        &self,
        endpoint: &Endpoint,
        path: &str,
        wanted: Option<&Digest>,
    ) -> Result<Fetched, Error> {
        let url = self.url(&endpoint.host, path);
        let (headers, mut body) = endpoint.client.get(&url, Some(ACCEPT), &self.scope()).await?;
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

    pub(super) fn url(&self, host: &Host, path: &str) -> String {
        let base = format!("{}/{}/{path}", host.base, self.reference.repository());
        // As containerd: a host that stands in for another is told for which.
        let registry = self.reference.registry();
        let is_itself = host.authority == registry
            || registry == "docker.io" && host.authority == "registry-1.docker.io";
        let joint = if path.contains('?') { '&' } else { '?' };
        if is_itself { base } else { format!("{base}{joint}ns={registry}") }
    }

    /// A host's bytes went into this blob.
    pub(super) fn took_from(&self, blob: &Digest, endpoint: usize) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.entry(blob.clone()).or_default().now.insert(endpoint);
    }

    /// Hosts that are not to be asked for this blob again.
    pub(super) fn distrusted(&self, blob: &Digest) -> BTreeSet<usize> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.get(blob).map(|servers| servers.distrusted.clone()).unwrap_or_default()
    }

    /// What came was not the blob: those it came from are not asked for it again. Whether any
    /// host is left.
    pub(crate) fn distrust_servers(&self, blob: &Digest) -> bool {
        let mut all = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = all.entry(blob.clone()).or_default();
        let now = std::mem::take(&mut servers.now);
        servers.distrusted.extend(now);
        self.able(PULL).any(|(index, _)| !servers.distrusted.contains(&index))
    }
}

/// An announced length must be the manifest's.
pub(super) fn announced(headers: &HeaderMap, url: &str, size: u64) -> Result<(), Error> {
    match content_length(headers) {
        Some(length) if length != size => Err(Error::BadAnswer {
            url: url.to_owned(),
            reason: format!("announces {length} bytes where the manifest says {size}"),
        }),
        _ => Ok(()),
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
    use std::fmt::Write as _;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
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
