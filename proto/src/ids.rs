//! Ids of pods and containers: 64 lower-case hexadecimal digits each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Digits of a full id.
pub const ID_LEN: usize = 64;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} id {text:?} is not {ID_LEN} lower-case hexadecimal digits")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes exactly [`ID_LEN`] lower-case hexadecimal digits.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == ID_LEN && text.bytes().all(hex) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, text: text.to_owned() })
                }
            }

            /// The id that these 32 random bytes spell.
            #[must_use]
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
            }

            /// All 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id_type!(
    /// A pod sandbox.
    PodId,
    "pod sandbox"
);
id_type!(
    /// A container.
    ContainerId,
    "container"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_lower_case_hex_is_an_id() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(PodId::parse(&good).unwrap().as_str(), good);
        for bad in ["", "abc", &good[1..], &good.to_uppercase(), &format!("{}g", &good[1..])] {
            assert!(PodId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn random_bytes_spell_a_valid_id() {
        let id = ContainerId::from_random([0xa5; 32]);
        assert_eq!(ContainerId::parse(id.as_str()), Ok(id));
    }
}
