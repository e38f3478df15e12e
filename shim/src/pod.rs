//! The pod: what its containers share, and how it ends.
//!
//! ```text
//! Absent --CreatePod--> Live --StopPod--> Stopping --all ended, all removed--> Stopped
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_container::{self as engine, Cgroup, ErrorKind, IdMaps, PodNamespaces, PodOptions};
use rustix::process::{WaitId, WaitIdOptions};

use crate::container::retry_at;
use crate::poll::{Interest, Token};
use crate::service::Reply;
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

/// The pod's /dev/shm where the request names no size.
const DEFAULT_SHM: u64 = 64 << 20;

/// What CreatePod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodOrder {
    pub(crate) pod_id: String,
    /// `None`: the host's network.
    pub(crate) netns_path: Option<PathBuf>,
    pub(crate) hostname: String,
    pub(crate) host_ipc: bool,
    pub(crate) host_uts: bool,
    pub(crate) shared_pid: bool,
    pub(crate) sysctls: BTreeMap<String, String>,
    /// 0: 64 MiB.
    pub(crate) shm_size: u64,
    pub(crate) cgroup_parent: PathBuf,
    /// A user namespace of its own, that maps like this.
    pub(crate) user: Option<IdMaps>,
}

/// The pod, or its absence.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    live: Option<Live>,
    /// StopPod was called: no container is created any more.
    stopping: bool,
    /// Who waits for the end.
    stops: Vec<ReplyTo>,
    stop_number: u64,
    tries: u32,
}

#[derive(Debug)]
struct Live {
    order: PodOrder,
    namespaces: PodNamespaces,
    init: Option<Init>,
    pinned: bool,
    /// The directory of the pinned network namespace, if this shim made it.
    made_directory: Option<PathBuf>,
}

#[derive(Debug)]
struct Init {
    pid: u32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    number: u64,
    ended: bool,
}

impl Pod {
    /// The pod's id, empty before CreatePod.
    pub(crate) fn id(&self) -> &str {
        self.live.as_ref().map_or("", |live| &live.order.pod_id)
    }

    /// What a container joins.
    pub(crate) fn namespaces(&self) -> Result<&PodNamespaces, Status> {
        if self.stopping {
            return Err(Status::precondition("create: the pod is stopped"));
        }
        self.live
            .as_ref()
            .map(|live| &live.namespaces)
            .ok_or_else(|| Status::precondition("create: the pod does not exist: CreatePod first"))
    }

    /// Nothing of it is left, or it never was.
    pub(crate) fn is_gone(&self) -> bool {
        self.live.is_none()
    }

    /// The process id of its unreaped init.
    pub(crate) fn init_pid(&self) -> Option<u32> {
        let init = self.live.as_ref().and_then(|live| live.init.as_ref());
        init.filter(|init| !init.ended).map(|init| init.pid)
    }

    fn answer(&self) -> Reply {
        let init = self.live.as_ref().and_then(|live| live.init.as_ref());
        Reply::PodCreated {
            shim_pid: std::process::id(),
            init_pid: init.map_or(0, |init| init.pid),
        }
    }
}

impl Shim {
    /// Makes the pod's namespaces, or undoes what it made of them.
    pub(crate) fn create_pod(&mut self, order: PodOrder) -> Result<Reply, Status> {
        if let Some(live) = &self.pod.live {
            return if live.order == order && !self.pod.stopping {
                Ok(self.pod.answer())
            } else {
                Err(Status::exists(format!("pod {} exists and is another", live.order.pod_id)))
            };
        }
        if self.pod.stopping {
            return Err(Status::precondition("the pod was stopped"));
        }
        let namespaces = PodNamespaces::create(&options(&order))
            .map_err(|error| status_of("create the pod's namespaces", &error))?;
        let mut live = Live { order, namespaces, init: None, pinned: false, made_directory: None };
        if let Err(status) = self.set_up(&mut live) {
            self.undo(&mut live);
            return Err(status);
        }
        self.pod.live = Some(live);
        Ok(self.pod.answer())
    }

    /// The steps that leave something outside of this process.
    fn set_up(&mut self, live: &mut Live) -> Result<(), Status> {
        // First, so that whoever cleans up after a crash knows what may be there.
        crate::delete::remember_pod(&self.paths, &live.order)
            .map_err(|error| Status::internal(format!("write the pod's record: {error}")))?;
        if let Some(path) = live.order.netns_path.clone() {
            live.made_directory = make_directory_of(&path)?;
            live.namespaces
                .pin_net(&path)
                .map_err(|error| status_of("pin the network namespace", &error))?;
            live.pinned = true;
        }
        if live.order.shared_pid {
            let path = live.order.cgroup_parent.join(&live.order.pod_id);
            let cgroup = Cgroup::create(&self.layout, &path, None, &mut Vec::new())
                .map_err(|error| status_of("make the init's cgroup", &error))?;
            let started = live.namespaces.start_init();
            let (pid, pidfd) = started.map_err(|error| {
                log_error("remove the init's cgroup", cgroup.remove(Duration::ZERO));
                status_of("start the pod's init", &error)
            })?;
            let number = self.poll.number();
            let init = live.init.insert(Init { pid, pidfd, cgroup, number, ended: false });
            init.cgroup
                .add(pid)
                .map_err(|error| status_of("move the pod's init to its cgroup", &error))?;
            self.poll
                .add(&init.pidfd, Token::Process(number), Interest::IN)
                .map_err(|error| Status::internal(format!("poll the pod's init: {error}")))?;
        }
        Ok(())
    }

