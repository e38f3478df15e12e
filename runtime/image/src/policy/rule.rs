//! Which rule holds for which image.

use super::key::PublicKey;
use crate::reference::Reference;

/// What is done with the images of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They may be used.
    Allow,
    /// They may not.
    Deny,
    /// They may if one of these keys signed them.
    Require {
        /// At least one.
        keys: Vec<PublicKey>,
        /// Whether a signature must name the image's repository.
        identity: Identity,
    },
}

/// Whether a signature must name the repository that its image is pulled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// No: the image's digest and the key decide, as with cosign.
    #[default]
    Ignore,
    /// Yes, so that an image signed for one repository can't stand in for one of another.
    Repository,
}

/// A rule for the repositories below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    prefix: String,
    action: Action,
}

/// Why a text is no prefix of repositories.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{prefix:?} is not a registry, or a registry and the beginning of a repository, such as \
     \"docker.io/library\""
)]
pub struct InvalidPrefix {
    prefix: String,
}

impl Rule {
    /// A rule for the registry or the repositories that `prefix` names in full
    /// (`docker.io/library`, not `library`), whole parts of the name only: `a.example/b` is for
    /// `a.example/b` and `a.example/b/c`, not for `a.example/bc`.
    pub fn new(prefix: &str, action: Action) -> Result<Self, InvalidPrefix> {
        let below = format!("{prefix}/x/x");
        if Reference::parse(&below).is_ok_and(|whole| whole.name() == below) {
            return Ok(Self { prefix: normalised(prefix), action });
        }
        Err(InvalidPrefix { prefix: prefix.to_owned() })
    }

    /// What it holds for; empty for the default rule.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What it says.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    fn holds_for(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prefix.as_str() {
            "" => f.write_str("the default rule"),
            prefix => write!(f, "the rule for {prefix:?}"),
        }
    }
}

/// One registry goes by one name: host names know no case, and 443 is HTTPS's own port. Else
/// `EXAMPLE.org:443/x` would slip past the rule for `example.org`.
fn normalised(name: &str) -> String {
    let (registry, path) = name.split_at(name.find('/').unwrap_or(name.len()));
    let registry = registry.to_ascii_lowercase();
    format!("{}{path}", registry.strip_suffix(":443").unwrap_or(&registry))
}

/// Which images may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Rule,
    rules: Vec<Rule>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Action::Allow, Vec::new())
    }
}

impl Policy {
    /// Of several rules that hold, the one with the longest prefix decides; `default` where none
    /// does.
    #[must_use]
    pub fn new(default: Action, rules: Vec<Rule>) -> Self {
        Self { default: Rule { prefix: String::new(), action: default }, rules }
    }

    /// The rule for a repository such as `docker.io/library/busybox`, or for an image that has
    /// no name.
    #[must_use]
    pub fn rule(&self, repository: Option<&str>) -> &Rule {
        let Some(name) = repository.map(normalised) else { return &self.default };
        let holding = self.rules.iter().filter(|rule| rule.holds_for(&name));
        holding.max_by_key(|rule| rule.prefix.len()).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_names() {
        for good in
            ["docker.io", "docker.io/library", "localhost:5000/a/b", "[::1]:5000", "a.b/c-d"]
        {
            assert!(Rule::new(good, Action::Deny).is_ok(), "{good}");
        }
        let bad = [
            "",
            "/",
            "library",
            "busybox",
            "a/b",
            "docker.io/",
            "docker.io//a",
            "index.docker.io/a",
            "docker.io/A",
            "docker.io/a:latest",
            "docker.io/a@sha256:0",
            "https://docker.io",
            "*",
            "a.b/*",
            " a.b",
            "a.b ",
        ];
        for bad in bad {
            let error = Rule::new(bad, Action::Deny).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_parts_decides() {
        let rule = |prefix, action| Rule::new(prefix, action).unwrap();
        let policy = Policy::new(
            Action::Deny,
            vec![
                rule("a.example", Action::Allow),
                rule("a.example/b/c", Action::Allow),
                rule("a.example/b", Action::Deny),
                rule("h.example:5000", Action::Allow),
            ],
        );
        let cases = [
            ("a.example/x", "a.example"),
            ("a.example/b", "a.example/b"),
            ("a.example/b/d", "a.example/b"),
            ("a.example/bc", "a.example"),
            ("a.example/b/c", "a.example/b/c"),
            ("a.example/b/c/d/e", "a.example/b/c"),
            ("A.Example/b", "a.example/b"),
            ("a.example:443/b", "a.example/b"),
            ("a.example:4430/b", ""),
            ("a.example.org/b", ""),
            ("aa.example/b", ""),
            ("h.example:5000/b", "h.example:5000"),
            ("h.example/b", ""),
        ];
        for (name, prefix) in cases {
            assert_eq!(policy.rule(Some(name)).prefix(), prefix, "{name}");
        }
        assert_eq!(policy.rule(None).prefix(), "");
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        assert_eq!(*Policy::default().rule(Some("a.example/b")).action(), Action::Allow);
        assert_eq!(*Policy::default().rule(None).action(), Action::Allow);
    }
}
