//! The children of a container with a user namespace, and what they say to each other.
//!
//! ```text
//! helper    on the host: cgroups, stdio, limits; joins namespaces, at last the user namespace
//!           clones the first process (a child of the caller), ends
//! first     waits ----------------------> takes the mounts over, becomes the program
//! builder   on the host: takes volumes, mounts the root; joins, attaches, pivots;
//!           joins the user namespace, unshares the mounts, hands them to `first`, ends
//! ```
//! What one kind of namespace's owner is decides who may change it inside: the PID and cgroup
//! namespaces are made by processes of the user namespace, so they are the container's. The
//! mounts come to it by a copy into its own namespace, which locks them (mount_namespaces(7)):
//! nothing in the container can take a mask, a read-only cover or a volume's `ro` away, whatever
//! capabilities it has there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use berth_sys::creds;
use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, Child, CloneArgs};
use berth_sys::pty::Pty;
use berth_sys::sock;
use rustix::fs::{Mode, OFlags};

use super::{Given, program, protect, terminal};
use crate::plan::Plan;
use crate::user::{self, UserNamespace};
use crate::wire::{ChildEnd, Doing, Work, refuse};

/// The first process is in all its namespaces but the mounts'.
const SETTLED: &[u8] = b"s";
/// The mounts are made; with their namespace, and the terminal where there is one.
const MOUNTED: &[u8] = b"m";

/// The helper's whole life.
pub(crate) fn bear(plan: &Plan<'_>, given: &Given<'_>, link: OwnedFd) -> i32 {
    ending(&given.end, || {
        let user = own(given)?;
        let maps = Some(user.maps());
        super::begin(&plan.process, given.stdio, &[given.cgroup], maps, &given.end)?;
        super::join_shared(plan)?;
        let new_pid = plan.namespaces.makes(Kind::Pid);
        clone_inside(user, new_pid, &given.end, link.as_raw_fd(), || first(plan, given, &link))
    })
}

/// Joins the user namespace and clones a process there that is the caller's maker's child. It keeps
/// the socket to the maker, the standard descriptors and `keep`.
pub(super) fn clone_inside(
    user: &UserNamespace,
    new_pid: bool,
    end: &ChildEnd,
    keep: RawFd,
    work: impl FnOnce() -> i32,
) -> Work<()> {
    ns::join(user.as_fd(), Kind::User).doing(|| "join the user namespace".to_owned())?;
    user::become_root()?;
    let fds = [0, 1, 2, end.as_fd().as_raw_fd(), keep];
    let args = CloneArgs {
        namespaces: if new_pid { Kind::Pid.flag() } else { 0 },
        cgroup: None,
        keep: Some(&fds),
        sibling: true,
    };
    let born = process::spawn(&args, work);
    let Child { pidfd, .. } = born.doing(|| "clone the first process".to_owned())?;
    end.born(pidfd.as_fd())
}

/// The first process. It begins as root of its user namespace.
fn first(plan: &Plan<'_>, given: &Given<'_>, link: &OwnedFd) -> i32 {
    ending(&given.end, || {
        rustix::process::setsid().doing(|| "setsid".to_owned())?;
        creds::new_session_keyring().doing(|| "make a session keyring".to_owned())?;
        super::unshare_new(plan)?;
        protect::write_sysctls(super::open_dir("/proc")?.as_fd(), plan)?;
        let step = || "wait for the root file system".to_owned();
        sock::send(link.as_fd(), SETTLED, &[]).doing(step)?;
        let message = sock::receive(link.as_fd(), 16, true).doing(step)?;
        let mut fds = message.fds.into_iter();
        let Some(mounts) = fds.next().filter(|_| message.bytes == MOUNTED) else {
            // It has said why.
            return refuse(step(), "the builder is gone");
        };
        ns::join(mounts.as_fd(), Kind::Mnt).doing(|| "enter the mounts".to_owned())?;
        drop(mounts);
        if let Some(slave) = fds.next() {
            terminal::adopt(&slave, &plan.process)?;
        }
        match program::start(plan, given)? {}
    })
}

/// The builder's whole life. `first`: the first process.
pub(crate) fn build(plan: &Plan<'_>, given: &Given<'_>, link: OwnedFd, first: &Child) -> i32 {
    ending(&given.end, || {
        given.cgroup.enter_v1().map_err(crate::wire::Failure::from)?;
        rustix::process::umask(Mode::empty());
        let user = own(given)?;
        let (uid, gid) = user.maps().root().doing(|| "map the container's root".to_owned())?;
        let sources = super::take_from_host(plan, given)?;
        let step = || "join the first process's namespaces".to_owned();
        let said = sock::receive(link.as_fd(), 16, true).doing(step)?;
        if said.bytes != SETTLED {
            return refuse(step(), "it is gone");
        }
        let shared = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Cgroup];
        let joined: Vec<Kind> =
            plan.kinds().into_iter().filter(|kind| shared.contains(kind)).collect();
        if !joined.is_empty() {
            ns::join_process(first.pidfd.as_fd(), &joined).doing(step)?;
        }
        super::enter_small(given.small_ns)?;
        // What is made belongs to the container's root, also what overlayfs itself makes.
        creds::set_fs_ids(uid, gid).doing(|| "own files as the container's root".to_owned())?;
        let proc = super::open_dir("/proc")?;
        let console = super::furnish(plan, given, sources)?;
        let terminal = console.map(|pty| announce(pty, plan, given)).transpose()?;
        hand_over(user, proc.as_fd(), &link, terminal.as_ref())
    })
}

fn announce(pty: Pty, plan: &Plan<'_>, given: &Given<'_>) -> Work<OwnedFd> {
    terminal::announce(&pty, &plan.process, &given.end)?;
    Ok(pty.slave)
}

/// Moves the mounts into the user namespace, where they get locked. `proc`: the host's.
fn hand_over(
    user: &UserNamespace,
    proc: BorrowedFd<'_>,
    link: &OwnedFd,
    terminal: Option<&OwnedFd>,
) -> Work<()> {
    let step = || "hand the mounts over".to_owned();
    ns::join(user.as_fd(), Kind::User).doing(|| "join the user namespace".to_owned())?;
    ns::unshare(&[Kind::Mnt]).doing(|| "unshare the mount namespace".to_owned())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mounts = rustix::fs::openat(proc, Path::new("self/ns/mnt"), flags, Mode::empty());
    let mounts = mounts.doing(step)?;
    let mut fds = vec![mounts.as_fd()];
    fds.extend(terminal.map(AsFd::as_fd));
    sock::send(link.as_fd(), MOUNTED, &fds).doing(step)
}

fn own<'a>(given: &'a Given<'_>) -> Work<&'a UserNamespace> {
    match given.users.own() {
        Some(user) => Ok(user),
        None => refuse("join the user namespace".to_owned(), "there is none"),
    }
}

/// Does `work`, and says what made it fail.
pub(super) fn ending(end: &ChildEnd, work: impl FnOnce() -> Work<()>) -> i32 {
    match work() {
        Ok(()) => 0,
        Err(failure) => {
            end.failed(&failure);
            1
        }
    }
}
