//! The first process of a pod's shared PID namespace: it reaps, and does nothing else.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};

use berth_sys::creds::{self, Capabilities};
use berth_sys::ns::{self, Kind};
use berth_sys::{mount, process};
use rustix::process::{Signal, WaitOptions};

use super::inside;
use crate::pod::{PodNamespaces, ROOTFS};
use crate::user::UserNamespace;
use crate::wire::{ChildEnd, Doing, Work};

/// Nobody, as every distribution numbers it.
const NOBODY: u32 = 65_534;

/// Its whole life.
pub(crate) fn run(pod: &PodNamespaces, end: ChildEnd) -> i32 {
    let life = join(pod).and_then(|()| settle(NOBODY)).and_then(|()| reap_for_ever(end));
    match life {
        Ok(never) => match never {},
        Err(_) => 1,
    }
}

/// For a pod with a user namespace: clones it there, a child of the caller's maker, and ends.
pub(crate) fn bear(pod: &PodNamespaces, user: &UserNamespace, end: ChildEnd) -> i32 {
    let maps = user.maps();
    // Nobody, where the pod has one. Root without a right is as little.
    let mapped = maps.host_uid(NOBODY).and(maps.host_gid(NOBODY)).is_some();
    let id = if mapped { NOBODY } else { 0 };
    inside::ending(&end, || {
        join(pod)?;
        let socket = end.as_fd().try_clone_to_owned().doing(|| "keep the socket".to_owned())?;
        let number = socket.as_raw_fd();
        inside::clone_inside(user, true, &end, number, || {
            let end = ChildEnd::new(socket);
            match settle(id).and_then(|()| reap_for_ever(end)) {
                Ok(never) => match never {},
                Err(_) => 1,
            }
        })
    })
}

/// Into the pod's namespaces. The small mount namespace is entered, not copied yet.
fn join(pod: &PodNamespaces) -> Work<()> {
    let step = || "settle the pod's init".to_owned();
    let kinds = [(Kind::Net, pod.net()), (Kind::Ipc, pod.ipc()), (Kind::Uts, pod.uts())];
    for (kind, fd) in kinds {
        if let Some(fd) = fd {
            ns::join(fd, kind).doing(step)?;
        }
    }
    ns::join(pod.mnt(), Kind::Mnt).doing(step)
}

/// Whoever may look into this process finds nothing of the host: the pod's namespaces, an empty
/// root, no capability, no descriptor.
fn settle(id: u32) -> Work<()> {
    let step = || "settle the pod's init".to_owned();
    rustix::process::setsid().doing(step)?;
    ns::unshare(&[Kind::Mnt]).doing(step)?;
    // The empty directory where containers attach their root, cloned to be a mount of its own.
    let empty = mount::clone_tree(rustix::fs::CWD, std::path::Path::new(ROOTFS), false);
    let empty = empty.doing(step)?;
    let change = mount::Change { set: mount::attr::RDONLY, ..mount::Change::default() };
    mount::set_attr(empty.as_fd(), &change).doing(step)?;
    mount::attach(empty.as_fd(), super::open_dir(ROOTFS)?.as_fd()).doing(step)?;
    rustix::process::fchdir(&super::open_dir(ROOTFS)?).doing(step)?;
    mount::pivot_to_cwd().doing(step)?;
    process::reset_signals().doing(step)?;
    let _ = rustix::thread::set_name(c"berth-init");
    creds::drop_bounding(0).doing(step)?;
    creds::become_user(id, id, &[]).doing(step)?;
    creds::set_capabilities(&Capabilities::default()).doing(step)?;
    creds::set_no_new_privs().doing(step)
}

fn reap_for_ever(end: ChildEnd) -> Work<Infallible> {
    // Blocked before the socket ends, so that no end of a child is missed.
    let step = || "wait for children".to_owned();
    let signals = berth_sys::resident::Signals::block(&[Signal::CHILD.as_raw()]).doing(step)?;
    // Nothing of the maker's is left when it says that it is ready.
    process::keep_only(&[signals.as_fd(), end.as_fd()]);
    end.ready()?;
    drop(end);
    loop {
        process::wait_readable(&[signals.as_fd()], None).doing(step)?;
        while signals.next().doing(step)?.is_some() {}
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}
