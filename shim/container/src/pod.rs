//! What the containers of a pod share: namespaces held as descriptors, and the small mount
//! namespace (tmpfs root, /proc, /sys, the pod's /dev/shm) that each container's own is cloned
//! from, so that its cost doesn't grow with the host's mount table.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::{Error, Result};

/// What to make for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOptions {
    /// A network namespace of its own, with `lo` up.
    pub net: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A UTS namespace of its own.
    pub uts: bool,
    /// Host name inside the own UTS namespace. Must be `None` without one.
    pub hostname: Option<String>,
    /// Dotted names to values, written inside the pod's namespaces. Each must belong to a
    /// namespace the pod owns ([`Error::InvalidSpec`] with field `sysctl.NAME` otherwise).
    pub sysctls: BTreeMap<String, String>,
    /// Size of the pod's /dev/shm in bytes. `None`: the small namespace holds none.
    pub shm_size: Option<u64>,
}

/// A pod's namespaces. They live as long as this value or a process inside them.
#[derive(Debug)]
pub struct PodNamespaces {
    mnt: OwnedFd,
    net: Option<OwnedFd>,
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    pid: Option<OwnedFd>,
}

impl PodNamespaces {
    /// Makes them in a short-lived child of this single-threaded process. Blocks for well under
    /// 10 ms; the host's mount table gets no entry.
    pub fn create(_options: &PodOptions) -> Result<Self> {
        Err(not_built("pod namespaces"))
    }

    /// The small mount namespace.
    #[must_use]
    pub fn mnt(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.mnt.as_fd()
    }

    /// The own network namespace, if any.
    #[must_use]
    pub fn net(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.net.as_ref().map(AsFd::as_fd)
    }

    /// The own IPC namespace, if any.
    #[must_use]
    pub fn ipc(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.ipc.as_ref().map(AsFd::as_fd)
    }

    /// The own UTS namespace, if any.
    #[must_use]
    pub fn uts(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.uts.as_ref().map(AsFd::as_fd)
    }

    /// The PID namespace that containers share, if any.
    #[must_use]
    pub fn pid(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.pid.as_ref().map(AsFd::as_fd)
    }

    /// Makes a PID namespace for containers to share, with a tiny init of ours as its first
    /// process: it reaps whatever is orphaned to it and ends on SIGTERM or when killed. It is a
    /// child of the caller, in the caller's cgroups. Returns its host process id and a pidfd;
    /// containers whose spec has a `pid` namespace with path `pod:` then join it.
    pub fn start_init(&mut self) -> Result<(u32, OwnedFd)> {
        Err(not_built("shared pid namespace"))
    }

    /// Binds the own network namespace to `path` (an absolute path on the host; the file is made,
    /// mode 0444; its directory must exist), so that CNI plugins can open it.
    pub fn pin_net(&self, _path: &Path) -> Result<()> {
        Err(not_built("pin the network namespace"))
    }
}

/// Undoes [`PodNamespaces::pin_net`]: unmounts and removes the file. Absent is fine.
pub fn unpin(_path: &Path) -> Result<()> {
    Err(not_built("unpin a namespace"))
}

fn not_built(step: &str) -> Error {
    Error::Step { step: step.to_owned(), source: std::io::ErrorKind::Unsupported.into() }
}
