//! The part `[image.policy]`: which images may be used, and whose signatures they need.

use std::path::PathBuf;

use berth_image::policy::{Action, Rule};
use serde::Serialize;

use super::raw;
use super::resolved::{InvalidValue, absolute};

/// Which images may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImagePolicy {
    /// For images that no rule names.
    #[serde(flatten)]
    pub default: PolicyAction,
    /// For images of registries and repositories.
    pub rule: Vec<PolicyRule>,
}

/// A rule for the repositories below a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// A registry, or a registry and the beginning of a repository.
    pub prefix: String,
    /// What is done with them.
    #[serde(flatten)]
    pub action: PolicyAction,
}

/// What is done with the images of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum PolicyAction {
    /// They may be used.
    Allow,
    /// They may not.
    Deny,
    /// They may if they are signed with one of the keys.
    Require {
        /// Files with public keys; at least one.
        keys: Vec<PathBuf>,
        /// Whether a signature must name the repository.
        match_repository: bool,
    },
}

pub(super) fn resolve(raw: raw::ImagePolicy) -> Result<ImagePolicy, InvalidValue> {
    let default = action("image.policy", raw.action, raw.keys, raw.match_repository, true)?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for (number, rule) in raw.rule.into_iter().enumerate() {
        let at = format!("image.policy.rule[{number}]");
        let refuse = |value: &str, why: String| {
            let key = format!("{at}.prefix");
            Err(InvalidValue::Policy { key, value: value.to_owned(), why })
        };
        let prefix = rule.prefix.unwrap_or_default();
        // The image crate knows what a prefix is, and how two of them are the same.
        let prefix = match Rule::new(&prefix, Action::Allow) {
            Ok(rule) => rule.prefix().to_owned(),
            Err(error) => return refuse(&prefix, error.to_string()),
        };
        if rules.iter().any(|other| other.prefix == prefix) {
            return refuse(&prefix, "another rule has this prefix".to_owned());
        }
        let action = action(&at, rule.action, rule.keys, rule.match_repository, false)?;
        rules.push(PolicyRule { prefix, action });
    }
    Ok(ImagePolicy { default, rule: rules })
}

fn action(
    at: &str,
    action: Option<String>,
    keys: Option<Vec<PathBuf>>,
    match_repository: Option<bool>,
    optional: bool,
) -> Result<PolicyAction, InvalidValue> {
    let refuse = |key: &str, value: &str, why: &str| InvalidValue::Policy {
        key: format!("{at}.{key}"),
        value: value.to_owned(),
        why: why.to_owned(),
    };
    let word = match action.as_deref() {
        None if optional => "allow",
        word => word.unwrap_or_default(),
    };
    if word == "require" {
        let keys = keys.unwrap_or_default();
        if keys.is_empty() {
            return Err(refuse("keys", "", "action \"require\" needs at least one key"));
        }
        let keys = keys.into_iter().map(|path| absolute("image.policy: keys", path));
        let match_repository = match_repository.unwrap_or_default();
        return Ok(PolicyAction::Require {
            keys: keys.collect::<Result<_, _>>()?,
            match_repository,
        });
    }
    let needless = if keys.is_some() { Some("keys") } else { None };
    if let Some(key) = needless.or(match_repository.map(|_| "match_repository")) {
        return Err(refuse(key, word, "only action \"require\" has this key"));
    }
    match word {
        "allow" => Ok(PolicyAction::Allow),
        "deny" => Ok(PolicyAction::Deny),
        other => Err(refuse("action", other, "is not \"allow\", \"deny\" or \"require\"")),
    }
}
