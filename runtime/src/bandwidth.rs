//! The two annotations by which a pod asks for a limit to its network traffic. Pure.
//!
//! Source: Kubernetes, "Network Plugins", support traffic shaping; the numbers are quantities
//! of bits per second.

use std::collections::BTreeMap;

use crate::pod::{Error, Result};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// What Kubernetes allows: 1 kbit/s to 1 Pbit/s.
const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;

/// Rates in bits per second, to the pod and from the pod; None is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: Option<u64>,
}

/// What the annotations of a pod ask for.
pub(crate) fn rates(annotations: &BTreeMap<String, String>) -> Result<Rates> {
    Ok(Rates { ingress: rate(annotations, INGRESS)?, egress: rate(annotations, EGRESS)? })
}

fn rate(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let refuse = |why: &str| Err(Error::invalid(format!("config.annotations[{key:?}]"), text, why));
    match quantity(text) {
        None => refuse("is not a quantity such as 10M"),
        Some(rate) if !(LEAST..=MOST).contains(&rate) => refuse("is not between 1k and 1P"),
        Some(rate) => Ok(Some(rate)),
    }
}

/// A Kubernetes quantity as a whole number, a fraction rounded up.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.contains('.') {
        return None;
    }
    let scaled = digits.parse::<u128>().ok()?.checked_mul(factor(suffix)?)?;
    let places = u32::try_from(fraction.len()).ok()?;
    u64::try_from(scaled.div_ceil(10u128.checked_pow(places)?)).ok()
}

fn factor(suffix: &str) -> Option<u128> {
    let power = |base: u128, n| base.checked_pow(n);
    match suffix {
        "" => Some(1),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            power(10, exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        let cases = [
            ("1000", Some(1000)),
            ("10M", Some(10_000_000)),
            ("1.5M", Some(1_500_000)),
            (".5k", Some(500)),
            ("1Ki", Some(1024)),
            ("1e6", Some(1_000_000)),
            ("1E+6", Some(1_000_000)),
            ("1.0001", Some(2)),
            ("", None),
            (".", None),
            ("M", None),
            ("1.2.3", None),
            ("10MB", None),
            ("-1", None),
            ("1e999", None),
            ("99999999999999999999P", None),
        ];
        for (text, expected) in cases {
            assert_eq!(quantity(text), expected, "{text:?}");
        }
    }

    #[test]
    fn annotations_ask_for_rates() {
        let annotations = |ingress: &str| {
            BTreeMap::from([
                (INGRESS.to_owned(), ingress.to_owned()),
                (EGRESS.to_owned(), "2M".to_owned()),
            ])
        };
        assert_eq!(rates(&BTreeMap::new()).unwrap(), Rates::default());
        let asked = rates(&annotations("1M")).unwrap();
        assert_eq!((asked.ingress, asked.egress), (Some(1_000_000), Some(2_000_000)));
        for bad in ["fast", "999", "2P"] {
            let text = rates(&annotations(bad)).unwrap_err().to_string();
            assert!(text.contains(INGRESS) && text.contains(bad), "{text}");
        }
    }
}
