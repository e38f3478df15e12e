//! Which images may be used, and whose signatures they need.
//!
//! - `rule`: prefixes of repositories and what holds for them. Pure.
//! - `key`, `signature`: keys, and signatures as cosign makes them. Pure.
//! - `find`: where signatures lie in a registry.
//!
//! A pull is checked before anything but manifests is fetched ([`check`]); what was verified is
//! recorded with the image. An image that is there already is checked against that record
//! whenever something is made of it ([`Policy::admit`]), however it came to the node.

mod find;
mod key;
mod rule;
mod signature;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use key::{InvalidKey, PublicKey};
pub use rule::{Action, Identity, InvalidPrefix, Policy, Rule};
pub use signature::{Signature, Statement, Subject, Unfit};

use crate::digest::Digest;
use crate::error;
use crate::reference::Reference;
use crate::registry::beside::Repository;
use crate::store::Image;

/// How many reasons one message tells.
const MAX_REASONS: usize = 8;

/// Why an image may not be used. Each names the rule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The rule denies all images it holds for.
    #[error("{name} is denied by {rule} of the image policy")]
    Denied {
        /// The image's name, or its id if it has none.
        name: String,
        /// The rule, as text.
        rule: String,
    },
    /// The image has no signature that the rule accepts.
    #[error(
        "{rule} of the image policy requires a signature of {name}, and {digest} has {}",
        reasons(.found)
    )]
    Unsigned {
        /// The image's name.
        name: String,
        /// The rule, as text.
        rule: String,
        /// What the name led to.
        digest: Digest,
        /// Each signature that was found, and why it does not do.
        found: Vec<String>,
    },
    /// The image is on this machine without ever having been verified as the rule wants it.
    #[error(
        "{rule} of the image policy requires a signature of {name}, and this image was not \
         verified by any of the rule's keys when it came here; pulling it again verifies it"
    )]
    Unverified {
        /// The image's name, or its id if it has none.
        name: String,
        /// The rule, as text.
        rule: String,
    },
}

fn reasons(found: &[String]) -> String {
    match found.len() {
        0 => "none".to_owned(),
        count => {
            let told: Vec<_> = found.iter().take(MAX_REASONS).map(String::as_str).collect();
            let more = if count > MAX_REASONS { "; …" } else { "" };
            format!("none that it accepts ({}{more})", told.join("; "))
        }
    }
}

/// That an image was verified once. It speaks of the image's contents, whatever its names are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Verification {
    /// The prefix of the rule that asked for it; empty for the default rule.
    pub rule: String,
    /// The key that verified it.
    pub key: Digest,
    /// The index or manifest that was signed.
    pub subject: Digest,
    /// The repository that the signature names; empty where it names none.
    pub repository: String,
}

impl Verification {
    /// Whether this one says again what an earlier one said.
    pub(crate) fn replaces(&self, earlier: &Self) -> bool {
        self.key == earlier.key && self.repository == earlier.repository
    }
}

/// Refuses a pull that needs no look at the registry to be refused.
pub(crate) fn check_name(policy: &Policy, reference: &Reference) -> Result<(), Error> {
    let rule = policy.rule(Some(&reference.name()));
    match rule.action() {
        Action::Deny => Err(Error::Denied { name: reference.to_string(), rule: rule.to_string() }),
        _ => Ok(()),
    }
}

/// Decides whether the image may be pulled. `subjects` are what the name led to, and the manifest
/// for this machine where that is another one: a signature of either will do, as the one says
/// all about the other. Fetches nothing where the rule requires nothing.
pub(crate) async fn check(
    policy: &Policy,
    reference: &Reference,
    subjects: &[Subject<'_>],
    from: &impl Repository,
) -> Result<Option<Verification>, error::Error> {
    check_name(policy, reference)?;
    let rule = policy.rule(Some(&reference.name()));
    let Action::Require { keys, identity } = rule.action() else { return Ok(None) };
    let mut found = Vec::new();
    for subject in subjects {
        for lead in find::leads(from, subject.digest).await? {
            let Some(signature) = find::fetch(from, &lead).await? else { continue };
            let verified = signature
                .and_then(|signature| signature.verify(keys, *subject))
                .and_then(|statement| fitting(statement, *identity, reference));
            match verified {
                Ok(statement) => return Ok(Some(verification(rule, subject, statement))),
                Err(unfit) => found.push(format!("{}: {unfit}", lead.digest())),
            }
        }
    }
    let digest = subjects.first().map_or_else(|| Digest::of(b""), |first| first.digest.clone());
    let (name, rule) = (reference.to_string(), rule.to_string());
    Err(Error::Unsigned { name, rule, digest, found }.into())
}

fn verification(rule: &Rule, subject: &Subject<'_>, statement: Statement) -> Verification {
    Verification {
        rule: rule.prefix().to_owned(),
        key: statement.key,
        subject: subject.digest.clone(),
        repository: named(&statement.repository).unwrap_or_default(),
    }
}

/// The repository that a signature names, normalised.
fn named(text: &str) -> Option<String> {
    Reference::parse(text).ok().map(|named| named.name())
}

/// Checks the repository that a statement names, where the rule asks for that.
fn fitting(
    statement: Statement,
    identity: Identity,
    reference: &Reference,
) -> Result<Statement, Unfit> {
    if identity == Identity::Ignore {
        return Ok(statement);
    }
    let wanted = reference.name();
    if named(&statement.repository).as_ref() == Some(&wanted) {
        return Ok(statement);
    }
    Err(Unfit::Repository { found: statement.repository, wanted })
}

impl Policy {
    /// Whether something may be made of an image that is here. `asked` is the name by which the
    /// caller's user knows it; without one, the rules for all the image's names must be kept.
    pub fn admit(&self, image: &Image, asked: Option<&Reference>) -> Result<(), Error> {
        if let Some(asked) = asked {
            return self.admit_as(image, Some(asked));
        }
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let names: Vec<_> = names.filter_map(|name| Reference::parse(name).ok()).collect();
        if names.is_empty() {
            return self.admit_as(image, None);
        }
        names.iter().try_for_each(|name| self.admit_as(image, Some(name)))
    }

    fn admit_as(&self, image: &Image, named: Option<&Reference>) -> Result<(), Error> {
        let repository = named.map(Reference::name);
        let rule = self.rule(repository.as_deref());
        let name = || named.map_or_else(|| image.id.to_string(), Reference::to_string);
        match rule.action() {
            Action::Allow => Ok(()),
            Action::Deny => Err(Error::Denied { name: name(), rule: rule.to_string() }),
            Action::Require { keys, identity } => {
                let does = |done: &Verification| {
                    keys.iter().any(|key| *key.id() == done.key)
                        && (*identity == Identity::Ignore
                            || Some(&done.repository) == repository.as_ref())
                };
                if image.verified().iter().any(does) {
                    return Ok(());
                }
                Err(Error::Unverified { name: name(), rule: rule.to_string() })
            }
        }
    }
}
