//! /dev: the devices every program expects, the spec's own, and the usual links.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use berth_sys::root::{Leaf, Root};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::ensure;
use crate::plan::{Device, DeviceKind, Plan};
use crate::wire::{Doing, Work, refuse};

/// OCI runtime spec, "Default Devices". ptmx is a link, console comes with a terminal.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// OCI runtime spec, "Dev symbolic links".
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// `owner`: the host's numbers of the container's root.
pub(super) fn set_up(root: &Root, plan: &Plan<'_>, owner: (u32, u32)) -> Work<()> {
    for (path, major, minor) in DEFAULT {
        let path = PathBuf::from(path);
        // The spec's own entry for it says more.
        if plan.devices.iter().any(|device| device.path == path) {
            continue;
        }
        let (kind, (uid, gid)) = (DeviceKind::Char, owner);
        make(root, &Device { path, kind, major, minor, mode: 0o666, uid, gid })?;
    }
    let dev = ensure(root, Path::new("/dev"), Leaf::Dir)?;
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(err).doing(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// Their owners are the host's also where the container has a user namespace: a disk must not
/// become its root's own there.
pub(super) fn make_devices(root: &Root, devices: &[Device]) -> Work<()> {
    devices.iter().try_for_each(|device| make(root, device))
}

fn make(root: &Root, device: &Device) -> Work<()> {
    let step = || format!("make device {}", device.path.display());
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return refuse(step(), "not a file name");
    };
    let dir = ensure(root, parent, Leaf::Dir)?;
    let kind = match device.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode);
    match rustix::fs::mknodat(&dir, name, kind, mode, number) {
        Ok(()) => {}
        // The image's or an earlier entry's: fine if it is the same.
        Err(Errno::EXIST) => {
            let found = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).doing(step)?;
            let same = FileType::from_raw_mode(found.st_mode) == kind
                && (kind == FileType::Fifo || found.st_rdev == number);
            if !same {
                return Err(io::Error::from(Errno::EXIST)).doing(step);
            }
        }
        Err(err) => return Err(err).doing(step),
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(dir.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .doing(step)
}
