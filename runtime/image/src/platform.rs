//! Which image of an index fits this machine.

use serde::Deserialize;

/// An index entry's platform.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image of platform `offer` runs here: higher is better, `None` is not at all.
    /// Among 32-bit arm variants the newest not newer than the host's wins; elsewhere the
    /// equal variant, then none.
    pub(crate) fn rank(&self, offer: &Self) -> Option<u32> {
        if offer.os != self.os || offer.architecture != self.architecture {
            return None;
        }
        let number =
            |p: &Self| -> Option<u32> { p.variant.as_deref()?.strip_prefix('v')?.parse().ok() };
        match (&self.variant, &offer.variant) {
            (mine, theirs) if mine == theirs => Some(1000),
            (_, None) => Some(1),
            (Some(_), Some(_)) => {
                let (mine, theirs) = (number(self)?, number(offer)?);
                (theirs <= mine).then(|| 2 + theirs)
            }
            // amd64 without a stated level runs the baseline only.
            (None, Some(variant)) => (variant == "v1").then_some(999),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_best_fitting_platform_wins() {
        let table: &[(&str, &[&str], Option<usize>)] = &[
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/arm64/v8", "windows/amd64"], None),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], Some(1)),
            ("linux/arm/v7", &["linux/arm", "linux/arm/v7"], Some(1)),
            ("linux/arm64/v8", &["linux/arm64"], Some(0)),
        ];
        for (host, offers, wanted) in table {
            let host = platform(host);
            let ranks: Vec<_> = offers.iter().map(|o| host.rank(&platform(o))).collect();
            let best = (0..offers.len()).filter(|&i| ranks[i].is_some()).max_by_key(|&i| ranks[i]);
            assert_eq!(best, *wanted, "{host} {offers:?}");
        }
    }
}
