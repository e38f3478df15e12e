//! A real docker-registry process, and images put into it.
//!
//! Images are written straight into its storage, which is docker-registry's documented
//! filesystem layout: no push client has to be right for a pull to be tested.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use anyhow::{Context, Result, ensure};

use crate::host;
use crate::image::{Blob, Built};

/// A running registry; ends with its value, with all it holds.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    dir: PathBuf,
    address: SocketAddr,
    ca: Option<String>,
}

impl Registry {
    /// A registry that speaks HTTP on a loopback port.
    pub fn http() -> Result<Self> {
        Self::start(None)
    }

    /// A registry that speaks HTTPS, with a certificate of an authority of its own.
    pub fn https() -> Result<Self> {
        Self::start(Some(Certificates::new()?))
    }

    fn start(certificates: Option<Certificates>) -> Result<Self> {
        let dir = crate::node::fresh_dir("registry")?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http:\n  addr: 127.0.0.1:0\n",
            dir.display()
        );
        if let Some(certificates) = &certificates {
            fs::write(dir.join("cert.pem"), &certificates.leaf)?;
            fs::write(dir.join("key.pem"), &certificates.key)?;
            let tls = format!("{{certificate: {0}/cert.pem, key: {0}/key.pem}}", dir.display());
            config.push_str(&format!("  tls: {tls}\n"));
        }
        fs::write(dir.join("config.yml"), config)?;
        let mut command = host::tied("docker-registry");
        command.arg("serve").arg(dir.join("config.yml")).stderr(Stdio::piped());
        command.stdout(Stdio::null());
        let mut process = host::spawn(command)?;
        let stderr = process.stderr.take().context("the registry's stderr")?;
        let ca = certificates.map(|certificates| certificates.ca);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut registry = Self { process, dir, address: nowhere, ca };
        registry.address = listening(stderr)?;
        Ok(registry)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority's certificate (PEM) of an HTTPS registry.
    #[must_use]
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// Puts an image under a repository and a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> Result<()> {
        for blob in &image.blobs {
            self.put_blob(blob)?;
            self.link(&format!("{repository}/_layers/{}", slashed(&blob.digest)?), &blob.digest)?;
        }
        for manifest in image.children.iter().chain([&image.manifest]) {
            self.put_blob(manifest)?;
            let revision =
                format!("{repository}/_manifests/revisions/{}", slashed(&manifest.digest)?);
            self.link(&revision, &manifest.digest)?;
        }
        let digest = &image.manifest.digest;
        let tags = format!("{repository}/_manifests/tags/{tag}");
        self.link(&format!("{tags}/index/{}", slashed(digest)?), digest)?;
        self.link(&format!("{tags}/current"), digest)
    }

    /// Replaces what the registry holds under a digest: a registry that lies.
    pub fn corrupt(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        Ok(fs::write(self.blob_path(digest)?, bytes)?)
    }

    fn put_blob(&self, blob: &Blob) -> Result<()> {
        write(&self.blob_path(&blob.digest)?, &blob.bytes)
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest.strip_prefix("sha256:").context("a digest")?;
        let prefix = hex.get(..2).context("a digest's first two digits")?;
        Ok(self.store().join(format!("blobs/sha256/{prefix}/{hex}/data")))
    }

    fn link(&self, path: &str, digest: &str) -> Result<()> {
        write(&self.store().join(format!("repositories/{path}/link")), digest.as_bytes())
    }

    fn store(&self) -> PathBuf {
        self.dir.join("data/docker/registry/v2")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        host::end(&mut self.process);
        // What stays in /tmp harms no later run.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `sha256/HEX`, as the storage spells a digest.
fn slashed(digest: &str) -> Result<String> {
    ensure!(digest.starts_with("sha256:"), "{digest} is no sha256 digest");
    Ok(digest.replacen(':', "/", 1))
}

/// Written beside and renamed, since the registry may be reading.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().context("a path in the storage")?;
    fs::create_dir_all(dir)?;
    let fresh = dir.join(format!("new-{:?}", std::thread::current().id()));
    fs::write(&fresh, bytes)?;
    Ok(fs::rename(fresh, path)?)
}

/// The address that the registry's log says it listens on.
fn listening(stderr: ChildStderr) -> Result<SocketAddr> {
    let mut lines = BufReader::new(stderr).lines();
    let mut seen = Vec::new();
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("listening on ") {
            let address: String =
                rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
            // It must be able to go on writing.
            std::thread::spawn(move || lines.for_each(drop));
            return address.parse().with_context(|| format!("the address in {line}"));
        }
        seen.push(line);
    }
    anyhow::bail!("docker-registry did not start: {}", seen.join("\n"))
}

struct Certificates {
    ca: String,
    leaf: String,
    key: String,
}

impl Certificates {
    /// An authority, and a certificate by it for the loopback names.
    fn new() -> Result<Self> {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok(Self { ca: ca_pem, leaf: leaf.pem(), key: key.serialize_pem() })
    }
}
