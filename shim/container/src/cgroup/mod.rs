//! The machine's cgroup hierarchies, and one container's place in them.
//!
//! Paths are relative to the hierarchy roots (`/kubepods/podUID/ID`). Directories that this
//! engine makes carry the extended attribute `trusted.berth`; a parent that carries it is removed
//! with its last child, a parent without it (kubelet's) never.
//!
//! Gap: device rules on cgroup v2 need an eBPF program, which isn't built yet; on v2 a spec's
//! `linux.resources.devices` has no effect.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use crate::error::{Error, Result};

/// What cgroup file systems this machine has mounted under /sys/fs/cgroup. Detect once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// v1 hierarchies: mount directory and the controllers (or `name=x`) it carries.
    v1: Vec<(PathBuf, Vec<String>)>,
    /// The v2 hierarchy: the only one (v2), or beside v1 (hybrid).
    v2: Option<PathBuf>,
}

/// One cgroup: the same relative path in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    layout: Layout,
    path: PathBuf,
}

impl Layout {
    /// Looks at /sys/fs/cgroup.
    pub fn detect() -> Result<Self> {
        Err(not_built("detect cgroups"))
    }

    /// True where controllers are on the v2 hierarchy (no v1 controller is mounted).
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }
}

impl Cgroup {
    /// Makes the cgroup at `path` in every hierarchy and writes `resources` into it, before any
    /// process is inside. Parents that don't exist are made and marked; those that exist are
    /// joined. Fails with [`crate::ErrorKind::Exists`] if `path` itself is there already; a failed call
    /// leaves nothing behind.
    pub fn create(
        _layout: &Layout,
        _path: &Path,
        _resources: Option<&LinuxResources>,
        _warnings: &mut Vec<String>,
    ) -> Result<Self> {
        Err(not_built("create a cgroup"))
    }

    /// Makes `path` where absent (a pod's parent cgroup), joins it where it exists.
    pub fn ensure(_layout: &Layout, _path: &Path) -> Result<Self> {
        Err(not_built("ensure a cgroup"))
    }

    /// Names a cgroup that may or may not exist; touches nothing.
    pub fn at(layout: &Layout, path: &Path) -> Result<Self> {
        Ok(Self { layout: layout.clone(), path: path.to_owned() })
    }

    /// Moves a process into this cgroup, in every hierarchy (the init of a pod).
    pub fn add(&self, _pid: u32) -> Result<()> {
        Err(not_built("move a process"))
    }

    /// The path relative to the hierarchy roots.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes limits. What the resources leave out stays as it is.
    pub fn update(&self, _resources: &LinuxResources) -> Result<Vec<String>> {
        Err(not_built("update a cgroup"))
    }

    /// Ids of all processes inside, sub-cgroups included.
    pub fn pids(&self) -> Result<Vec<u32>> {
        Err(not_built("list a cgroup"))
    }

    /// Processes that the OOM killer took in this cgroup. 0 when the cgroup is gone.
    pub fn oom_kills(&self) -> Result<u64> {
        Err(not_built("read a cgroup"))
    }

    /// Sends SIGKILL to everything inside, sub-cgroups included, and to everything those fork
    /// meanwhile. Doesn't wait for their end. Nothing inside, or no such cgroup: fine.
    pub fn kill(&self) -> Result<()> {
        Err(not_built("kill a cgroup"))
    }

    /// Removes the cgroup with its sub-cgroups, then marked parents that it leaves empty. Retries
    /// while the kernel says busy, up to `patience`; then fails with [`crate::ErrorKind::Busy`].
    /// An absent cgroup is fine.
    pub fn remove(&self, _patience: Duration) -> Result<()> {
        Err(not_built("remove a cgroup"))
    }
}

fn not_built(step: &str) -> Error {
    Error::Step { step: step.to_owned(), source: std::io::ErrorKind::Unsupported.into() }
}
