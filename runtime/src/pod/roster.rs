//! Who is who: finds the driver of a pod, reserves names, joins retries.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_proto::ids::{ContainerId, PodId};
use berth_proto::paths::StatePaths;
use tokio::sync::{mpsc, oneshot, watch};

use super::container::Reply;
use super::driver::{Driver, MAILBOX, Message};
use super::house::{House, PodEnv};
use super::parents::Parents;
use super::policy::{Meets, check_pod, pod_meets};
use super::publish::Published;
use super::spec::{ContainerSpec, PodSpec};
use super::state::Phase;
use super::work::Work;
use super::{ContainerSnapshot, Error, ExecOutput, PodSnapshot, Result, ids};
use crate::ports::{Images, Networks};
use crate::shim::{self, Ends, Hierarchies, Launcher, Leash, Open};
use crate::spec::Host;
use crate::store::{ContainerRecord, PodPhase, PodRecord, Store};
use crate::stream::Wanted;
use crate::{clock, recover};

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

/// How a pod's driver is reached.
#[derive(Debug, Clone)]
struct Handle {
    spec: Arc<PodSpec>,
    inbox: mpsc::Sender<Message>,
    phase: watch::Receiver<Phase>,
}

/// All pods of this daemon.
pub struct Roster {
    house: Arc<House>,
    handles: Arc<Mutex<HashMap<PodId, Handle>>>,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roster").field("options", &self.house.options).finish_non_exhaustive()
    }
}

impl Roster {
    /// Reads the records, meets the shims that still run, and begins to finish or undo what was
    /// half made. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When the directories, the kernel's cgroups or the shims' own cgroup cannot be had. Records
    /// that cannot be read are moved aside and never an error.
    pub async fn open(
        options: Options,
        images: Arc<dyn Images>,
        networks: Arc<dyn Networks>,
    ) -> Result<Arc<Self>> {
        let layers = options.root.join("image");
        let no_user_namespaces = shim::lacks_user_namespaces(&options.shim_binary, &layers).await;
        let house = Arc::new(build(options, images, networks, no_user_namespaces)?);
        let roster = Arc::new(Self { house, handles: Arc::default() });
        recover::recover(&roster).await?;
        Ok(roster)
    }

    pub(crate) fn house(&self) -> &Arc<House> {
        &self.house
    }

    /// Whether pods on this machine can have user namespaces.
    #[must_use]
    pub fn user_namespaces(&self) -> bool {
        self.house.host.no_user_namespaces.is_none()
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<PodId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// RunPodSandbox. An equal request under the same key joins the work under way, or gets the
    /// pod that came of it. Dropping the future is safe: the work goes on.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<PodId> {
        check_pod(&spec, &self.house.host)?;
        loop {
            let (id, handle, meets) = self.reserve(&spec)?;
            match meets {
                Meets::Same => return Ok(id),
                Meets::Join => return ask(&handle, id.as_str(), Message::Run).await,
                Meets::Supersede => {
                    tracing::info!(pod = %id, "ended by another request under the same key");
                    ask(&handle, id.as_str(), Message::Remove).await?;
                }
                Meets::Await => {}
                Meets::Refuse => {
                    let key = &spec.key;
                    let what = format!(
                        "pod sandbox {}/{} (uid {}, attempt {})",
                        key.namespace, key.name, key.uid, key.attempt
                    );
                    return Err(Error::Exists { what, id: id.to_string() });
                }
            }
            // Whatever it was doing, it has an end.
            let mut phase = handle.phase.clone();
            let _ = phase.wait_for(|phase| *phase == Phase::Gone).await;
        }
    }

    /// Finds who has the key, or gives it to a new pod.
    fn reserve(&self, spec: &PodSpec) -> Result<(PodId, Handle, Meets)> {
        let mut handles = self.handles();
        let holder = handles.iter().find(|(_, handle)| {
            handle.spec.key == spec.key && *handle.phase.borrow() != Phase::Gone
        });
        if let Some((id, handle)) = holder {
            let meets = pod_meets(*handle.phase.borrow(), *handle.spec == *spec);
            return Ok((id.clone(), handle.clone(), meets));
        }
        let id = PodId::from_random(ids::random()?);
        let record = self.intent(id.clone(), spec.clone());
        let (handle, driver) = self.hire(record, Vec::new(), Phase::Making);
        handles.insert(id.clone(), handle.clone());
        drop(handles);
        self.let_go(id.clone(), driver);
        Ok((id, handle, Meets::Join))
    }

