//! Image names and credentials.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_image::{Credentials, Reference};
use berth_proto::cri;

use super::field;
use crate::pod::Result;

/// A reference that can be pulled.
pub(in crate::cri) fn reference(field: &str, text: &str) -> Result<Reference> {
    if text.is_empty() {
        return field::refuse(field, text, "is empty");
    }
    Reference::parse(text).or_else(|error| field::refuse(field, text, &error.to_string()))
}

/// Any name that an image can have here: a reference or an id, whole or its beginning.
pub(in crate::cri) fn image_name<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    let id = text.strip_prefix("sha256:").unwrap_or(text);
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        reference(field, text)?;
    }
    Ok(text)
}

/// What the request brings to log in with. `auth` is `user:password` in base64, as in docker's
/// configuration file; no message repeats any of it.
pub(in crate::cri) fn credentials(auth: &cri::AuthConfig) -> Result<Credentials> {
    let (username, password) = match auth.auth.as_str() {
        "" => (auth.username.clone(), auth.password.clone()),
        encoded => decode(encoded)?,
    };
    Ok(Credentials {
        username,
        password,
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
        server_address: auth.server_address.clone(),
    })
}

fn decode(encoded: &str) -> Result<(String, String)> {
    let refused = || field::refuse("auth.auth", "(hidden)", "is not user:password in base64");
    let Ok(bytes) = STANDARD.decode(encoded) else { return refused() };
    let Ok(text) = String::from_utf8(bytes) else { return refused() };
    match text.trim_end_matches('\0').split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => refused(),
    }
}
