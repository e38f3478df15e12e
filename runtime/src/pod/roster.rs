//! Who is who: finds the driver of a pod, reserves names, joins retries.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::ids::{ContainerId, PodId};

use super::spec::{ContainerSpec, PodSpec};
use super::{ContainerSnapshot, Error, ExecOutput, PodSnapshot, Result};

/// Where things lie and what the shims are started from. All paths are absolute.
#[derive(Debug, Clone)]
pub struct Options {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What does not need to.
    pub state: PathBuf,
    /// `containerd-shim-berth-v1`.
    pub shim_binary: PathBuf,
    /// The cgroup of the shims themselves, relative to each hierarchy root ("/berth-shims").
    pub shim_cgroup: String,
    /// The parent of a pod whose request names none ("/berth").
    pub default_cgroup_parent: String,
}

/// All pods of this daemon.
#[derive(Debug)]
pub struct Roster {
    #[expect(dead_code, reason = "the drivers come with the next commit")]
    options: Options,
}

fn unbuilt() -> Error {
    Error::Draining
}

impl Roster {
    /// Reads the records, meets the shims that still run, finishes or undoes what was half made.
    /// Grows the image store and the networks as parameters with the next commit.
    pub async fn open(options: Options) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { options }))
    }

    /// RunPodSandbox. An equal request under the same key joins the work under way, or gets the
    /// pod that came of it. Dropping the future is safe: the work goes on.
    pub async fn run_pod(&self, _spec: PodSpec) -> Result<PodId> {
        Err(unbuilt())
    }

    /// StopPodSandbox. Ok for a pod that is stopped or not there.
    pub async fn stop_pod(&self, _id: &str) -> Result<()> {
        Err(unbuilt())
    }

    /// RemovePodSandbox. Ok for a pod that is not there.
    pub async fn remove_pod(&self, _id: &str) -> Result<()> {
        Err(unbuilt())
    }

    /// PodSandboxStatus; the id may be a unique beginning. Never waits.
    pub fn pod_status(&self, id: &str) -> Result<Arc<PodSnapshot>> {
        Err(Error::NoPod { id: id.to_owned() })
    }

    /// All pods, newest first. Never waits.
    #[must_use]
    pub fn list_pods(&self) -> Vec<Arc<PodSnapshot>> {
        Vec::new()
    }

    /// CreateContainer in the pod whose id begins so.
    pub async fn create_container(&self, _pod: &str, _spec: ContainerSpec) -> Result<ContainerId> {
        Err(unbuilt())
    }

    /// StartContainer.
    pub async fn start_container(&self, _id: &str) -> Result<()> {
        Err(unbuilt())
    }

    /// StopContainer: asks, waits `grace`, kills; returns when the exit is recorded.
    /// Ok for a container that has ended or is not there.
    pub async fn stop_container(&self, _id: &str, _grace: Duration) -> Result<()> {
        Err(unbuilt())
    }

    /// RemoveContainer; kills it first where it runs. Ok for one that is not there.
    pub async fn remove_container(&self, _id: &str) -> Result<()> {
        Err(unbuilt())
    }

    /// ContainerStatus; the id may be a unique beginning. Never waits.
    pub fn container_status(&self, id: &str) -> Result<Arc<ContainerSnapshot>> {
        Err(Error::NoContainer { id: id.to_owned() })
    }

    /// All containers, newest first. Never waits.
    #[must_use]
    pub fn list_containers(&self) -> Vec<Arc<ContainerSnapshot>> {
        Vec::new()
    }

    /// ExecSync. `timeout` None: no limit; past it the tree is killed: [`Error::Deadline`].
    pub async fn exec_sync(
        &self,
        _id: &str,
        _argv: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        Err(unbuilt())
    }

    /// ReopenContainerLog; the container must run.
    pub async fn reopen_log(&self, _id: &str) -> Result<()> {
        Err(unbuilt())
    }

    /// Takes no more work and waits for what is under way; pods stay.
    pub async fn drain(&self) {}
}
