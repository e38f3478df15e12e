//! The exit record: what a shim writes down when a container's first process ended.
//!
//! It is written (to a temporary name, then renamed) before the process is reaped and before
//! anyone is told, so that a crash between leaves a zombie or a file, never neither.

use serde::{Deserialize, Serialize};

/// The version this build writes.
pub const VERSION: u32 = 1;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Layout of this record: [`VERSION`]. Readers take newer ones and ignore what they don't know.
    pub version: u32,
    /// The container's id.
    pub container_id: String,
    /// 0-255; 128 + signal number when a signal ended it.
    pub exit_code: u32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<u32>,
    /// Nanoseconds since the epoch.
    pub exited_at: i64,
    /// The kernel's OOM killer struck in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
    /// Bytes of log that could not be written.
    #[serde(default)]
    pub log_bytes_lost: u64,
}
