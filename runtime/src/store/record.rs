//! What is written down of a pod and of a container. A field is only ever added, with a default.

use std::net::IpAddr;
use std::path::PathBuf;

use berth_proto::ids::{ContainerId, PodId};
use serde::{Deserialize, Serialize};

use crate::pod::User;
use crate::pod::cleanup::Cleanup;
use crate::pod::spec::{ContainerSpec, PodSpec};

/// Where a pod is in its life, as far as a restart needs to know.
///
/// ```text
/// Making -> Ready -> NotReady -> Removed
///    \________________________/
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// RunPodSandbox has begun. A restart undoes it.
    Making,
    /// RunPodSandbox has succeeded.
    Ready,
    /// Stopped, or its shim or its node has died.
    NotReady,
    /// Gone for kubelet; only its leftovers keep the record.
    Removed,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: PodSpec,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The boot it was made in.
    pub boot: String,
    /// The cgroup that its containers' are made in, relative to the hierarchy roots.
    pub cgroup_parent: String,
    /// What the network gave it.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The shared PID namespace's first process: host pid and start time (clock ticks).
    #[serde(default)]
    pub init: Option<(u32, u64)>,
    /// What could not be undone yet.
    #[serde(default)]
    pub leftovers: Vec<Cleanup>,
}

/// Where a container is in its life, as far as a restart needs to know.
///
/// ```text
/// Making -> Created -> Starting -> Running -> Exited -> Removing
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// CreateContainer has begun. A restart undoes it.
    Making,
    /// CreateContainer has succeeded.
    Created,
    /// StartContainer has begun. The shim knows what became of it.
    Starting,
    /// StartContainer has succeeded.
    Running,
    /// The first process ended, or never began.
    Exited,
    /// RemoveContainer has begun. A restart finishes it.
    Removing,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub pod: PodId,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// 0: not started.
    #[serde(default)]
    pub started_at: i64,
    /// 0: not ended.
    #[serde(default)]
    pub finished_at: i64,
    /// 0-255.
    #[serde(default)]
    pub exit_code: i32,
    /// Why it ended, in one word.
    #[serde(default)]
    pub reason: String,
    /// Why it ended, in more.
    #[serde(default)]
    pub message: String,
    /// The image's id.
    #[serde(default)]
    pub image_id: String,
    /// A repo digest of the image, else its id.
    #[serde(default)]
    pub image_ref: String,
    /// The ids of the images of its image volumes, in the order of their mounts.
    #[serde(default)]
    pub volume_images: Vec<String>,
    /// Absolute.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Who the first process is.
    #[serde(default)]
    pub user: User,
    /// What StopContainer sends first.
    #[serde(default)]
    pub stop_signal: i32,
    /// Host process id of the first process; 0: none.
    #[serde(default)]
    pub pid: u32,
    /// Bytes of log that could not be written.
    #[serde(default)]
    pub log_bytes_lost: u64,
}
