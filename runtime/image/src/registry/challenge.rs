//! `WWW-Authenticate`: what a registry wants before it serves.
//!
//! <https://distribution.github.io/distribution/spec/auth/token/>, RFC 9110 section 11.

use hyper::header::{HeaderMap, WWW_AUTHENTICATE};

/// A way to log in that Berth knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token, to be had at `realm`.
    Bearer { realm: String, service: String, scope: String },
}

/// The best that the registry offers: a token before a password.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all: Vec<_> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or_else(|| all.first()).cloned()
}

/// The challenges of one header line that are of known schemes.
fn parse(line: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = line;
    while let Some((word, after)) = word(rest) {
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, after) = value_of(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            found.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
    }
    found.into_iter().filter_map(known).collect()
}

fn known((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let named = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: named("realm"),
            service: named("service"),
            scope: named("scope"),
        }),
        _ => None,
    }
}

/// The next token and what follows it.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find([' ', '\t', ',', '=']).unwrap_or(text.len());
    if end == 0 {
        // A stray sign: passed over.
        let mut rest = text.chars();
        rest.next()?;
        return word(rest.as_str());
    }
    text.split_at_checked(end)
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end).unwrap_or((text, ""));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(next) = chars.next() {
        match next {
            '"' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let [realm, service, scope] = [realm, service, scope].map(str::to_owned);
        Challenge::Bearer { realm, service, scope }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let table = [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a.test/token\",service=\"reg\",scope=\"repository:x:pull\"",
                Some(bearer("https://a.test/token", "reg", "repository:x:pull")),
            ),
            (
                "bearer realm=https://a.test/token , service=\"a, \\\"b\\\"\"",
                Some(bearer("https://a.test/token", "a, \"b\"", "")),
            ),
            (
                "Basic realm=\"Bearer of news\", Bearer realm=\"https://a.test\"",
                Some(bearer("https://a.test", "", "")),
            ),
            ("Negotiate", None),
            ("", None),
            ("=,\"", None),
        ];
        for (line, wanted) in table {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, line.parse().unwrap());
            assert_eq!(challenge(&headers), wanted, "{line}");
        }
        let mut two = HeaderMap::new();
        two.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        two.append(WWW_AUTHENTICATE, "Bearer realm=\"https://a\"".parse().unwrap());
        assert_eq!(challenge(&two), Some(bearer("https://a", "", "")));
    }
}