    fn intent(&self, id: PodId, spec: PodSpec) -> PodRecord {
        let parent = spec.cgroup_parent.clone();
        let default = || self.house.options.default_cgroup_parent.clone();
        PodRecord {
            id,
            cgroup_parent: parent.unwrap_or_else(default),
            spec,
            phase: PodPhase::Making,
            created_at: clock::now(),
            boot: self.house.boot.clone(),
            ips: Vec::new(),
            init: None,
            leftovers: Vec::new(),
        }
    }

    /// A driver for a pod, and the way to reach it. It does not run yet.
    pub(crate) fn hire_for(
        &self,
        record: PodRecord,
        containers: Vec<ContainerRecord>,
        phase: Phase,
    ) -> Driver {
        let id = record.id.clone();
        let (handle, driver) = self.hire(record, containers, phase);
        self.handles().insert(id, handle);
        driver
    }

    fn hire(
        &self,
        record: PodRecord,
        containers: Vec<ContainerRecord>,
        phase: Phase,
    ) -> (Handle, Driver) {
        let (inbox, messages) = mpsc::channel(MAILBOX);
        let sender = watch::Sender::new(phase);
        let spec = Arc::new(record.spec.clone());
        let handle = Handle { spec: spec.clone(), inbox, phase: sender.subscribe() };
        let env = Arc::new(PodEnv::new(self.house.clone(), &record, spec));
        (handle, Driver::new(env, record, containers, sender, messages))
    }

    /// Lets the driver serve its pod, until it is gone.
    pub(crate) fn let_go(&self, id: PodId, driver: Driver) {
        let handles = self.handles.clone();
        tokio::spawn(async move {
            driver.run().await;
            handles.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }

    fn pod_handle(&self, id: &str) -> Result<Handle> {
        let gone = || Error::NoPod { id: id.to_owned() };
        let id = match PodId::parse(id) {
            Ok(full) => full,
            Err(_) => self.house.published.pod(id)?.id.clone(),
        };
        self.handles().get(&id).cloned().ok_or_else(gone)
    }

    fn container_handle(&self, id: &str) -> Result<(ContainerId, Handle)> {
        let container = self.house.published.container(id)?;
        let handle = self.handles().get(&container.pod).cloned();
        let handle = handle.ok_or_else(|| Error::NoContainer { id: id.to_owned() })?;
        Ok((container.id.clone(), handle))
    }

    /// StopPodSandbox. Ok for a pod that is stopped or not there.
    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        match self.pod_handle(id) {
            Ok(handle) => absent_is_fine(ask(&handle, id, Message::Stop).await),
            Err(_) => Ok(()),
        }
    }

    /// RemovePodSandbox; stops it first where it runs. Ok for a pod that is not there.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        match self.pod_handle(id) {
            Ok(handle) => absent_is_fine(ask(&handle, id, Message::Remove).await),
            Err(_) => Ok(()),
        }
    }

    /// PodSandboxStatus; the id may be a unique beginning. Never waits.
    pub fn pod_status(&self, id: &str) -> Result<Arc<PodSnapshot>> {
        self.house.published.pod(id)
    }

    /// All pods, newest first. Never waits.
    #[must_use]
    pub fn list_pods(&self) -> Vec<Arc<PodSnapshot>> {
        self.house.published.pods()
    }

    /// CreateContainer in the pod whose id begins so.
    pub async fn create_container(&self, pod: &str, spec: ContainerSpec) -> Result<ContainerId> {
        let handle = self.pod_handle(pod)?;
        ask(&handle, pod, |to| Message::Create(Box::new(spec), to)).await
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let (container, handle) = self.container_handle(id)?;
        ask(&handle, id, |to| Message::Start(container, to)).await
    }

    /// StopContainer: asks, waits `grace`, kills; returns when the exit is recorded.
    /// Ok for a container that has ended or is not there.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        match self.container_handle(id) {
            Ok((container, handle)) => {
                absent_is_fine(ask(&handle, id, |to| Message::Halt(container, grace, to)).await)
            }
            Err(_) => Ok(()),
        }
    }

    /// RemoveContainer; kills it first where it runs. Ok for one that is not there.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        match self.container_handle(id) {
            Ok((container, handle)) => {
                absent_is_fine(ask(&handle, id, |to| Message::Discard(container, to)).await)
            }
            Err(_) => Ok(()),
        }
    }

    /// ContainerStatus; the id may be a unique beginning. Never waits.
    pub fn container_status(&self, id: &str) -> Result<Arc<ContainerSnapshot>> {
        self.house.published.container(id)
    }

    /// All containers, newest first. Never waits.
    #[must_use]
    pub fn list_containers(&self) -> Vec<Arc<ContainerSnapshot>> {
        self.house.published.containers()
    }

    /// ExecSync. `timeout` None: no limit; past it the tree is killed: [`Error::Deadline`].
    pub async fn exec_sync(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput> {
        let (container, handle) = self.container_handle(id)?;
        ask(&handle, id, |to| Message::Exec(container, argv, timeout, to)).await
    }

    /// The streams of a new command in a running container. Dropping the leash ends the command.
    pub async fn exec(&self, id: &str, argv: Vec<String>, wanted: Wanted) -> Result<(Leash, Ends)> {
        let (container, handle) = self.container_handle(id)?;
        ask(&handle, id, |to| Message::Open(container, Open::Exec { argv, wanted }, to)).await
    }

    /// The streams of a running container's first process.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<(Leash, Ends)> {
        let (container, handle) = self.container_handle(id)?;
        ask(&handle, id, |to| Message::Open(container, Open::Attach { wanted }, to)).await
    }

    /// ReopenContainerLog; the container must run.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let (container, handle) = self.container_handle(id)?;
        ask(&handle, id, |to| Message::ReopenLog(container, to)).await
    }

    /// Lets nothing begin any more and waits for what is under way. Pods and their containers
    /// stay. May be dropped: the next start finishes or undoes what was still under way.
    pub async fn drain(&self) {
        self.house.work.drain().await;
    }
}

