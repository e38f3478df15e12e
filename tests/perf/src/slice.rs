//! A cgroup that holds one runtime with everything it starts: what its processor time is read
//! from, and its processes found in.
//!
//! ```text
//! NAME/daemon   the daemon, and what it starts unless that moves elsewhere
//! NAME/shims    Berth's shims
//! NAME/pods     the pods, as kubelet would have made it
//! ```
//! In every hierarchy of cgroup v1, or in the one of v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use berth_tests::footprint;

/// The cgroup; removed with its value once it is empty.
#[derive(Debug)]
pub(crate) struct Slice {
    name: String,
    /// Every hierarchy's root.
    roots: Vec<PathBuf>,
    account: Account,
}

/// A cgroup directory that counts processor time and lists processes.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    dir: PathBuf,
}

impl Slice {
    /// Makes the cgroup `name` with its children.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let roots = footprint::hierarchies();
        // Version 1 counts processor time in a hierarchy of its own, version 2 in its only one.
        let counts = |root: &&PathBuf| {
            root.join("cpuacct.usage").exists() || root.join("cgroup.controllers").exists()
        };
        let root = roots.iter().find(counts).context("no cgroup counts processor time")?;
        let account = Account::at(root.join(name));
        let slice = Self { name: name.to_owned(), roots, account };
        for root in &slice.roots {
            for child in ["daemon", "shims", "pods"] {
                let dir = root.join(name).join(child);
                fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
                inherit_cpuset(root, &dir)?;
            }
        }
        Ok(slice)
    }

    /// Its name, in every hierarchy.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A child's path as a cgroup parent: `/NAME/CHILD`.
    pub(crate) fn path(&self, child: &str) -> String {
        format!("/{}/{child}", self.name)
    }

    /// The `cgroup.procs` files by which a process joins the daemon's place.
    pub(crate) fn daemon_procs(&self) -> Vec<PathBuf> {
        let procs = |root: &PathBuf| root.join(&self.name).join("daemon/cgroup.procs");
        self.roots.iter().map(procs).collect()
    }

    /// Where its processor time and processes are read.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }
}

impl Account {
    /// The cgroup in this directory: of v2, or of v1's cpuacct hierarchy.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Processor time used since the cgroup was made, by what has ended as well.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        if let Ok(text) = fs::read_to_string(self.dir.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(text.trim().parse()?));
        }
        let path = self.dir.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(usage.context("cpu.stat lacks usage_usec")?.parse()?))
    }

    /// The processes in it, at any depth.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            found.extend(
                read(&dir.join("cgroup.procs"))?
                    .lines()
                    .filter_map(|line| line.parse::<u32>().ok()),
            );
            dirs.extend(children(&dir)?);
        }
        Ok(found)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        for root in &self.roots {
            remove(&root.join(&self.name));
        }
    }
}

/// cgroup v1: no process may enter a cpuset without processors and memory nodes.
fn inherit_cpuset(root: &Path, dir: &Path) -> Result<()> {
    let below = dir.strip_prefix(root)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(value) = fs::read_to_string(root.join(file)) else { continue };
        let mut at = root.to_path_buf();
        for part in below {
            at.push(part);
            // cgroup v2 has the file only where the controller is on, and needs no value.
            if at.join(file).exists() {
                fs::write(at.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}

/// A file's text; empty when its directory went meanwhile.
fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if gone(&error) => Ok(String::new()),
        other => other.with_context(|| format!("read {}", path.display())),
    }
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(Vec::new()),
        other => other.with_context(|| format!("list {}", dir.display()))?,
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

/// The file's cgroup has been removed, before or after it was opened.
fn gone(error: &io::Error) -> bool {
    const ENODEV: i32 = 19;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}

fn remove(dir: &Path) {
    for child in children(dir).unwrap_or_default() {
        remove(&child);
    }
    // What still holds a process stays, to be seen.
    let _ = fs::remove_dir(dir);
}
