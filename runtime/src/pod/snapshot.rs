//! What lists and status read: published by a pod's driver after each change, never waited for.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use berth_proto::ids::{ContainerId, PodId};

use super::spec::{ContainerSpec, PodSpec};

/// A pod as it is now.
#[derive(Debug, Clone)]
pub struct PodSnapshot {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// Ready to take containers. False: NOTREADY.
    pub ready: bool,
    /// Nanoseconds since the epoch; never 0.
    pub created_at: i64,
    /// The first is the primary one; empty with the host's network.
    pub ips: Vec<IpAddr>,
    /// The cgroup that its containers' cgroups, named by their ids, are in; relative to the
    /// hierarchies' roots.
    pub cgroup: String,
    /// Where the network namespace is pinned; None with the host's network or when not ready.
    pub netns: Option<PathBuf>,
    /// Process id of the shim; None when it is gone.
    pub shim_pid: Option<u32>,
    /// What could not be undone yet and is retried, one line each.
    pub leftovers: Vec<String>,
    /// Its containers, oldest first.
    pub containers: Vec<Arc<ContainerSnapshot>>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    /// Prepared; its first process waits.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended, or never began.
    Exited,
}

/// A container as it is now.
#[derive(Debug, Clone)]
pub struct ContainerSnapshot {
    /// Its id.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub pod: PodId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Nanoseconds since the epoch; never 0.
    pub created_at: i64,
    /// 0: not started.
    pub started_at: i64,
    /// 0: not ended.
    pub finished_at: i64,
    /// 0-255; 255 when nobody knows. 0 while it has not ended.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` ...; empty while it has not ended.
    pub reason: String,
    /// More words on the reason.
    pub message: String,
    /// The image's id (`sha256:...`), equal to `Image.id`.
    pub image_id: String,
    /// A repo digest of the image, else its id.
    pub image_ref: String,
    /// The ids of the images of its image volumes, in the order of their mounts.
    pub volume_images: Vec<String>,
    /// Absolute. None: output is discarded.
    pub log_path: Option<PathBuf>,
    /// Who the first process is.
    pub user: User,
    /// Number of the signal that StopContainer sends first.
    pub stop_signal: i32,
    /// Host process id; None when not running.
    pub pid: Option<u32>,
    /// Bytes of log that could not be written.
    pub log_bytes_lost: u64,
}

/// Numeric user and groups of a container's first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, the primary one among them.
    pub groups: Vec<u32>,
}

/// How an ExecSync ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// 0-255.
    pub exit_code: i32,
}