fn build(
    options: Options,
    images: Arc<dyn Images>,
    networks: Arc<dyn Networks>,
    no_user_namespaces: Option<String>,
) -> Result<House> {
    let cgroups = Hierarchies::probe().map_err(|e| Error::disk("read", "/proc/self/mounts", e))?;
    let paths = StatePaths::new(&options.state);
    for dir in [paths.pods(), paths.namespaces()] {
        std::fs::create_dir_all(&dir).map_err(|e| Error::disk("make directory", dir, e))?;
    }
    let boot = clock::boot_id().map_err(|e| Error::disk("read the id of", "this boot", e))?;
    let launcher =
        Launcher::start(options.shim_binary.clone(), options.shim_cgroup.clone(), cgroups.clone())
            .map_err(Error::cgroup)?;
    Ok(House {
        store: Store::open(&options.root).map_err(Error::store)?,
        parents: Parents::open(&options.state, cgroups.clone()),
        host: Host::probe(&cgroups, no_user_namespaces),
        published: Published::default(),
        work: Work::new(),
        options,
        paths,
        images,
        networks,
        launcher,
        cgroups,
        boot,
    })
}

/// Asks a driver and waits for its answer. If the future is dropped the work goes on.
async fn ask<T>(handle: &Handle, id: &str, message: impl FnOnce(Reply<T>) -> Message) -> Result<T> {
    let gone = || Error::NoPod { id: id.to_owned() };
    let (reply, answer) = oneshot::channel();
    handle.inbox.try_send(message(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Busy { id: id.to_owned() },
        mpsc::error::TrySendError::Closed(_) => gone(),
    })?;
    answer.await.map_err(|_| gone())?
}

/// What was to be stopped or removed went away meanwhile.
fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::NoPod { .. } | Error::NoContainer { .. }) => Ok(()),
        other => other,
    }
}
