//! The configuration as it stands in the file: nothing checked but its grammar and its keys.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) root: Option<PathBuf>,
    pub(super) state: Option<PathBuf>,
    pub(super) cri: Cri,
    pub(super) cgroup: Cgroup,
    pub(super) network: Network,
    pub(super) registry: Registry,
    pub(super) image: Image,
    pub(super) shim: Shim,
    pub(super) log: Log,
    pub(super) metrics: Metrics,
    pub(super) stream: Stream,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cri {
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cgroup {
    pub(super) driver: Option<String>,
    pub(super) default_parent: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    pub(super) conf_dir: Option<PathBuf>,
    pub(super) bin_dirs: Option<Vec<PathBuf>>,
    pub(super) gc_minutes: Option<u64>,
    pub(super) builtin: Option<String>,
    pub(super) bridge_name: Option<String>,
    pub(super) bridge_subnets: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Registry {
    pub(super) config_path: Option<PathBuf>,
    pub(super) auth_file: Option<PathBuf>,
    pub(super) stall_timeout_seconds: Option<u64>,
    pub(super) min_kib_per_second: Option<u64>,
    pub(super) retries: Option<u32>,
    pub(super) avoid_seconds: Option<u64>,
    pub(super) connections_per_host: Option<u32>,
    pub(super) bandwidth_mib_per_second: Option<u64>,
    pub(super) chunk_mib: Option<u32>,
    pub(super) chunks: Option<u32>,
    pub(super) resume_after_seconds: Option<u64>,
    pub(super) resume_gib: Option<u64>,
    pub(super) resume_hours: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Image {
    pub(super) root: Option<PathBuf>,
    pub(super) preload: Option<PathBuf>,
    pub(super) keep_blobs: Option<bool>,
    pub(super) write_mib_per_second: Option<u64>,
    pub(super) pull_cgroup: Option<String>,
    pub(super) pinned: Option<Vec<String>>,
    pub(super) rw_quota_mib: Option<u64>,
    pub(super) rw_quota_inodes: Option<u64>,
    pub(super) limits: ImageLimits,
    pub(super) policy: ImagePolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ImageLimits {
    pub(super) layer_gib: Option<u64>,
    pub(super) layer_entries: Option<u64>,
    pub(super) expansion: Option<u64>,
    pub(super) path_depth: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ImagePolicy {
    pub(super) action: Option<String>,
    pub(super) keys: Option<Vec<PathBuf>>,
    pub(super) match_repository: Option<bool>,
    pub(super) rule: Vec<PolicyRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyRule {
    pub(super) prefix: Option<String>,
    pub(super) action: Option<String>,
    pub(super) keys: Option<Vec<PathBuf>>,
    pub(super) match_repository: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Shim {
    pub(super) binary: Option<PathBuf>,
    pub(super) cgroup: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) address: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Stream {
    pub(super) address: Option<String>,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) idle_timeout_seconds: Option<u64>,
}
