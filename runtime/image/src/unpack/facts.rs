//! What a layer's tar leaves open, noted while it streams by.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Paths are canonical within the layer: no leading slash, no `.` or `..`, no symlink on the
/// way; the root is empty.
pub(super) type Path = Vec<u8>;

/// Whether a layer stands alone, and what to look up below it if not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Directories that something lies in but that have no entry of their own.
    #[serde(with = "paths")]
    pub(super) implicit: BTreeSet<Path>,
    /// Directories that got an entry, or were replaced, only after something lay in them: below,
    /// such a path may be a symlink, and what lay there lies elsewhere.
    #[serde(with = "paths")]
    pub(super) late: BTreeSet<Path>,
    /// Names removed from the layers below.
    #[serde(with = "paths")]
    pub(super) whiteouts: BTreeSet<Path>,
    /// Directories whose contents are removed from the layers below; the empty path is the root.
    #[serde(with = "paths")]
    pub(super) opaques: BTreeSet<Path>,
    /// Directories that took the place of something else in the layer, which hide what the
    /// layers below have in them from then on.
    #[serde(with = "paths")]
    pub(super) replaced: BTreeSet<Path>,
    /// An entry could not be applied without regard to the layers below: mostly a hard link
    /// whose target is there.
    pub(super) unapplied: bool,
    /// The root directory has an entry.
    pub(super) root_entry: bool,
}

impl Facts {
    /// The layer is the same above any other.
    pub(crate) fn stands_alone(&self) -> bool {
        self.implicit.is_empty() && self.late.is_empty() && !self.unapplied
    }

    /// Something in it cannot be unpacked but with the layers below in view.
    pub(crate) fn needs_below(&self) -> bool {
        self.unapplied
    }

    /// The root directory has an entry: its owner, mode and so on are the layer's own.
    pub(crate) fn root_entry(&self) -> bool {
        self.root_entry
    }

    /// Nothing of the layers below shows at all. overlayfs takes no mark on a layer's root, so
    /// this must be known where the layers are put together.
    pub(crate) fn opaque_root(&self) -> bool {
        self.opaques.contains(&b""[..])
    }

    /// Whether what the layers below have at `path` is hidden by now.
    pub(super) fn hides(&self, path: &[u8]) -> bool {
        self.removes(path) || prefixes(path).any(|p| self.replaced.contains(p))
    }

    /// Whether the layer removes what those below have at `path`, wherever in the tar it says
    /// so: removals come before all that a layer brings.
    pub(super) fn removes(&self, path: &[u8]) -> bool {
        self.whiteouts.contains(path)
            || prefixes(path).any(|p| self.whiteouts.contains(p) || self.opaques.contains(p))
    }

    /// The directory at `path` and all below it are gone from the layer.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let gone = |known: &&Path| *known == path || is_below(known, path);
        let gone: Vec<Path> = self.implicit.iter().filter(gone).cloned().collect();
        self.implicit.retain(|known| !gone.contains(known));
        self.late.extend(gone);
    }
}

/// Paths in JSON: each byte a character of the same number, since they need not be UTF-8.
mod paths {
    use std::collections::BTreeSet;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Path;

    pub(super) fn serialize<S: Serializer>(
        paths: &BTreeSet<Path>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            paths.iter().map(|path| path.iter().copied().map(char::from).collect::<String>()),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeSet<Path>, D::Error> {
        let byte = |c: char| u8::try_from(c).map_err(|_| D::Error::custom("a path beyond bytes"));
        let texts = Vec::<String>::deserialize(from)?;
        texts.into_iter().map(|text| text.chars().map(byte).collect()).collect()
    }
}

/// The directories that a path lies in, the root among them; none for the root itself.
pub(super) fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(at, _)| at);
    let root = (!path.is_empty()).then_some(0);
    root.into_iter().chain(slashes).filter_map(|at| path.get(..at))
}

pub(super) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// `dir/name`, where the root is empty.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Path {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_hide_their_own_path_and_opaques_what_is_within() {
        let mut facts = Facts::default();
        facts.whiteouts.insert(b"a/b".to_vec());
        facts.opaques.insert(b"o".to_vec());
        for (path, hidden) in [
            ("a", false),
            ("a/b", true),
            ("a/b/c", true),
            ("a/bc", false),
            ("o", false),
            ("o/x", true),
            ("o/x/y", true),
            ("ox", false),
        ] {
            assert_eq!(facts.hides(path.as_bytes()), hidden, "{path}");
        }
        assert!(!facts.opaque_root());
        facts.opaques.insert(Vec::new());
        assert!(facts.opaque_root() && facts.hides(b"z") && !facts.hides(b""));
    }

    #[test]
    fn facts_are_the_same_after_a_restart() {
        let mut facts = Facts { root_entry: true, ..Facts::default() };
        facts.implicit.extend([b"usr".to_vec(), b"odd\xff\x80\"".to_vec()]);
        facts.opaques.insert(Vec::new());
        let json = serde_json::to_vec(&facts).unwrap();
        assert_eq!(serde_json::from_slice::<Facts>(&json).unwrap(), facts);
    }

    #[test]
    fn what_is_replaced_is_no_longer_implicit() {
        let mut facts = Facts::default();
        facts.implicit.extend([b"a".to_vec(), b"a/b".to_vec(), b"ab".to_vec()]);
        facts.forget(b"a");
        assert_eq!(facts.implicit.iter().collect::<Vec<_>>(), [b"ab"]);
        // That something lay there may still matter, if a symlink is there below.
        assert_eq!(facts.late.iter().collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
        assert!(!facts.stands_alone());
    }
}