    /// Undoes a pod that was made in part. Blocks for the end of the init, which waits for nobody.
    fn undo(&self, live: &mut Live) {
        if let Some(init) = live.init.take() {
            self.poll.remove(&init.pidfd);
            log_error("kill the pod's init", signal(&init.pidfd));
            let options = WaitIdOptions::EXITED;
            log_error(
                "wait for the pod's init",
                rustix::process::waitid(WaitId::PidFd(init.pidfd.as_fd()), options),
            );
            log_error("remove the init's cgroup", init.cgroup.remove(Duration::from_secs(1)));
        }
        release_net(live);
        crate::delete::forget_pod(&self.paths);
    }

    /// Ends the pod. `Some`: nothing is left already.
    pub(crate) fn stop_pod(&mut self, to: ReplyTo) -> Option<Reply> {
        self.pod.stopping = true;
        if self.pod.live.is_none() {
            return Some(Reply::PodStopped);
        }
        self.pod.stops.push(to);
        if self.pod.stops.len() == 1 {
            self.pod.stop_number = self.poll.number();
            self.pod.tries = 0;
            for container in self.containers.values().filter(|c| c.exit.is_none()) {
                // A child that is being created ends as one that failed.
                log_error("kill a container", container.engine.cgroup().kill());
            }
            self.go_on_stopping();
        }
        None
    }

    /// Goes on with the pod's end as far as it is possible now.
    pub(crate) fn go_on_stopping(&mut self) {
        if self.pod.stops.is_empty() || !self.execs.is_empty() {
            return;
        }
        if self.containers.values().any(|container| !container.is_settled()) {
            return;
        }
        match self.remove_pod() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.pod.tries = self.pod.tries.saturating_add(1);
                let token = Token::Deadline(self.pod.stop_number);
                self.poll.clear_timers(token);
                self.poll.set_timer(retry_at(self.pod.tries), token);
                return;
            }
            Err(error) => {
                let status = status_of("stop the pod", &error);
                for to in std::mem::take(&mut self.pod.stops) {
                    self.reply(to, Err(status.clone()));
                }
                return;
            }
        }
        self.pod.live = None;
        for to in std::mem::take(&mut self.pod.stops) {
            self.reply(to, Ok(Reply::PodStopped));
        }
        berth_sys::resident::trim_memory();
    }

    /// Removes what the pod holds, in an order that can be repeated. `false`: the init's end must
    /// be waited for.
    fn remove_pod(&mut self) -> engine::Result<bool> {
        for container in self.containers.values().filter(|c| c.is_settled()) {
            container.engine.delete(Duration::ZERO)?;
        }
        let Some(live) = &mut self.pod.live else { return Ok(true) };
        if let Some(init) = &mut live.init {
            if !init.ended {
                log_error("kill the pod's init", signal(&init.pidfd));
                return Ok(false);
            }
            init.cgroup.remove(Duration::ZERO)?;
            live.init = None;
        }
        release_net(live);
        crate::delete::forget_pod(&self.paths);
        Ok(true)
    }

    /// The pod's init ended: on our word, or killed from outside, and the kernel has killed every
    /// process of its namespace then.
    pub(crate) fn init_ended(&mut self, number: u64) {
        let stopping = self.pod.stopping;
        let Some(live) = &mut self.pod.live else { return };
        let Some(init) = live.init.as_mut().filter(|init| init.number == number) else { return };
        self.poll.remove(&init.pidfd);
        crate::orphans::reap(init.pid);
        init.ended = true;
        if stopping {
            self.go_on_stopping();
        } else {
            crate::log::say(format_args!("the pod's init was killed; its containers end with it"));
        }
    }
}

fn options(order: &PodOrder) -> PodOptions {
    let shm_size = if order.shm_size == 0 { DEFAULT_SHM } else { order.shm_size };
    PodOptions {
        net: order.netns_path.is_some(),
        ipc: !order.host_ipc,
        uts: !order.host_uts,
        hostname: (!order.host_uts && !order.hostname.is_empty()).then(|| order.hostname.clone()),
        sysctls: order.sysctls.clone(),
        shm_size: (!order.host_ipc).then_some(shm_size),
        user: order.user.clone(),
    }
}

/// Makes the directory of `path` (0700) and gives it if it was not there.
fn make_directory_of(path: &Path) -> Result<Option<PathBuf>, Status> {
    let Some(directory) = path.parent() else { return Ok(None) };
    if directory.is_dir() {
        return Ok(None);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map(|()| Some(directory.to_owned()))
        .map_err(|error| Status::internal(format!("make {}: {error}", directory.display())))
}

/// Unpins the network namespace. What cannot be undone is said and left for the daemon.
fn release_net(live: &mut Live) {
    if let Some(path) = live.order.netns_path.as_ref().filter(|_| live.pinned) {
        log_error("unpin the network namespace", engine::pod::unpin(path));
    }
    if let Some(directory) = live.made_directory.take() {
        log_error("remove the namespace's directory", fs::remove_dir(directory));
    }
}

fn signal(pidfd: &OwnedFd) -> rustix::io::Result<()> {
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL)
}

fn log_error<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) {
    if let Err(error) = result {
        crate::log::say(format_args!("{what}: {error}"));
    }
}
