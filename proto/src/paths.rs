//! Where the things of one daemon instance lie below its `state` directory.
//!
//! ```text
//! STATE/pods/POD/shim.sock              the shim's ttrpc socket
//! STATE/pods/POD/shim.pid               the shim's process id (text)
//! STATE/pods/POD/shim.log               the shim's own messages
//! STATE/pods/POD/{hostname,hosts,resolv.conf}
//! STATE/pods/POD/containers/CTR/        the OCI bundle (config.json)
//! STATE/pods/POD/exits/CTR.json         the exit record, written by the shim
//! STATE/ns/POD/net                      the pinned network namespace
//! ```

use std::path::{Path, PathBuf};

use crate::ids::{ContainerId, PodId};

/// The paths below one `state` directory.
#[derive(Debug, Clone)]
pub struct StatePaths {
    root: PathBuf,
}

impl StatePaths {
    /// The paths below `root`, which should be absolute.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The `state` directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of all pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The directory of one pod.
    #[must_use]
    pub fn pod(&self, pod: &PodId) -> PodPaths {
        PodPaths { dir: self.pods().join(pod.as_str()) }
    }

    /// The directory of all pinned namespaces.
    #[must_use]
    pub fn namespaces(&self) -> PathBuf {
        self.root.join("ns")
    }

    /// Where the pod's network namespace is pinned.
    #[must_use]
    pub fn netns(&self, pod: &PodId) -> PathBuf {
        self.namespaces().join(pod.as_str()).join("net")
    }
}

/// The paths of one pod.
#[derive(Debug, Clone)]
pub struct PodPaths {
    dir: PathBuf,
}

impl PodPaths {
    /// The paths of the pod whose directory is `dir` (the shim's working directory).
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The pod's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shim's ttrpc socket.
    #[must_use]
    pub fn shim_socket(&self) -> PathBuf {
        self.dir.join("shim.sock")
    }

    /// The shim's process id, as text.
    #[must_use]
    pub fn shim_pid(&self) -> PathBuf {
        self.dir.join("shim.pid")
    }

    /// The shim's own messages.
    #[must_use]
    pub fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    /// The OCI bundle of a container.
    #[must_use]
    pub fn bundle(&self, container: &ContainerId) -> PathBuf {
        self.dir.join("containers").join(container.as_str())
    }

    /// The directory of exit records.
    #[must_use]
    pub fn exits(&self) -> PathBuf {
        self.dir.join("exits")
    }

    /// The exit record of a container.
    #[must_use]
    pub fn exit(&self, container: &ContainerId) -> PathBuf {
        self.exits().join(format!("{container}.json"))
    }
}
