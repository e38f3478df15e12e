//! The `delete` verb: what is left of a shim that died is killed by its cgroups.
//!
//! The bundle is a container's directory (it holds `config.json`) or a pod's (it holds
//! `containers/`). For a pod its init goes too, and the pin of its network namespace: the daemon
//! lets CNI take the network down before that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_container::{Cgroup, Layout};
use berth_proto::paths::PodPaths;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField, well_known_types};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::pod::PodOrder;
use crate::shim::unix_nanos;

/// Exit code of what was killed: 128 + SIGKILL.
const KILLED: u32 = 137;
/// How long the kernel may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(5);
const POD_FILE: &str = "pod.json";

/// What outlives the shim of a pod, and this verb must find.
#[derive(Debug, Serialize, Deserialize)]
struct PodFile {
    version: u32,
    netns_path: Option<PathBuf>,
    /// The cgroup of the pod's init, if it has one.
    init_cgroup: Option<PathBuf>,
}

/// A clean-up failed; the rest of it was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("cgroups: {0}")]
    Cgroups(#[source] berth_container::Error),
    #[error("{what}: {source}")]
    Remove { what: String, source: berth_container::Error },
    #[error("encode the answer: {0}")]
    Encode(#[source] containerd_shim_protos::protobuf::Error),
}

/// Writes down what the verb will need.
pub(crate) fn remember_pod(paths: &PodPaths, order: &PodOrder) -> io::Result<()> {
    let file = PodFile {
        version: 1,
        netns_path: order.netns_path.clone(),
        init_cgroup: order.shared_pid.then(|| order.cgroup_parent.join(&order.pod_id)),
    };
    let path = paths.dir().join(POD_FILE);
    let temporary = path.with_extension("json.tmp");
    let bytes = serde_json::to_vec(&file).map_err(io::Error::other)?;
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

/// Forgets it: nothing is left. Absent is fine.
pub(crate) fn forget_pod(paths: &PodPaths) {
    let _absent = fs::remove_file(paths.dir().join(POD_FILE));
}

/// Cleans up and gives the encoded answer.
pub(crate) fn run(bundle: &Path) -> Result<Vec<u8>, DeleteError> {
    let layout = Layout::detect().map_err(DeleteError::Cgroups)?;
    let done = if bundle.join("config.json").exists() {
        container(&layout, bundle)
    } else {
        pod(&layout, bundle)
    };
    done?;
    let mut exited_at = MessageField::<well_known_types::timestamp::Timestamp>::default();
    let nanos = unix_nanos();
    let time = exited_at.mut_or_insert_default();
    time.seconds = nanos / 1_000_000_000;
    time.nanos = i32::try_from(nanos % 1_000_000_000).unwrap_or_default();
    let answer = DeleteResponse { exit_status: KILLED, exited_at, ..Default::default() };
    answer.write_to_bytes().map_err(DeleteError::Encode)
}

fn container(layout: &Layout, bundle: &Path) -> Result<(), DeleteError> {
    let path = bundle.join("config.json");
    let spec: Spec = parse(&path)?;
    match spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()) {
        Some(cgroup) => remove(layout, &cgroup),
        None => Ok(()),
    }
}

/// Goes on after an error, and gives the first.
fn pod(layout: &Layout, directory: &Path) -> Result<(), DeleteError> {
    let mut first = Ok(());
    let bundles = directory.join("containers");
    for entry in fs::read_dir(&bundles).into_iter().flatten().flatten() {
        if entry.path().join("config.json").exists() {
            first = first.and(container(layout, &entry.path()));
        }
    }
    let path = directory.join(POD_FILE);
    if !path.exists() {
        return first;
    }
    let file: PodFile = parse(&path)?;
    if let Some(cgroup) = &file.init_cgroup {
        first = first.and(remove(layout, cgroup));
    }
    if let Some(path) = &file.netns_path {
        let what = format!("unpin {}", path.display());
        let unpinned = berth_container::pod::unpin(path);
        first = first.and(unpinned.map_err(|source| DeleteError::Remove { what, source }));
        if let Some(directory) = path.parent() {
            // Not empty or not ours: it stays.
            let _kept = fs::remove_dir(directory);
        }
    }
    if first.is_ok() {
        forget_pod(&PodPaths::at(directory));
    }
    first
}

fn remove(layout: &Layout, path: &Path) -> Result<(), DeleteError> {
    Cgroup::at(layout, path)
        .and_then(|cgroup| cgroup.kill().and_then(|()| cgroup.remove(PATIENCE)))
        .map_err(|source| DeleteError::Remove {
            what: format!("remove cgroup {}", path.display()),
            source,
        })
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, DeleteError> {
    let bytes =
        fs::read(path).map_err(|source| DeleteError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| DeleteError::Parse { path: path.to_owned(), source })
}
