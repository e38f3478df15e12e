//! Devices: their nodes, and who may use them.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// A device of the host, as it is to be inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Inside.
    pub path: PathBuf,
    /// A block device; else a character device.
    pub block: bool,
    /// Its numbers.
    pub major: u32,
    /// Its numbers.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

fn kind(device: &HostDevice) -> LinuxDeviceType {
    if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C }
}

pub(super) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    let node = |device: &HostDevice| {
        let mut node = LinuxDevice::default();
        node.set_path(device.path.clone());
        node.set_typ(kind(device));
        node.set_major(device.major.into());
        node.set_minor(device.minor.into());
        node.set_file_mode(Some(device.mode));
        node.set_uid(Some(device.uid));
        node.set_gid(Some(device.gid));
        node
    };
    devices.iter().map(node).collect()
}

/// Nothing, but making nodes, the usual harmless devices, and what was asked for. A privileged
/// container may use everything.
pub(super) fn rules(devices: &[HostDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let usual = |major, minor| rule(true, LinuxDeviceType::C, Some(major), minor, "rwm");
    let mut all = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, LinuxDeviceType::C, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx; pts.
    all.extend([3, 5, 7, 8, 9].map(|minor| usual(1, Some(minor))));
    all.extend([0, 1, 2].map(|minor| usual(5, Some(minor))));
    all.push(usual(136, None));
    all.extend(devices.iter().map(|device| {
        let (major, minor) = (Some(device.major.into()), Some(device.minor.into()));
        rule(true, kind(device), major, minor, &device.access)
    }));
    all
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(kind));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}
