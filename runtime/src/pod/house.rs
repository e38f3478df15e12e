//! What all pods share, and what all work on one pod shares.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_proto::ids::{ContainerId, PodId};
use berth_proto::paths::{PodPaths, StatePaths};

use super::parents::Parents;
use super::publish::Published;
use super::spec::{PodSpec, Scope};
use super::work::Work;
use super::{Error, Options, Result};
use crate::ports::{Images, Networks};
use crate::shim::{Hierarchies, Launcher, Process, Shim};
use crate::spec::Host;
use crate::store::{ContainerRecord, PodRecord, Store};

/// What all pods share.
pub(crate) struct House {
    pub options: Options,
    pub paths: StatePaths,
    pub store: Store,
    pub images: Arc<dyn Images>,
    pub networks: Arc<dyn Networks>,
    pub launcher: Launcher,
    pub cgroups: Hierarchies,
    pub parents: Parents,
    pub host: Host,
    pub boot: String,
    pub published: Published,
    pub work: Work,
}

/// A shim that answers, and its process.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub shim: Shim,
    pub process: Arc<Process>,
}

/// What all work on one pod shares.
pub(crate) struct PodEnv {
    pub house: Arc<House>,
    pub id: PodId,
    pub spec: Arc<PodSpec>,
    pub paths: PodPaths,
    /// Relative to the hierarchy roots.
    pub cgroup_parent: String,
    link: Mutex<Option<Link>>,
    init: Mutex<Option<(u32, u64)>>,
}

impl PodEnv {
    pub(crate) fn new(house: Arc<House>, record: &PodRecord, spec: Arc<PodSpec>) -> Self {
        Self {
            paths: house.paths.pod(&record.id),
            house,
            id: record.id.clone(),
            spec,
            cgroup_parent: record.cgroup_parent.clone(),
            link: Mutex::new(None),
            init: Mutex::new(record.init),
        }
    }

    /// The connection to the shim, while there is one.
    pub(crate) fn link(&self) -> Option<Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_link(&self, link: Option<Link>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// The first process of the shared PID namespace: host pid and start time.
    pub(crate) fn init(&self) -> Option<(u32, u64)> {
        *self.init.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_init(&self, init: Option<(u32, u64)>) {
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = init;
    }

    /// The shim, or the reason why nothing can be asked of it.
    pub(crate) fn shim(&self) -> Result<Shim> {
        self.link().map(|link| link.shim).ok_or_else(|| Error::State {
            what: format!("pod sandbox {}", self.id),
            state: "without its shim",
            why: "its containers cannot be reached".to_owned(),
        })
    }

    /// Where the network namespace is pinned; None with the host's.
    pub(crate) fn netns(&self) -> Option<PathBuf> {
        (self.spec.namespaces.network != Scope::Node).then(|| self.house.paths.netns(&self.id))
    }

    /// A container's own cgroup, relative to the hierarchy roots.
    pub(crate) fn cgroup(&self, container: &str) -> String {
        format!("{}/{container}", self.cgroup_parent.trim_end_matches('/'))
    }

    /// Writes the pod's record.
    pub(crate) async fn save_pod(&self, record: &PodRecord) -> Result<()> {
        let (store, record) = (self.house.store.clone(), record.clone());
        blocking(move || store.save_pod(&record)).await?.map_err(Error::store)
    }

    /// Writes a container's record.
    pub(crate) async fn save_container(&self, record: &ContainerRecord) -> Result<()> {
        let (store, record) = (self.house.store.clone(), record.clone());
        blocking(move || store.save_container(&record)).await?.map_err(Error::store)
    }

    /// Removes a container's record.
    pub(crate) async fn forget_container(&self, id: &ContainerId) -> Result<()> {
        let (store, pod, id) = (self.house.store.clone(), self.id.clone(), id.clone());
        blocking(move || store.remove_container(&pod, &id)).await?.map_err(Error::store)
    }

    /// Removes the pod's record with those of its containers.
    pub(crate) async fn forget_pod(&self) -> Result<()> {
        let (store, pod) = (self.house.store.clone(), self.id.clone());
        blocking(move || store.remove_pod(&pod)).await?.map_err(Error::store)
    }
}

/// How long one piece of file work may take before its caller goes on without it.
const DISK_LIMIT: Duration = Duration::from_secs(60);

/// Runs file work off the async threads. Dropping the future leaves the work to end by itself.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(DISK_LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(broken)) => Err(Error::disk("run file work for", "", io::Error::other(broken))),
        Err(_) => Err(Error::Deadline {
            step: "file work (is a disk or a network mount hanging?)".to_owned(),
            seconds: DISK_LIMIT.as_secs(),
        }),
    }
}
