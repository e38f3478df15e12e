//! The machine's cgroup hierarchies, and one container's place in them.
//!
//! Paths are relative to the hierarchy roots (`/kubepods/podUID/ID`). Directories that this
//! engine makes carry the extended attribute `trusted.berth`; a parent that carries it is removed
//! with its last child, a parent without it (kubelet's) never.

mod devices;
mod kill;
mod layout;
mod limits;
mod tree;
mod v1;
mod v2;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use berth_sys::cgroupfs;
use oci_spec::runtime::LinuxResources;

use crate::error::{Error, Result, StepExt};
pub use layout::Layout;

/// One cgroup: the same relative path in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    layout: Layout,
    /// Without a leading slash.
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup at `path` in every hierarchy and writes `resources` into it, before any
    /// process is inside. Parents that don't exist are made and marked; those that exist are
    /// joined. Fails with [`crate::ErrorKind::Exists`] if `path` itself is there already; a failed
    /// call leaves nothing behind. Limits this machine can't express where leaving them out is
    /// custom (hugetlb, blkio weight) become a sentence in `warnings`.
    pub fn create(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let cgroup = Self { layout: layout.clone(), path: relative(path)? };
        cgroup.make(tree::Leaf::New, true)?;
        let limited = match resources {
            Some(resources) => cgroup.limit(resources, limits::Moment::Create, warnings),
            None => Ok(()),
        };
        if limited.is_err() {
            let _ = cgroup.remove(Duration::from_millis(100));
        }
        limited.map(|()| cgroup)
    }

    /// Makes `path` where absent (a pod's parent cgroup), joins it where it exists.
    pub fn ensure(layout: &Layout, path: &Path) -> Result<Self> {
        let cgroup = Self { layout: layout.clone(), path: relative(path)? };
        cgroup.make(tree::Leaf::Any, true)?;
        Ok(cgroup)
    }

    /// Names a cgroup that may or may not exist; touches nothing. Fails for a path that can't
    /// name one.
    pub fn at(layout: &Layout, path: &Path) -> Result<Self> {
        Ok(Self { layout: layout.clone(), path: relative(path)? })
    }

    /// The path relative to the hierarchy roots, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes limits. What the resources leave out stays as it is. Returns warnings as `create`.
    pub fn update(&self, resources: &LinuxResources) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        self.limit(resources, limits::Moment::Update, &mut warnings)?;
        Ok(warnings)
    }

    /// Ids of all processes inside, sub-cgroups included.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let Some(dir) = self.counting_dir() else { return Ok(Vec::new()) };
        kill::pids(&dir).step(|| format!("list processes of cgroup {}", dir.display()))
    }

    /// Processes that the OOM killer took in this cgroup and those below. 0 when it is gone.
    pub fn oom_kills(&self) -> Result<u64> {
        let (dir, file, key) = match (self.dir_v1("memory"), self.dir_v2()) {
            (Some(dir), _) => (dir, "memory.oom_control", "oom_kill "),
            (None, Some(dir)) => (dir, "memory.events", "oom_kill "),
            (None, None) => return Ok(0),
        };
        let deep = self.dir_v1("memory").is_some();
        kill::sum_of(&dir, file, key, deep).step(|| format!("read {}/{file}", dir.display()))
    }

    /// Sends SIGKILL to everything inside, sub-cgroups included, and to everything those fork
    /// meanwhile. Doesn't wait for their end. Nothing inside, or no such cgroup: fine.
    pub fn kill(&self) -> Result<()> {
        let killed = match (self.dir_v2(), self.dir_v1("freezer")) {
            (Some(dir), _) => kill::kill_v2(&dir),
            (None, Some(dir)) => kill::kill_v1(&dir),
            (None, None) => Ok(()),
        };
        killed.step(|| format!("kill cgroup {}", self.path.display()))
    }

    /// Removes the cgroup with its sub-cgroups if this engine made it, then marked parents that it
    /// leaves empty. Retries while the kernel says busy, up to `patience`; then fails with
    /// [`crate::ErrorKind::Busy`]. An absent cgroup is fine.
    pub fn remove(&self, patience: Duration) -> Result<()> {
        let mut first = Ok(());
        for root in self.layout.roots() {
            let removed = tree::remove(root, &self.path, patience)
                .step(|| format!("remove cgroup {}", root.join(&self.path).display()));
            first = first.and(removed);
        }
        first
    }

    /// Moves a process into this cgroup, in every hierarchy (the init of a pod).
    pub fn add(&self, pid: u32) -> Result<()> {
        for root in self.layout.roots() {
            let file = root.join(&self.path).join("cgroup.procs");
            cgroupfs::write(&file, &pid.to_string())
                .step(|| format!("move process {pid} into {}", file.display()))?;
        }
        Ok(())
    }

    /// Moves the calling process, which must have one thread, into the v1 hierarchies. (A v2
    /// hierarchy is entered by the clone itself.)
    ///
    /// By `0` in `tasks`, not by its id in `cgroup.procs`: a thread that moves itself takes no lock
    /// over all processes (kernel 5.18), whose first taker after a pause waits 13 ms for RCU.
    pub(crate) fn enter_v1(&self) -> Result<()> {
        for (root, _) in &self.layout.v1 {
            let file = root.join(&self.path).join("tasks");
            cgroupfs::write(&file, "0").step(|| format!("enter {}", file.display()))?;
        }
        Ok(())
    }

    /// The v2 directory, open, to clone a process into.
    pub(crate) fn open_v2(&self) -> Result<Option<OwnedFd>> {
        use rustix::fs::{Mode, OFlags};
        let Some(dir) = self.dir_v2() else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&dir, flags, Mode::empty()).map_err(io::Error::from);
        opened.map(Some).step(|| format!("open cgroup {}", dir.display()))
    }

    /// A cgroup below this one for one exec, only in the hierarchy that kills: no limits, no v1
    /// hierarchy that counts or limits, so its processes stay in the container's own groups there.
    pub(crate) fn child(&self, name: &str) -> Self {
        let v2 = self.layout.v2.clone();
        let freezer = |(_, controllers): &&(PathBuf, Vec<String>)| {
            v2.is_none() && controllers.iter().any(|c| c == "freezer")
        };
        let v1 = self.layout.v1.iter().filter(freezer).cloned().collect();
        Self { layout: Layout { v1, v2 }, path: self.path.join(name) }
    }

    /// Makes the directories without limits.
    pub(crate) fn make_plain(&self) -> Result<()> {
        self.make(tree::Leaf::New, false)
    }

    /// Makes the directories; with `controlled`, and on the way down what a limited cgroup needs of
    /// its parents. Undone where it fails halfway.
    fn make(&self, leaf: tree::Leaf, controlled: bool) -> Result<()> {
        let unified = self.layout.is_unified();
        let prepare = |dir: &Path, controllers: &[String]| match dir.parent() {
            _ if !controlled => Ok(()),
            _ if controllers.iter().any(|c| c == "cpuset") => v1::inherit_cpuset(dir),
            Some(parent) if unified => v2::enable_controllers(parent),
            _ => Ok(()),
        };
        let v1 = self.layout.v1.iter().map(|(root, all)| (root, all.as_slice()));
        let all: Vec<_> = v1.chain(self.layout.v2.iter().map(|root| (root, &[][..]))).collect();
        for (at, (root, controllers)) in all.iter().enumerate() {
            let made = tree::make(root, &self.path, leaf, &|dir| prepare(dir, controllers));
            let Err(err) = made else { continue };
            // What was there before this call isn't ours to take away.
            let exists = err.kind() == io::ErrorKind::AlreadyExists;
            for (root, _) in all.iter().take(at + usize::from(!exists)) {
                let _ = tree::remove(root, &self.path, Duration::ZERO);
            }
            return Err(err).step(|| format!("make cgroup {}", root.join(&self.path).display()));
        }
        Ok(())
    }

    fn limit(
        &self,
        resources: &LinuxResources,
        moment: limits::Moment,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let settings = if self.layout.is_unified() {
            let settings = v2::settings(resources)?;
            v2::limit_devices(self, resources, moment)?;
            settings
        } else {
            v1::settings(resources, moment)?
        };
        limits::apply(self, &settings, warnings)
    }

    /// This cgroup's directory in the v1 hierarchy that carries `controller`.
    fn dir_v1(&self, controller: &str) -> Option<PathBuf> {
        Some(self.layout.v1_root(controller)?.join(&self.path))
    }

    fn dir_v2(&self) -> Option<PathBuf> {
        Some(self.layout.v2.as_ref()?.join(&self.path))
    }

    /// A hierarchy in which every process of the cgroup is found.
    fn counting_dir(&self) -> Option<PathBuf> {
        let v1 = || self.layout.v1.first().map(|(root, _)| root.join(&self.path));
        self.dir_v2().or_else(v1)
    }
}

/// `path` without its leading slash; at least one component, none of them `..`.
pub(crate) fn relative(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid_path(path, "leaves the hierarchy"));
            }
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(invalid_path(path, "names no cgroup"));
    }
    if path.to_string_lossy().contains(':') {
        return Err(invalid_path(path, "is a systemd unit, which this engine doesn't make"));
    }
    Ok(clean)
}

fn invalid_path(path: &Path, why: &str) -> Error {
    Error::InvalidSpec { field: "linux.cgroupsPath".into(), reason: format!("{path:?} {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_inside_the_hierarchy_name_a_cgroup() {
        for (path, clean) in [("/a/b", "a/b"), ("a", "a"), ("//a/./b/", "a/b")] {
            assert_eq!(relative(Path::new(path)).unwrap(), Path::new(clean));
        }
        for bad in ["", "/", "/..", "a/../../b", "user.slice:berth:id"] {
            let err = relative(Path::new(bad)).unwrap_err();
            assert!(err.to_string().contains("linux.cgroupsPath"), "{err}");
        }
    }
}
