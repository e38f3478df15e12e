//! A terminal in the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_sys::mount;
use berth_sys::process::{self, Stdio as Number};
use berth_sys::pty::{self, Pty};
use berth_sys::root::{Leaf, Root};
use rustix::fs::{OFlags, Uid};

use super::ensure;
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;
use crate::wire::{ChildEnd, Doing, Work};

/// Where asked for: opens it, and shows it as /dev/console.
pub(super) fn open(root: &Root, plan: &Plan<'_>) -> Work<Option<Pty>> {
    if plan.process.terminal.is_none() {
        return Ok(None);
    }
    let pty = make(root)?;
    if plan.sets_up_dev() {
        let step = || "mount /dev/console".to_owned();
        let spot = ensure(root, Path::new("/dev/console"), Leaf::File)?;
        // By descriptor: what a path in the container says can't exchange it.
        let copy = mount::clone_tree(pty.slave.as_fd(), Path::new(""), false).doing(step)?;
        mount::attach(copy.as_fd(), spot.as_fd()).doing(step)?;
    }
    Ok(Some(pty))
}

/// A new terminal of the root's devpts.
pub(crate) fn make(root: &Root) -> Work<Pty> {
    let step = || "open a terminal at /dev/pts/ptmx".to_owned();
    let ptmx: OwnedFd =
        root.open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY).doing(step)?;
    pty::from_ptmx(ptmx).doing(step)
}

/// Gives it its size, and hands the master over.
pub(crate) fn announce(pty: &Pty, plan: &ProcessPlan, end: &ChildEnd) -> Work<()> {
    let step = || "set up the terminal".to_owned();
    if let Some((columns, rows)) = plan.terminal.filter(|size| *size != (0, 0)) {
        pty::set_size(pty.master.as_fd(), columns, rows).doing(step)?;
    }
    end.terminal(pty.master.as_fd())
}

/// Makes it this session's, its user's, and descriptors 0 to 2.
pub(crate) fn adopt(slave: &OwnedFd, plan: &ProcessPlan) -> Work<()> {
    let step = || "set up the terminal".to_owned();
    rustix::fs::fchown(slave, Some(Uid::from_raw(plan.uid)), None).doing(step)?;
    pty::set_controlling(slave.as_fd()).doing(step)?;
    for number in [Number::In, Number::Out, Number::Err] {
        process::install_stdio(slave.as_fd(), number).doing(step)?;
    }
    Ok(())
}
