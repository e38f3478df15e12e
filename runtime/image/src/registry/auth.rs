//! Logging in to one host: basic, or a token fetched for it.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::challenge::{Challenge, challenge};
use super::client::{Http, Outgoing, shown};
use super::source::escaped;
use super::{Credentials, Error};

/// No answer of a token server is longer.
const MAX_TOKEN: u64 = 1 << 20;
/// Who asks; token servers write it to their logs.
const CLIENT_ID: &str = "berth";

/// What is known of one host's door.
pub(super) struct Auth {
    credentials: Option<Credentials>,
    /// What opened it, by scope.
    keys: Mutex<HashMap<String, HeaderValue>>,
}

impl Auth {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        Self { credentials, keys: Mutex::default() }
    }

    /// What to send with a request before it has been refused.
    pub(super) async fn key(&self, scope: &str) -> Option<HeaderValue> {
        if let Some(token) = self.registry_token() {
            return token;
        }
        self.keys.lock().await.get(scope).cloned()
    }

    fn registry_token(&self) -> Option<Option<HeaderValue>> {
        let token = self.credentials.as_ref().map(|c| c.registry_token.as_str())?;
        if token.is_empty() { None } else { Some(bearer(token)) }
    }

    /// What to send after a refusal of `stale`: a new key, or `None` if there is none to be had.
    /// One asks; others who were refused with the same wait for it.
    pub(super) async fn answer(
        &self,
        http: &Http,
        from: &Uri,
        refusal: &HeaderMap,
        scope: &str,
        stale: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Error> {
        if self.registry_token().is_some() {
            return Ok(None);
        }
        let mut keys = self.keys.lock().await;
        if let Some(newer) = keys.get(scope).filter(|key| Some(*key) != stale) {
            return Ok(Some(newer.clone()));
        }
        let key = match challenge(refusal) {
            None => None,
            // What was refused once is not let in the second time.
            Some(Challenge::Basic) if stale.is_some() => None,
            Some(Challenge::Basic) => self.basic(),
            Some(Challenge::Bearer { realm, service, scope: wanted }) => {
                let realm = realm_of(&realm, from)?;
                let scopes = scopes(&wanted, scope);
                Some(self.token(http, &realm, &service, &scopes).await?)
            }
        };
        if let Some(key) = &key {
            keys.insert(scope.to_owned(), key.clone());
        }
        Ok(key)
    }

    fn user(&self) -> Option<&Credentials> {
        self.credentials.as_ref().filter(|c| !c.username.is_empty() || !c.password.is_empty())
    }

    fn basic(&self) -> Option<HeaderValue> {
        let Credentials { username, password, .. } = self.user()?;
        secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
    }

    /// By GET with the password, or anonymous; by POST (OAuth 2) with an identity token, and
    /// where a server knows no GET.
    async fn token(
        &self,
        http: &Http,
        realm: &Uri,
        service: &str,
        scopes: &[String],
    ) -> Result<HeaderValue, Error> {
        let identity = self.credentials.as_ref().map(|c| c.identity_token.as_str());
        if let Some(identity) = identity.filter(|token| !token.is_empty()) {
            let grant = [("grant_type", "refresh_token"), ("refresh_token", identity)];
            return self.post(http, realm, service, scopes, &grant).await;
        }
        match self.get(http, realm, service, scopes).await {
            Err(Error::Status { status, .. })
                if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
                    && self.user().is_some() =>
            {
                let user = self.user().map(|c| (c.username.as_str(), c.password.as_str()));
                let (name, password) = user.unwrap_or_default();
                let grant =
                    [("grant_type", "password"), ("username", name), ("password", password)];
                self.post(http, realm, service, scopes, &grant).await
            }
            other => other,
        }
    }

    async fn get(
        &self,
        http: &Http,
        realm: &Uri,
        service: &str,
        scopes: &[String],
    ) -> Result<HeaderValue, Error> {
        let mut query = Vec::new();
        if !service.is_empty() {
            query.push(("service", service));
        }
        query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
        if let Some(user) = self.user() {
            query.push(("account", user.username.as_str()));
        }
        let joint = if realm.query().is_some() { '&' } else { '?' };
        let url = format!("{realm}{joint}{}", form(&query));
        let mut outgoing = Outgoing::get(&url)?;
        if let Some(basic) = self.basic() {
            outgoing.headers.insert(AUTHORIZATION, basic);
        }
        fetch(http, realm, outgoing).await
    }

    async fn post(
        &self,
        http: &Http,
        realm: &Uri,
        service: &str,
        scopes: &[String],
        grant: &[(&str, &str)],
    ) -> Result<HeaderValue, Error> {
        let scope = scopes.join(" ");
        let mut fields = vec![("service", service), ("scope", &scope), ("client_id", CLIENT_ID)];
        fields.extend_from_slice(grant);
        let mut outgoing = Outgoing::get(&realm.to_string())?;
        outgoing.method = Method::POST;
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        outgoing.headers.insert(CONTENT_TYPE, kind);
        outgoing.body = Bytes::from(form(&fields));
        fetch(http, realm, outgoing).await
    }
}

async fn fetch(http: &Http, realm: &Uri, outgoing: Outgoing) -> Result<HeaderValue, Error> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let bad = |reason: &str| Error::BadAnswer { url: shown(realm), reason: reason.to_owned() };
    let answer = http.follow(outgoing).await?;
    let mut body = answer.good(&[StatusCode::OK]).await?;
    let bytes = body.read_all(MAX_TOKEN).await?;
    // What serde says may quote the token.
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| bad("the token server's answer is no token"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    let key = if token.is_empty() { None } else { bearer(&token) };
    key.ok_or_else(|| bad("the token server's answer holds no token"))
}

/// Where tokens are had. A registry reached by https must not send a password elsewhere in the
/// clear.
fn realm_of(realm: &str, from: &Uri) -> Result<Uri, Error> {
    let bad = |reason: &str| Error::BadAnswer { url: shown(from), reason: reason.to_owned() };
    let uri: Uri = realm.parse().map_err(|_| bad("names a token server that is no URL"))?;
    match (from.scheme_str(), uri.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) if uri.host().is_some() => Ok(uri),
        _ => Err(bad("names a token server that is not reached by https")),
    }
}

/// The registry's wish and ours, each once.
fn scopes(wanted: &str, own: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for scope in wanted.split(' ').chain(own.split(' ')).filter(|scope| !scope.is_empty()) {
        if !all.iter().any(|known| known == scope) {
            all.push(scope.to_owned());
        }
    }
    all
}

fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(key, value)| format!("{key}={}", escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

/// Never shown by Debug. `None` for what no header can hold.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_joined_without_doubles() {
        let pull = "repository:x:pull";
        assert_eq!(scopes(pull, pull), [pull]);
        assert_eq!(scopes("", pull), [pull]);
        assert_eq!(scopes("a b", "b c"), ["a", "b", "c"]);
    }

    #[test]
    fn a_token_server_is_reached_no_less_safely_than_its_registry() {
        let (safe, plain) =
            (Uri::from_static("https://r.test/v2"), Uri::from_static("http://r/v2"));
        assert!(realm_of("https://a.test/t?x=1", &safe).is_ok());
        assert!(realm_of("http://a.test/t", &plain).is_ok());
        for bad in ["http://a.test/t", "", "/t", "ftp://a.test", "https://", "a b"] {
            assert!(realm_of(bad, &safe).is_err(), "{bad}");
        }
    }
}
