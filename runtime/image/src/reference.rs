//! Image references, normalised the way docker does.
//!
//! `busybox` means `docker.io/library/busybox:latest`. With both a tag and a digest the digest
//! wins and the tag is dropped.

use std::fmt;

use crate::digest::Digest;

/// The longest repository name, domain included (distribution's limit).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?}: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

/// A normalised image reference: registry, repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Target {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Takes any form docker takes: `name`, `name:tag`, `host[:port]/path[:tag][@digest]`.
    /// The error names the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|reason| InvalidReference { text: text.to_owned(), reason })
    }

    /// The registry as written in references: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.domain
    }

    /// The repository on that registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.path
    }

    /// Registry and repository: `docker.io/library/busybox`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, unless the reference is by digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    /// The digest, if the reference has one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match &self.target {
            Target::Tag(_) => None,
            Target::Digest(digest) => Some(digest),
        }
    }

    /// `name@digest` for a digest in this repository.
    #[must_use]
    pub fn pinned(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = Digest::parse(digest).map_err(|_| "has a malformed digest")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    if digest.is_none() && tag.is_none() && is_bare_id(name) {
        return Err("is an image id, not a name");
    }
    let (domain, path) = split_domain(name)?;
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err("has a name longer than 255 characters");
    }
    let tag = tag.unwrap_or("latest");
    if !is_tag(tag) {
        return Err("has a malformed tag");
    }
    let target = digest.map_or_else(|| Target::Tag(tag.to_owned()), Target::Digest);
    Ok(Reference { domain, path, target })
}

/// Docker refuses 64 hex digits as a name: it would read as an image id.
fn is_bare_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The tag is what follows a colon in the last path component.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    }
}

fn split_domain(name: &str) -> Result<(String, String), &'static str> {
    let (domain, path) = match name.split_once('/') {
        Some((first, path)) if looks_like_domain(first) => (first, path),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    if !is_domain(domain) {
        return Err("has a malformed registry host");
    }
    if path.is_empty() {
        return Err("has no repository name");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("has upper-case letters in the repository name");
    }
    if !path.split('/').all(is_path_component) {
        return Err("has a malformed repository name");
    }
    let official = domain == DEFAULT_DOMAIN && !path.contains('/');
    let path = if official { format!("library/{path}") } else { path.to_owned() };
    Ok((domain.to_owned(), path))
}

/// Docker's rule for telling a registry from the first part of a path.
fn looks_like_domain(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    port_ok && host_ok
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// `[a-z0-9]+` runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let edge_ok = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = component.as_bytes();
    if !edge_ok(bytes.first()) || !edge_ok(bytes.last()) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_alphanumeric())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || is_dashes(separator))
}

fn is_dashes(separator: &str) -> bool {
    separator.bytes().all(|b| b == b'-')
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_normalised_like_docker() {
        let pinned = format!("docker.io/library/busybox@sha256:{HEX}");
        let table: &[(&str, &str)] = &[
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("foo/bar", "docker.io/foo/bar:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:v1", "localhost:5000/x/y:v1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x:t", "[::1]:5000/x:t"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a/b__c/d--e.f", "docker.io/a/b__c/d--e.f:latest"),
            (&format!("busybox@sha256:{HEX}"), &pinned),
            (&format!("busybox:1.36@sha256:{HEX}"), &pinned),
        ];
        for (text, wanted) in table {
            assert_eq!(Reference::parse(text).unwrap().to_string(), *wanted, "{text}");
        }
    }

    #[test]
    fn malformed_references_are_refused_with_their_text() {
        let long = format!("x/{}", "a".repeat(300));
        let long_tag = format!("x:{}", "t".repeat(129));
        let bad = [
            "",
            "UPPER",
            "a/B",
            "x:",
            "x:-t",
            ":tag",
            "a//b",
            "/a",
            "a/",
            "-a/b",
            "a..b",
            "a___b",
            "host:port/x",
            "host:0/x",
            "x@sha256:12",
            "x@",
            "a b",
            "x/../y",
            HEX,
            &long,
            &long_tag,
            "ex_ample.com/x",
        ];
        for text in bad {
            let error = Reference::parse(text).expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
