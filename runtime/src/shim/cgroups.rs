//! Cgroups as the daemon needs them: a home for shims, and an end for what a dead shim left.
//!
//! A shim makes its pod's cgroups and takes them away again. Only when it has died, the daemon
//! kills what is in them by their `cgroup.procs` (or `cgroup.kill`) and removes them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What could not be done to a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file or directory of it.
    #[error("{what} {path:?}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its processes do not end.
    #[error("cgroup {path:?}: still {left} processes after {seconds} s of SIGKILL, such as {pid}")]
    Stuck {
        /// Which.
        path: PathBuf,
        /// How many.
        left: usize,
        /// One of them.
        pid: i32,
        /// How long it was tried.
        seconds: u64,
    },
}

/// The cgroup hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    v1: Vec<PathBuf>,
    v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads /proc/self/mounts.
    pub fn probe() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mounts")?))
    }

    pub(crate) fn parse(mounts: &str) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(path), Some(kind)) = (words.next(), words.next()) else { continue };
            let path = PathBuf::from(path);
            match kind {
                "cgroup" if !found.v1.contains(&path) => found.v1.push(path),
                "cgroup2" if found.v2.is_none() => found.v2 = Some(path),
                _ => {}
            }
        }
        found
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().chain(&self.v2)
    }

    /// A cgroup's directory in the v1 hierarchy that has this controller.
    #[must_use]
    pub fn directory(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let has = |root: &&PathBuf| {
            let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.split(',').any(|one| one == controller)
        };
        self.v1.iter().find(has).map(|root| below(root, cgroup))
    }

    /// A cgroup's directory in the v2 hierarchy.
    #[must_use]
    pub fn unified_directory(&self, cgroup: &str) -> Option<PathBuf> {
        self.v2.as_deref().map(|root| below(root, cgroup))
    }

    /// Only cgroup v2 is there.
    #[must_use]
    pub fn unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// Directories of `cgroup` and of its parents that are not there yet, over all hierarchies:
    /// whoever makes the cgroup now makes these.
    #[must_use]
    pub fn absent(&self, cgroup: &str) -> BTreeSet<PathBuf> {
        let mut absent = BTreeSet::new();
        for root in self.roots() {
            let mut path = root.clone();
            for part in parts(cgroup) {
                path.push(part);
                if !path.exists() {
                    absent.insert(path.clone());
                }
            }
        }
        absent
    }

    /// Puts the calling thread into `cgroup` of every v1 hierarchy, making it where needed, so
    /// that its children are born there. v2 knows no single threads: see [`Self::adopt`].
    pub fn join_thread(&self, cgroup: &str) -> Result<(), CgroupError> {
        for root in &self.v1 {
            let dir = make(root, cgroup)?;
            write(&dir.join("tasks"), "0")?;
        }
        if let Some(root) = &self.v2 {
            make(root, cgroup)?;
        }
        Ok(())
    }

    /// Moves a process into `cgroup` of the v2 hierarchy.
    pub fn adopt(&self, cgroup: &str, pid: u32) -> Result<(), CgroupError> {
        let Some(root) = &self.v2 else { return Ok(()) };
        write(&below(root, cgroup).join("cgroup.procs"), &pid.to_string())
    }

    /// Kills everything in `cgroup` and below it, in every hierarchy, until it is empty; then
    /// removes it. Ok when it is not there. Blocks.
    pub fn end(&self, cgroup: &str, limit: Duration) -> Result<(), CgroupError> {
        let mut outcome = Ok(());
        for root in self.roots() {
            let dir = below(root, cgroup);
            let done = empty(&dir, limit).and_then(|()| remove_tree(&dir));
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Whether any process is in `cgroup`, of any hierarchy.
    #[must_use]
    pub fn populated(&self, cgroup: &str) -> bool {
        self.roots().any(|root| tree(&below(root, cgroup)).iter().any(|dir| !procs(dir).is_empty()))
    }

    /// Removes `cgroup` where it has no process and no child. Parents stay.
    pub fn remove_if_empty(&self, cgroup: &str) {
        for root in self.roots() {
            // Busy or gone: both are as it should be.
            let _ = fs::remove_dir(below(root, cgroup));
        }
    }
}

fn parts(cgroup: &str) -> impl Iterator<Item = &std::ffi::OsStr> {
    // Only plain names: what the front door let through cannot climb out of a hierarchy.
    Path::new(cgroup).components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    parts(cgroup).fold(root.to_owned(), |path, part| path.join(part))
}

fn make(root: &Path, cgroup: &str) -> Result<PathBuf, CgroupError> {
    let mut path = root.to_owned();
    for part in parts(cgroup) {
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Io { what: "make cgroup", path, source: error });
            }
            _ => inherit_cpuset(&path)?,
        }
    }
    Ok(path)
}

