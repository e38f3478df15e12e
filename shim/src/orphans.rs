//! Processes orphaned to this shim: what containers in the host's PID namespace leave behind.
//!
//! Our own children are reaped by their owners, after their records.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::container::Phase;
use crate::shim::Shim;

impl Shim {
    /// Reaps every dead child that is nobody's.
    pub(crate) fn reap_orphans(&self) {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !matches!(waitid(WaitId::All, look), Ok(Some(_))) {
            return;
        }
        let owned = self.owned_pids();
        // Absent in a kernel without CONFIG_PROC_CHILDREN: then they stay dead until we end.
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|word| word.parse().ok());
        for pid in pids.filter(|pid| !owned.contains(pid)) {
            reap(pid);
        }
    }

    fn owned_pids(&self) -> BTreeSet<u32> {
        let containers = self
            .containers
            .values()
            .filter(|container| container.phase != Phase::Stopped)
            .map(|container| container.engine.pid());
        let execs = self.execs.values().filter_map(crate::exec::Exec::unreaped_pid);
        containers.chain(execs).chain(self.pod.init_pid()).collect()
    }
}

/// Reaps a dead child.
pub(crate) fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that lives is left alone.
        let _alive = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}
