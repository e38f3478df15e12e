//! Which cgroup file systems the machine has mounted.

use std::io;
use std::path::{Path, PathBuf};

use berth_sys::cgroupfs::{self, Mounted};

use crate::error::{Result, StepExt};

/// Where every distribution mounts them.
const ROOT: &str = "/sys/fs/cgroup";

/// What cgroup file systems this machine has mounted under /sys/fs/cgroup. Detect once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// v1 hierarchies: mount directory, and the controllers (or `name=x`) each carries.
    pub(super) v1: Vec<(PathBuf, Vec<String>)>,
    /// The v2 hierarchy: the only one (v2), or beside v1 (hybrid).
    pub(super) v2: Option<PathBuf>,
}

impl Layout {
    /// Looks at /sys/fs/cgroup, not at the mount table: directories there are named after their
    /// controllers (`cpu,cpuacct`), and links (`cpu`) only repeat them.
    pub fn detect() -> Result<Self> {
        Self::look(Path::new(ROOT)).step(|| format!("detect cgroup hierarchies in {ROOT}"))
    }

    fn look(root: &Path) -> io::Result<Self> {
        if cgroupfs::mounted(root)? == Mounted::V2 {
            return Ok(Self { v1: Vec::new(), v2: Some(root.to_owned()) });
        }
        let mut layout = Self { v1: Vec::new(), v2: None };
        for entry in std::fs::read_dir(root)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match cgroupfs::mounted(&entry.path())? {
                Mounted::V1 => layout.v1.push((entry.path(), controllers(&entry.file_name()))),
                Mounted::V2 => layout.v2 = Some(entry.path()),
                Mounted::Other => {}
            }
        }
        layout.v1.sort();
        if layout.v1.is_empty() && layout.v2.is_none() {
            let text = format!("no cgroup file system is mounted below {}", root.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(layout)
    }

    /// True where controllers are on the v2 hierarchy (no v1 hierarchy is mounted).
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }

    /// Root directory of the v1 hierarchy that carries `controller`.
    pub(crate) fn v1_root(&self, controller: &str) -> Option<&Path> {
        let carries = |(_, all): &&(PathBuf, Vec<String>)| all.iter().any(|c| c == controller);
        self.v1.iter().find(carries).map(|(root, _)| root.as_path())
    }

    /// v1 hierarchies: root directory and controllers.
    pub(crate) fn v1(&self) -> &[(PathBuf, Vec<String>)] {
        &self.v1
    }

    /// Root directory of the v2 hierarchy.
    pub(crate) fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// Root directories of all hierarchies.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|(root, _)| root.as_path()).chain(self.v2.as_deref())
    }
}

/// `cpu,cpuacct` carries two; `systemd` is a hierarchy without controller.
fn controllers(dir: &std::ffi::OsStr) -> Vec<String> {
    match dir.to_string_lossy().as_ref() {
        "systemd" => vec!["name=systemd".to_owned()],
        names => names.split(',').map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_layout() {
        let layout = Layout::detect().unwrap();
        assert!(layout.roots().count() > 0);
        assert_eq!(layout.is_unified(), layout.v1_root("memory").is_none());
    }

    #[test]
    fn directory_names_are_controllers() {
        assert_eq!(controllers("cpu,cpuacct".as_ref()), ["cpu", "cpuacct"]);
        assert_eq!(controllers("systemd".as_ref()), ["name=systemd"]);
    }

    #[test]
    fn a_directory_without_cgroups_is_told() {
        let err = Layout::look(Path::new("/usr/share")).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }
}