/// A v1 cpuset takes no task until its cpus and mems are set.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(name);
        let Ok(value) = fs::read_to_string(&own) else { continue };
        let parent = dir.parent().map(|p| p.join(name));
        let Some(parent) = parent.and_then(|p| fs::read_to_string(p).ok()) else { continue };
        // On v2 an empty value means "as the parent", and nothing needs to be written.
        if value.trim().is_empty() && !dir.join("cgroup.controllers").exists() {
            write(&own, parent.trim())?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| f.write_all(text.as_bytes()));
    written.map_err(|source| CgroupError::Io { what: "write", path: path.to_owned(), source })
}

/// The directory and all below it, deepest last.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all = vec![dir.to_owned()];
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    all
}

fn procs(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn empty(dir: &Path, limit: Duration) -> Result<(), CgroupError> {
    let end = Instant::now() + limit;
    loop {
        let dirs = tree(dir);
        let left: Vec<i32> = dirs.iter().flat_map(|dir| procs(dir)).collect();
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() > end {
            return Err(CgroupError::Stuck {
                path: dir.to_owned(),
                left: left.len(),
                pid: *first,
                seconds: limit.as_secs(),
            });
        }
        if write(&dir.join("cgroup.kill"), "1").is_err() {
            // 0 stands for a process of another PID namespace's view: never ours to signal.
            for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for dir in tree(dir).iter().rev() {
        // The last process may still be leaving: the kernel says busy for a moment.
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            match fs::remove_dir(dir) {
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                    if Instant::now() > end {
                        let what = "remove cgroup";
                        return Err(CgroupError::Io { what, path: dir.clone(), source: e });
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    let what = "remove cgroup";
                    return Err(CgroupError::Io { what, path: dir.clone(), source: e });
                }
                _ => break,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_is_taken_once() {
        let found = Hierarchies::parse(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
        );
        assert_eq!(found.v1, [PathBuf::from("/sys/fs/cgroup/cpu")]);
        assert_eq!(found.v2, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert!(!found.unified());
    }

    #[test]
    fn a_name_cannot_climb_out() {
        assert_eq!(below(Path::new("/sys"), "/../../etc/./x"), PathBuf::from("/sys/etc/x"));
    }

    #[test]
    fn what_a_dead_shim_left_is_killed_and_removed() {
        let cgroups = Hierarchies::probe().unwrap();
        let name = format!("/berth-test-end-{}", std::process::id());
        assert_eq!(cgroups.absent(&name).len(), cgroups.roots().count());
        let inner = format!("{name}/inner");
        for root in cgroups.roots() {
            make(root, &inner).unwrap();
        }
        assert!(cgroups.absent(&inner).is_empty());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        for root in cgroups.roots() {
            let dir = below(root, &inner);
            write(&dir.join("cgroup.procs"), &child.id().to_string()).unwrap();
        }
        assert!(cgroups.populated(&name));
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        cgroups.end(&name, Duration::from_secs(5)).unwrap();
        assert!(!reaper.join().unwrap().success());
        assert_eq!(cgroups.absent(&name).len(), cgroups.roots().count());
        cgroups.end(&name, Duration::from_secs(5)).unwrap();
    }
}
