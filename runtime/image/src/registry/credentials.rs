//! Who Berth is to a registry: what a caller gave, or what the node's `config.json` says.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Error;

/// No such file is larger.
const MAX_FILE: u64 = 1 << 20;

/// What a caller gives to be let in; as in CRI's AuthConfig. Never stored, never logged.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// A user's name, with `password`.
    pub username: String,
    /// The password of `username`.
    pub password: String,
    /// To be exchanged for an access token.
    pub identity_token: String,
    /// A bearer token as it is.
    pub registry_token: String,
    /// The one host that these are for, as `HOST[:PORT]` or a URL; empty: the registry that is
    /// asked and the mirrors that stand in for it.
    pub server_address: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// Whether there is anything to log in with.
    pub(super) fn are_empty(&self) -> bool {
        let Self { username, password, identity_token, registry_token, .. } = self;
        [username, password, identity_token, registry_token].iter().all(|text| text.is_empty())
    }

    fn are_for(&self, authority: &str) -> bool {
        self.server_address.is_empty() || host_of(&self.server_address) == canonical(authority)
    }
}

/// Docker's `config.json`, as far as it holds credentials.
#[derive(Default)]
pub(super) struct AuthFile {
    entries: BTreeMap<String, Credentials>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    #[serde(default)]
    auths: BTreeMap<String, RawAuth>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl AuthFile {
    /// A file that is not there has no credentials. Its contents are in no error's text.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fail = |reason: String| Error::AuthFile { path: path.display().to_string(), reason };
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(fail(e.to_string())),
            Ok(about) if about.len() > MAX_FILE => {
                return Err(fail(format!("{} bytes, more than {MAX_FILE}", about.len())));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        Self::parse(&bytes).map_err(fail)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // serde's own message may quote a value.
        let raw: RawFile = serde_json::from_slice(bytes)
            .map_err(|e| format!("line {} is not as in docker's config.json", e.line()))?;
        if raw.creds_store.is_some() || !raw.cred_helpers.is_empty() {
            tracing::warn!("the registries' auth file names credential helpers; none is run");
        }
        let entries = raw.auths.into_iter().map(|(key, auth)| {
            let found = credentials(auth).map_err(|reason| format!("auths.{key:?}: {reason}"))?;
            Ok((key_of(&key), found))
        });
        Ok(Self { entries: entries.collect::<Result<_, String>>()? })
    }

    /// The entry for a repository on a host: the longest path wins, then the host alone.
    fn find(&self, authority: &str, repository: &str) -> Option<&Credentials> {
        let mut name = format!("{}/{repository}", canonical(authority));
        loop {
            if let Some(found) = self.entries.get(&name) {
                return Some(found);
            }
            name.truncate(name.rfind('/')?);
        }
    }
}

fn credentials(raw: RawAuth) -> Result<Credentials, &'static str> {
    let (username, password) = match raw.auth.as_str() {
        "" => (raw.username, raw.password),
        encoded => decode(encoded).ok_or("auth is not user:password in base64")?,
    };
    Ok(Credentials {
        username,
        password,
        identity_token: raw.identitytoken,
        registry_token: raw.registrytoken,
        server_address: String::new(),
    })
}

fn decode(encoded: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = text.trim_end_matches('\0').split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// What may be told to one host. A mirror's own entry in the file comes first, then the
/// caller's word; the registry itself is told the caller's word first.
pub(super) fn choose(
    given: Option<&Credentials>,
    file: &AuthFile,
    authority: &str,
    registry: &str,
    repository: &str,
) -> Option<Credentials> {
    let given = given.filter(|given| !given.are_empty() && given.are_for(authority));
    let own = file.find(authority, repository);
    let is_itself = canonical(authority) == canonical(registry);
    let chosen = if is_itself { given.or(own) } else { own.or(given) };
    chosen.cloned()
}

/// `https://index.docker.io/v1/` is what docker calls its own registry.
fn key_of(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = canonical(host);
    match path {
        "" | "v1" | "v2" => host,
        path => format!("{host}/{path}"),
    }
}

fn host_of(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or_default())
}

fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Credentials {
        let password = format!("{name}-word");
        Credentials { username: name.to_owned(), password, ..Credentials::default() }
    }

    fn file() -> AuthFile {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmh1Yi13b3Jk"},
            "mirror.test:5000": {"username": "mirror", "password": "mirror-word"},
            "quay.test/team": {"auth": "dGVhbTp0ZWFtLXdvcmQ="},
            "quay.test": {"identitytoken": "it"},
            "token.test": {"registrytoken": "rt"}
        }, "HttpHeaders": {}}"#;
        AuthFile::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn each_host_is_told_what_is_meant_for_it() {
        let file = file();
        let chosen = |given: Option<&Credentials>, authority: &str, registry: &str, repo: &str| {
            choose(given, &file, authority, registry, repo)
        };
        let hub = chosen(None, "registry-1.docker.io", "docker.io", "library/x");
        assert_eq!(hub, Some(user("hub")));
        let given = user("given");
        assert_eq!(chosen(Some(&given), "docker.io", "docker.io", "x"), Some(given.clone()));
        let mirror = chosen(Some(&given), "mirror.test:5000", "docker.io", "x");
        assert_eq!(mirror, Some(user("mirror")), "a mirror's own come first");
        let other = chosen(Some(&given), "other.test", "docker.io", "x");
        assert_eq!(other, Some(given.clone()), "as containerd");
        let bound = Credentials { server_address: "https://docker.io/v1/".to_owned(), ..given };
        assert_eq!(chosen(Some(&bound), "other.test", "docker.io", "x"), None);
        let itself = chosen(Some(&bound), "registry-1.docker.io", "docker.io", "x");
        assert_eq!(itself, Some(bound));
        let nothing = Credentials::default();
        assert_eq!(chosen(Some(&nothing), "docker.io", "docker.io", "x"), Some(user("hub")));
        assert_eq!(chosen(None, "none.test", "none.test", "x"), None);
    }

    #[test]
    fn the_longest_path_of_the_file_wins() {
        let file = file();
        let found = |host: &str, repo: &str| file.find(host, repo).cloned().unwrap();
        assert_eq!(found("quay.test", "team/app"), user("team"));
        assert_eq!(found("quay.test", "team"), user("team"));
        assert_eq!(found("quay.test", "teams/app").identity_token, "it");
        assert_eq!(found("token.test", "x").registry_token, "rt");
    }

    #[test]
    fn a_bad_file_is_refused_without_its_secrets() {
        let bad = [
            r#"{"auths": {"x.test": {"auth": "c2VjcmV0"}}}"#,
            r#"{"auths": {"x.test": {"auth": "!secret!"}}}"#,
            r#"{"auths": {"x.test": {"password": {"secret": 1}}}}"#,
            r#"{"auths": {"x.test": "secret"}}"#,
            r#"{"auths": secret}"#,
        ];
        for text in bad {
            let error = AuthFile::parse(text.as_bytes()).map(|_| ()).unwrap_err();
            assert!(!error.contains("secret") && !error.contains("c2Vj"), "{text}: {error}");
        }
        assert!(AuthFile::read(Some(Path::new("/nonexistent/config.json"))).is_ok());
    }
}
