//! Subnets, and which of their addresses are free.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A range of addresses: `10.85.0.0/16`, `fd85::/64`. The first address is the bridge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    first: IpAddr,
    prefix: u8,
}

/// Why a text is no subnet that pods can get addresses from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not of the form ADDRESS/LENGTH")]
    Form(String),
    /// Bits after the prefix are set.
    #[error("{0:?} has bits set after its prefix")]
    HostBits(String),
    /// No room for the bridge and a pod.
    #[error("{0:?} has too few addresses")]
    Small(String),
}

impl Subnet {
    /// The address of the bridge, which is the pods' gateway.
    pub(super) fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    pub(super) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its family.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    pub(super) fn network(&self) -> IpAddr {
        self.first
    }

    /// The bits that all addresses have in common, as ones.
    pub(super) fn mask(&self) -> Vec<u8> {
        let length = if self.first.is_ipv4() { 4 } else { 16 };
        let ones = |index: usize| {
            let bits = usize::from(self.prefix).saturating_sub(index * 8).min(8);
            u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0)
        };
        (0..length).map(ones).collect()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(address) & mask == u32::from(first)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(address) & mask == u128::from(first)
            }
            _ => false,
        }
    }

    /// The last that a pod may have: not IPv4's broadcast address.
    fn last(&self) -> u128 {
        match self.first {
            IpAddr::V4(_) => (1 << (32 - u32::from(self.prefix))) - 2,
            // More than anybody will count to.
            IpAddr::V6(_) => (1 << (128 - u32::from(self.prefix)).min(32)) - 1,
        }
    }

    fn nth(&self, index: u128) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                Ipv4Addr::from(u32::from(first).saturating_add(index)).into()
            }
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).saturating_add(index)).into(),
        }
    }

    fn index(&self, address: IpAddr) -> Option<u128> {
        match (self.first, address) {
            _ if !self.contains(address) => None,
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                Some(u128::from(u32::from(address) - u32::from(first)))
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                Some(u128::from(address) - u128::from(first))
            }
            _ => None,
        }
    }

    /// The first free address after `last`, going round; an address that was given back is not
    /// given out again at once. `None` when all are taken.
    pub(super) fn free(
        &self,
        last: Option<IpAddr>,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let begin = last.and_then(|last| self.index(last)).map_or(2, |index| index + 1);
        let all = (begin..=self.last()).chain(2..begin.min(self.last() + 1));
        all.map(|index| self.nth(index)).find(|address| !taken(*address))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// As it is written.
impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let form = || InvalidSubnet::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let first: IpAddr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        let bits = if first.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(form());
        }
        if prefix > bits - 2 || prefix == 0 {
            return Err(InvalidSubnet::Small(text.to_owned()));
        }
        let subnet = Self { first, prefix };
        if subnet.contains(first) {
            Ok(subnet)
        } else {
            Err(InvalidSubnet::HostBits(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn each_fault_is_named() {
        for (text, want) in [
            ("10.0.0.0", "ADDRESS/LENGTH"),
            ("10.0.0.0/33", "ADDRESS/LENGTH"),
            ("ten/8", "ADDRESS/LENGTH"),
            ("10.0.0.1/24", "bits set"),
            ("fd00::1/64", "bits set"),
            ("10.0.0.0/31", "too few"),
            ("fd00::/127", "too few"),
            ("0.0.0.0/0", "too few"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn every_address_is_given_once_and_the_oldest_comes_again_first() {
        let range = subnet("10.9.0.0/29");
        assert_eq!(range.gateway().to_string(), "10.9.0.1");
        let (mut taken, mut last) = (BTreeSet::new(), None);
        for want in ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"] {
            last = range.free(last, |address| taken.contains(&address));
            assert_eq!(last.unwrap().to_string(), want);
            taken.insert(last.unwrap());
        }
        assert_eq!(range.free(last, |address| taken.contains(&address)), None);
        taken.remove(&"10.9.0.4".parse().unwrap());
        taken.remove(&"10.9.0.2".parse().unwrap());
        let again = range.free(Some("10.9.0.2".parse().unwrap()), |it| taken.contains(&it));
        assert_eq!(again.unwrap().to_string(), "10.9.0.4");
    }

    #[test]
    fn masks_and_membership() {
        assert_eq!(subnet("10.85.0.0/16").mask(), [255, 255, 0, 0]);
        assert_eq!(subnet("10.85.32.0/19").mask(), [255, 255, 224, 0]);
        assert_eq!(subnet("fd00::/64").mask()[..9], [255, 255, 255, 255, 255, 255, 255, 255, 0]);
        let range = subnet("10.85.32.0/19");
        assert!(range.contains("10.85.63.255".parse().unwrap()));
        assert!(!range.contains("10.85.64.0".parse().unwrap()));
        assert!(!range.contains("fd00::1".parse().unwrap()));
        let range = subnet("fd00::/64");
        assert_eq!(range.free(None, |_| false).unwrap().to_string(), "fd00::2");
    }
}
