//! Images that are to stay, by their names.

use crate::reference::Reference;
use crate::store::Image;

/// Which names are pinned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pins(Vec<String>);

impl Pins {
    /// Patterns for whole names (`registry.k8s.io/pause:*`), in which `*` stands for any text; one
    /// without `*` may be shortened as image names may be.
    pub(crate) fn new(patterns: &[String]) -> Self {
        let whole = |pattern: &String| match Reference::parse(pattern) {
            Ok(name) if !pattern.contains('*') => name.to_string(),
            _ => pattern.clone(),
        };
        Self(patterns.iter().map(whole).collect())
    }

    /// Whether one of the image's names is pinned.
    pub(crate) fn hold(&self, image: &Image) -> bool {
        let mut names = image.repo_tags.iter().chain(&image.repo_digests);
        names.any(|name| self.0.iter().any(|pattern| fits(pattern, name)))
    }
}

/// Whether the text is of this pattern.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The earliest place for each part leaves the most for those after it.
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some((_, after)) = text.split_once(part) else { return false };
        text = after;
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_any_text() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*c", "abc", true),
            ("*c", "abcd", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("ab*bc", "abc", false),
            ("a*b*c", "a--b--c", true),
            ("a*b*c", "a--c--b", false),
            ("a*bb*bc", "abbbc", true),
            ("a*bb*bbc", "abbbc", false),
            ("a**c", "abc", true),
            ("r.io/pause:*", "r.io/pause:3.9", true),
            ("r.io/pause:*", "r.io/pause@sha256:0", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(fits(pattern, text), expected, "{pattern:?} {text:?}");
        }
    }
}
