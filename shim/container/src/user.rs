//! User namespaces: made by a child for the map they have, kept as descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, Child, CloneArgs};
use berth_sys::{mount, sock};

use crate::error::{Result, StepExt};
use crate::plan::invalid;
use crate::wire::{self, ChildEnd, Doing, Work};

/// A run of ids inside, and the host's ids that they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    fn to_host(self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container).filter(|offset| *offset < self.length)?;
        self.host.checked_add(offset)
    }
}

/// What a user namespace maps (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// Refuses what no kernel takes; `field` names one of the two lists in messages.
    pub(crate) fn check(&self, field: impl Fn(&str) -> String) -> Result<()> {
        for (name, ranges) in [("uidMappings", &self.uids), ("gidMappings", &self.gids)] {
            if ranges.is_empty() {
                return Err(invalid(field(name), "missing"));
            }
            for IdRange { container, host, length } in ranges {
                let ends = [container.checked_add(*length), host.checked_add(*length)];
                if *length == 0 || ends.contains(&None) {
                    let why = format!("{container} to {host}, {length} ids: no range of ids");
                    return Err(invalid(field(name), why));
                }
            }
        }
        Ok(())
    }

    /// The host's number of a user inside.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| range.to_host(uid))
    }

    /// The host's number of a group inside.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        self.gids.iter().find_map(|range| range.to_host(gid))
    }

    /// The host's numbers of root inside.
    pub(crate) fn root(&self) -> io::Result<(u32, u32)> {
        let pair = self.host_uid(0).zip(self.host_gid(0));
        pair.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "root is not mapped"))
    }
}

/// A user namespace. It lives as long as this value, a process or a namespace inside it.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    maps: IdMaps,
}

impl UserNamespace {
    pub(crate) fn new(fd: OwnedFd, maps: IdMaps) -> Self {
        Self { fd, maps }
    }

    /// Makes one, in a short-lived child of this single-threaded process.
    pub fn create(maps: &IdMaps) -> Result<Self> {
        let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
        let keep = [theirs.as_raw_fd()];
        let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
        let child = spawn(&args, || {
            let end = ChildEnd::new(theirs);
            // Lives until it is told to go, or its maker is gone.
            i32::from(end.wait_go().is_err())
        })?;
        let opened = map(&child, maps).and_then(|()| {
            ns::open(Path::new(&format!("/proc/{}/ns/user", child.pid)))
                .step(|| "open the user namespace".to_owned())
        });
        drop(ours);
        process::wait(child.pidfd.as_fd()).step(|| "wait for a child".to_owned())?;
        Ok(Self { fd: opened?, maps: maps.clone() })
    }

    /// Opens the one at a path. What it maps is read from a child that joins it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let step = || format!("open the user namespace {}", path.display());
        let fd = ns::open(path).step(step)?;
        let (ours, theirs) = sock::message_pair().step(step)?;
        let keep = [theirs.as_raw_fd(), fd.as_raw_fd()];
        let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
        let made = process::spawn(&args, || {
            let end = ChildEnd::new(theirs);
            let joined = ns::join(fd.as_fd(), Kind::User).doing(step).and_then(|()| end.ready());
            match joined.and_then(|()| end.wait_go()) {
                Ok(()) => 0,
                Err(failure) => {
                    end.failed(&failure);
                    1
                }
            }
        });
        let child = made.step(step)?;
        let said =
            process::wait_readable(&[ours.as_fd()], None).and_then(|_| wire::hear(ours.as_fd()));
        let maps = match said {
            Ok(wire::Said::Ready) => read_maps(child.pid).step(step),
            Ok(wire::Said::Failed(failure)) => Err(failure.into()),
            Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).step(step),
            Err(err) => Err(err).step(step),
        };
        drop(ours);
        process::wait(child.pidfd.as_fd()).step(step)?;
        Ok(Self { fd, maps: maps? })
    }

    /// What it maps.
    #[must_use]
    pub fn maps(&self) -> &IdMaps {
        &self.maps
    }

    /// The namespace.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Has a detached mount of the host show its ids as this namespace's. `what` names it.
    pub(crate) fn map_mount(
        &self,
        tree: BorrowedFd<'_>,
        recursive: bool,
        what: impl Fn() -> String,
    ) -> Work<()> {
        let Err(err) = mount::set_idmap(tree, self.as_fd(), recursive) else { return Ok(()) };
        // EINVAL: no id-mapped mounts in this file system, or in this kernel.
        if err.raw_os_error() == Some(22) {
            let kind = rustix::fs::fstatfs(tree).map_or(0, |stat| stat.f_type);
            let why = format!(
                "its file system (type {kind:#x}), or one below it, can't map ids on this kernel"
            );
            return wire::refuse(what(), &why);
        }
        Err(err).doing(|| format!("{}: map its ids", what()))
    }
}

