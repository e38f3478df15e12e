//! The first process of a pod's shared PID namespace: it reaps, and does nothing else.

use std::convert::Infallible;
use std::os::fd::AsFd;

use berth_sys::creds::{self, Capabilities};
use berth_sys::ns::{self, Kind};
use berth_sys::{mount, process};
use rustix::process::{Signal, WaitOptions};

use crate::pod::{PodNamespaces, ROOTFS};
use crate::wire::{ChildEnd, Doing, Work};

/// Nobody, as every distribution numbers it.
const NOBODY: u32 = 65_534;

/// Its whole life.
pub(crate) fn run(pod: &PodNamespaces, end: ChildEnd) -> i32 {
    match settle(pod, &end).and_then(|()| reap_for_ever(end)) {
        Ok(never) => match never {},
        Err(_) => 1,
    }
}

/// Whoever may look into this process finds nothing of the host: the pod's namespaces, an empty
/// root, no capability, no descriptor.
fn settle(pod: &PodNamespaces, end: &ChildEnd) -> Work<()> {
    let step = || "settle the pod's init".to_owned();
    let kinds = [(Kind::Net, pod.net()), (Kind::Ipc, pod.ipc()), (Kind::Uts, pod.uts())];
    for (kind, fd) in kinds {
        if let Some(fd) = fd {
            ns::join(fd, kind).doing(step)?;
        }
    }
    rustix::process::setsid().doing(step)?;
    ns::join(pod.mnt(), Kind::Mnt).doing(step)?;
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
    creds::become_user(NOBODY, NOBODY, &[]).doing(step)?;
    creds::set_capabilities(&Capabilities::default()).doing(step)?;
    creds::set_no_new_privs().doing(step)?;
    end.ready()
}

fn reap_for_ever(end: ChildEnd) -> Work<Infallible> {
    // Blocked before the socket ends, so that no end of a child is missed.
    let step = || "wait for children".to_owned();
    let signals = berth_sys::resident::Signals::block(&[Signal::CHILD.as_raw()]).doing(step)?;
    process::keep_only(&[signals.as_fd()]);
    std::mem::forget(end);
    loop {
        process::wait_readable(&[signals.as_fd()], None).doing(step)?;
        while signals.next().doing(step)?.is_some() {}
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}
