//! Which capabilities a container has.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::refuse;
use crate::pod::Result;
use crate::pod::spec::Capabilities;

/// By number, from linux/capability.h.
pub(super) const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What every container has that says nothing else.
const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

type Set = BTreeSet<&'static str>;

fn known(field: &str, name: &str) -> Result<&'static str> {
    let bare = name.to_ascii_uppercase();
    let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
    let found = NAMES.iter().find(|known| **known == bare);
    found.copied().ok_or_else(|| refuse(field, name, "no such capability"))
}

/// The sets of a container's first process. `host`: what the daemon itself may give.
pub(super) fn build(
    asked: &Capabilities,
    privileged: bool,
    host: &[&'static str],
) -> Result<LinuxCapabilities> {
    let all: Set = host.iter().copied().collect();
    let (mut bounding, mut ambient) = (all.clone(), Set::new());
    if !privileged {
        (bounding, ambient) = choose(asked, &all)?;
    }
    for name in bounding.difference(&all) {
        // The nearest to what was asked for: nobody can give what he does not have.
        tracing::warn!(capability = name, "the daemon does not have this capability to give");
    }
    let held: Set = bounding.intersection(&all).copied().collect();
    let ambient: Set = ambient.intersection(&held).copied().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(oci(&held)));
    sets.set_effective(Some(oci(&held)));
    sets.set_permitted(Some(oci(&held)));
    // Anything inheritable would let file capabilities pass what a user change should drop
    // (CVE-2022-24769); only an ambient capability needs it.
    sets.set_inheritable(Some(oci(&ambient)));
    sets.set_ambient(Some(oci(&ambient)));
    Ok(sets)
}

fn choose(asked: &Capabilities, all: &Set) -> Result<(Set, Set)> {
    let at = |list: &str| format!("linux.security_context.capabilities.{list}");
    let is_all = |name: &String| {
        let name = name.to_ascii_uppercase();
        name == "ALL" || name == "CAP_ALL"
    };
    let mut set: Set = DEFAULT.iter().copied().collect();
    if asked.add.iter().any(is_all) {
        set = all.clone();
    }
    if asked.drop.iter().any(is_all) {
        set = Set::new();
    }
    for name in asked.add.iter().filter(|name| !is_all(name)) {
        set.insert(known(&at("add_capabilities"), name)?);
    }
    let mut ambient = Set::new();
    for name in &asked.add_ambient {
        let name = known(&at("add_ambient_capabilities"), name)?;
        set.insert(name);
        ambient.insert(name);
    }
    for name in asked.drop.iter().filter(|name| !is_all(name)) {
        set.remove(known(&at("drop_capabilities"), name)?);
    }
    Ok((set, ambient))
}

fn oci(set: &Set) -> std::collections::HashSet<Capability> {
    // Every name of the table is one of the crate's; the tests hold that.
    set.iter().filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(add: &[&str], drop: &[&str], privileged: bool) -> BTreeSet<String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let asked = Capabilities { add: own(add), drop: own(drop), add_ambient: Vec::new() };
        let sets = build(&asked, privileged, NAMES).unwrap();
        sets.bounding().clone().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_name_of_the_table_is_known_to_the_spec() {
        for name in NAMES {
            assert!(name.parse::<Capability>().is_ok(), "{name}");
        }
    }

    #[test]
    fn requests_change_the_default_set() {
        assert_eq!(sets(&[], &[], false).len(), DEFAULT.len());
        assert_eq!(sets(&["NET_ADMIN"], &["CAP_CHOWN"], false).len(), DEFAULT.len());
        assert_eq!(sets(&["ALL"], &[], false).len(), NAMES.len());
        assert_eq!(sets(&["ALL"], &["CHOWN"], false).len(), NAMES.len() - 1);
        assert_eq!(sets(&[], &["ALL"], false).len(), 0);
        assert_eq!(sets(&["kill"], &["ALL"], false).len(), 1);
        assert_eq!(sets(&[], &["ALL"], true).len(), NAMES.len());
    }

    #[test]
    fn nobody_gives_what_he_does_not_have() {
        let asked = Capabilities { add: vec!["SYS_RESOURCE".into()], ..Default::default() };
        let sets = build(&asked, false, &["CHOWN"]).unwrap();
        assert_eq!(sets.bounding().clone().unwrap().len(), 1);
        let unknown = Capabilities { add: vec!["FLY".into()], ..Default::default() };
        assert!(build(&unknown, false, NAMES).is_err());
    }

    #[test]
    fn only_an_ambient_capability_is_inheritable() {
        let asked = Capabilities { add_ambient: vec!["NET_ADMIN".into()], ..Default::default() };
        let sets = build(&asked, false, NAMES).unwrap();
        assert_eq!(sets.inheritable().clone().unwrap().len(), 1);
        assert_eq!(sets.ambient().clone().unwrap().len(), 1);
    }
}
