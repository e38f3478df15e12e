//! What no record speaks of: left by a crash between two steps, or by a record that was torn.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_proto::ids::PodId;

use crate::pod::cleanup::unpin;
use crate::pod::house::{House, blocking};
use crate::pod::{Error, volumes};
use crate::shim::{Process, find_by_directory};
use crate::store::Recorded;

const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What the records speak of.
#[derive(Debug, Default)]
pub(super) struct Known {
    pods: BTreeSet<String>,
    containers: BTreeSet<String>,
}

impl Known {
    pub(super) fn of(all: &[Recorded]) -> Self {
        let containers = all.iter().flat_map(|r| &r.containers);
        Self {
            pods: all.iter().map(|r| r.pod.id.to_string()).collect(),
            containers: containers.map(|c| c.id.to_string()).collect(),
        }
    }
}

/// Finds the orphans now, before anything new is made, and removes them beside the daemon's life.
pub(super) async fn remove(house: Arc<House>, known: Known) {
    let pods = names(&house.paths.pods(), &known.pods);
    let pins = names(&house.paths.namespaces(), &known.pods);
    let snapshots = unknown(house.images.snapshots(), &known.containers);
    let attached = house.networks.cached().await.unwrap_or_else(|error| {
        tracing::error!(%error, "attachments cannot be listed: orphans of them stay");
        Vec::new()
    });
    let attached = unknown(attached, &known.pods);
    tokio::spawn(async move {
        // Addresses first: a plugin may still want the namespace.
        for id in attached {
            say("network attachment", &id, house.networks.del_orphan(&id).await);
        }
        for id in pods {
            say("pod directory", &id, pod_directory(&house, &id).await);
        }
        for id in pins {
            let pin = house.paths.namespaces().join(&id).join("net");
            say("pinned namespace", &id, blocking(move || unpin(&pin)).await.and_then(|r| r));
        }
        for id in snapshots {
            say("writable layer", &id, house.images.release(&id).await);
        }
        let parents = house.clone();
        // Nobody lives by this name: only what nobody needs goes.
        let nobody = PodId::from_random([0; 32]);
        let swept = blocking(move || parents.parents.leave(&nobody)).await;
        say("cgroup parents", "", swept);
    });
}

fn say<E: std::fmt::Display>(what: &str, id: &str, done: Result<(), E>) {
    match done {
        Ok(()) if id.is_empty() => {}
        Ok(()) => tracing::warn!(what, id, "orphan removed"),
        Err(error) => tracing::error!(what, id, %error, "orphan stays"),
    }
}

fn unknown(ids: Vec<String>, known: &BTreeSet<String>) -> Vec<String> {
    ids.into_iter().filter(|id| !known.contains(id)).collect()
}

/// Only what is named like a pod is ours to remove.
fn names(dir: &Path, known: &BTreeSet<String>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    unknown(names.filter(|name| PodId::parse(name).is_ok()).collect(), known)
}

async fn pod_directory(house: &Arc<House>, id: &str) -> crate::pod::Result<()> {
    let dir = house.paths.pods().join(id);
    for pid in find_by_directory(&dir) {
        let Ok(process) = Process::open(pid) else { continue };
        if let Err(error) = process.kill(KILL_LIMIT).await {
            tracing::warn!(pid, %error, "shim of an orphaned pod does not end");
        }
    }
    let (cgroups, pin) = (house.cgroups.clone(), house.paths.namespaces().join(id).join("net"));
    blocking(move || {
        for cgroup in cgroups_of(&dir) {
            cgroups.end(&cgroup, KILL_LIMIT).map_err(Error::cgroup)?;
        }
        unpin(&pin)?;
        for bundle in bundles_of(&dir) {
            volumes::unmount_all(&bundle)?;
        }
        std::fs::remove_dir_all(&dir).map_err(|e| Error::disk("remove", dir, e))
    })
    .await?
}

/// The bundles below a pod's directory.
fn bundles_of(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("containers"));
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The cgroups that the bundles below a pod's directory name.
fn cgroups_of(dir: &Path) -> Vec<String> {
    bundles_of(dir).iter().filter_map(|bundle| cgroup_of(&bundle.join("config.json"))).collect()
}

fn cgroup_of(config: &Path) -> Option<String> {
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(config).ok()?).ok()?;
    let path = spec.pointer("/linux/cgroupsPath")?.as_str()?;
    // Anything but a container's own cgroup is not ours to end.
    let name = path.rsplit('/').next()?;
    berth_proto::ids::ContainerId::parse(name).ok()?;
    Some(path.to_owned())
}