/// A child in a new user namespace, which maps nothing yet.
pub(crate) fn spawn(args: &CloneArgs<'_>, child: impl FnOnce() -> i32) -> Result<Child> {
    let args = CloneArgs { namespaces: Kind::User.flag(), ..*args };
    process::spawn(&args, child)
        .map_err(|err| match err.raw_os_error() {
            // ENOSPC, as clone(2) says.
            Some(28) => {
                let why = "no more user namespaces (/proc/sys/user/max_user_namespaces)";
                io::Error::new(io::ErrorKind::QuotaExceeded, why)
            }
            _ => err,
        })
        .step(|| "make a user namespace".to_owned())
}

/// Gives the child's new user namespace its map.
pub(crate) fn map(child: &Child, maps: &IdMaps) -> Result<()> {
    for (name, ranges) in [("gid_map", &maps.gids), ("uid_map", &maps.uids)] {
        let line = |r: &IdRange| format!("{} {} {}\n", r.container, r.host, r.length);
        let text: String = ranges.iter().map(line).collect();
        // One write: the kernel takes the map as a whole, once.
        std::fs::write(format!("/proc/{}/{name}", child.pid), &text)
            .step(|| format!("write {:?} to {name}", text.trim_end()))?;
    }
    Ok(())
}

fn read_maps(pid: u32) -> io::Result<IdMaps> {
    let read = |name: &str| -> io::Result<Vec<IdRange>> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{name}"))?;
        text.lines().map(range).collect()
    };
    Ok(IdMaps { uids: read("uid_map")?, gids: read("gid_map")? })
}

fn range(line: &str) -> io::Result<IdRange> {
    let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        &[container, host, length] => Ok(IdRange { container, host, length }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("id map {line:?}"))),
    }
}

/// In a child that has joined a user namespace: becomes its root. All capabilities stay.
pub(crate) fn become_root() -> Work<()> {
    berth_sys::creds::become_user(0, 0, &[])
        .doing(|| "become root of the user namespace".to_owned())
}

/// What a container needs of user namespaces: its own, and those whose maps some mount takes.
#[derive(Debug, Default)]
pub(crate) struct Users<'a> {
    pub(crate) own: Option<Own<'a>>,
    maps: Vec<UserNamespace>,
}

/// A container's own user namespace.
#[derive(Debug)]
pub(crate) enum Own<'a> {
    Pod(&'a UserNamespace),
    New(UserNamespace),
}

impl<'a> Users<'a> {
    pub(crate) fn new(own: Option<Own<'a>>) -> Self {
        Self { own, maps: Vec::new() }
    }

    pub(crate) fn own(&self) -> Option<&UserNamespace> {
        match self.own.as_ref()? {
            Own::Pod(user) => Some(user),
            Own::New(user) => Some(user),
        }
    }

    /// Has a namespace at hand that maps like this.
    pub(crate) fn provide(&mut self, maps: &IdMaps) -> Result<()> {
        if self.that_maps(maps).is_none() {
            self.maps.push(UserNamespace::create(maps)?);
        }
        Ok(())
    }

    pub(crate) fn that_maps(&self, maps: &IdMaps) -> Option<&UserNamespace> {
        self.own().into_iter().chain(&self.maps).find(|user| user.maps == *maps)
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.own().into_iter().chain(&self.maps).map(UserNamespace::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(container: u32, host: u32, length: u32) -> IdMaps {
        let ranges = vec![IdRange { container, host, length }];
        IdMaps { uids: ranges.clone(), gids: ranges }
    }

    #[test]
    fn ids_map_within_their_range_only() {
        let maps = maps(0, 100_000, 65_536);
        assert_eq!(maps.host_uid(0), Some(100_000));
        assert_eq!(maps.host_gid(65_535), Some(165_535));
        assert_eq!(maps.host_uid(65_536), None);
        assert_eq!(maps.root().unwrap(), (100_000, 100_000));
        let above = self::maps(10, 100_000, 5);
        assert_eq!((above.host_uid(9), above.host_uid(12)), (None, Some(100_002)));
        assert!(above.root().is_err());
    }

    #[test]
    fn ranges_that_no_kernel_takes_are_refused_by_field() {
        let check = |maps: &IdMaps| {
            maps.check(|name| format!("linux.{name}")).map_err(|err| err.to_string())
        };
        assert_eq!(check(&maps(0, 1000, 10)), Ok(()));
        let err = check(&IdMaps::default()).unwrap_err();
        assert_eq!(err, "linux.uidMappings: missing");
        for bad in [maps(0, 1000, 0), maps(0, u32::MAX, 2), maps(u32::MAX, 0, 1)] {
            let err = check(&bad).unwrap_err();
            assert!(err.starts_with("linux.uidMappings: "), "{err}");
        }
        let gids = IdMaps { gids: Vec::new(), ..maps(0, 1, 1) };
        assert!(check(&gids).unwrap_err().starts_with("linux.gidMappings: "));
    }
}
