//! The image policy with its keys read.

use std::io;
use std::path::{Path, PathBuf};

use berth_image::policy::{Action, Identity, InvalidKey, InvalidPrefix, Policy, PublicKey, Rule};

use crate::config::{ImagePolicy, PolicyAction};

/// Why the configured policy can't be kept. The daemon does not start without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key's file can't be read.
    #[error("read key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file has no usable key.
    #[error("key {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidKey,
    },
    /// A rule's prefix.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
}

/// Reads the keys. A key that is replaced on disk is read at the next start.
pub(super) fn load(configured: &ImagePolicy) -> Result<Policy, Error> {
    let rules = configured.rule.iter();
    let rules = rules.map(|rule| Ok(Rule::new(&rule.prefix, action(&rule.action)?)?));
    Ok(Policy::new(action(&configured.default)?, rules.collect::<Result<_, Error>>()?))
}

fn action(configured: &PolicyAction) -> Result<Action, Error> {
    Ok(match configured {
        PolicyAction::Allow => Action::Allow,
        PolicyAction::Deny => Action::Deny,
        PolicyAction::Require { keys, match_repository } => Action::Require {
            keys: all_keys(keys)?,
            identity: if *match_repository { Identity::Repository } else { Identity::Ignore },
        },
    })
}

fn all_keys(files: &[PathBuf]) -> Result<Vec<PublicKey>, Error> {
    let read = files.iter().map(|file| keys(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(read.into_iter().flatten().collect())
}

fn keys(path: &Path) -> Result<Vec<PublicKey>, Error> {
    let text =
        std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    PublicKey::all_from_pem(&text).map_err(|source| Error::Key { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn require(keys: Vec<PathBuf>) -> ImagePolicy {
        let default = PolicyAction::Require { keys, match_repository: true };
        ImagePolicy { default, rule: Vec::new() }
    }

    #[test]
    fn keys_are_read_and_bad_ones_are_named() {
        let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/tests/vectors/cosign");
        let policy = load(&require(vec![good.join("p256.pub"), good.join("rsa.pub")])).unwrap();
        let Action::Require { keys, identity } = policy.rule(None).action() else {
            panic!("{policy:?}")
        };
        assert_eq!((keys.len(), *identity), (2, Identity::Repository));
        for bad in ["README.md", "none.pub"] {
            let error = load(&require(vec![good.join("p256.pub"), good.join(bad)])).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
