//! How each thing that a pod or container makes is taken away again.
//!
//! Each is safe to run twice, and for a thing that was never made. A cleanup that fails is a
//! leftover: it goes into the pod's record and is run again until it succeeds.

use std::io;
use std::path::Path;
use std::time::Duration;

use berth_proto::ids::ContainerId;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::house::{Link, PodEnv, blocking};
use super::{Error, Result, volumes};
use crate::ports::Attach;
use crate::shim::{Process, ShimError, find_by_directory, log_tail, same_process};

/// Longer than any single call within; after it the cleanup is a leftover.
const LIMIT: Duration = Duration::from_secs(100);
/// How long processes are given to leave after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// One thing to be taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Cleanup {
    /// The pod's attachment: CNI DEL.
    Network,
    /// The pod's containers, namespaces, pin and cgroups.
    Namespaces,
    /// The shim's process.
    Shim,
    /// The pod's directory below `state`.
    StateDir,
    /// A container's processes and cgroup.
    Task {
        /// Which.
        container: ContainerId,
    },
    /// A container's writable layer and its hold on the image.
    Snapshot {
        /// Which.
        container: ContainerId,
    },
    /// A container's bundle and exit record.
    Bundle {
        /// Which.
        container: ContainerId,
    },
}

impl Cleanup {
    /// All that a container has, in the order to take it away.
    pub(crate) fn container(container: &ContainerId) -> [Self; 3] {
        [
            Self::Task { container: container.clone() },
            Self::Snapshot { container: container.clone() },
            Self::Bundle { container: container.clone() },
        ]
    }

    /// Takes the thing away.
    pub(crate) async fn run(&self, env: &PodEnv) -> Result<()> {
        match tokio::time::timeout(LIMIT, self.run_unlimited(env)).await {
            Ok(done) => done,
            Err(_) => {
                Err(Error::Deadline { step: format!("undo {self}"), seconds: LIMIT.as_secs() })
            }
        }
    }

    async fn run_unlimited(&self, env: &PodEnv) -> Result<()> {
        match self {
            Self::Network => network(env).await,
            Self::Namespaces => namespaces(env).await,
            Self::Shim => shim(env).await,
            Self::StateDir => state_dir(env).await,
            Self::Task { container } => task(env, container).await,
            Self::Snapshot { container } => {
                let released = env.house.images.release(container.as_str()).await;
                released.map_err(|e| Error::port("release the writable layer", e))
            }
            Self::Bundle { container } => bundle(env, container).await,
        }
    }
}

impl std::fmt::Display for Cleanup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network => f.write_str("network"),
            Self::Namespaces => f.write_str("namespaces and cgroups"),
            Self::Shim => f.write_str("shim"),
            Self::StateDir => f.write_str("state directory"),
            Self::Task { container } => write!(f, "processes of container {container}"),
            Self::Snapshot { container } => write!(f, "writable layer of container {container}"),
            Self::Bundle { container } => write!(f, "bundle of container {container}"),
        }
    }
}

/// Runs all, in order, whatever fails; answers what is left.
pub(crate) async fn run_all(
    env: &PodEnv,
    cleanups: impl IntoIterator<Item = Cleanup>,
) -> Vec<Cleanup> {
    let mut left = Vec::new();
    for cleanup in cleanups {
        if let Err(error) = cleanup.run(env).await {
            tracing::warn!(pod = %env.id, %cleanup, %error, "left over, will be retried");
            left.push(cleanup);
        }
    }
    left
}

async fn network(env: &PodEnv) -> Result<()> {
    let Some(netns) = env.netns() else { return Ok(()) };
    let attach = Attach { id: &env.id, netns, spec: &env.spec };
    env.house.networks.del(attach).await.map_err(|e| Error::port("detach the network", e))
}

async fn namespaces(env: &PodEnv) -> Result<()> {
    if let Some(link) = env.link()
        && let Err(error) = link.shim.stop_pod().await
    {
        tracing::warn!(pod = %env.id, %error, "shim does not stop its pod: killed");
        kill(&link.process).await?;
    }
    let (cgroups, init) = (env.house.cgroups.clone(), env.init());
    let (pod_dir, parent) = (env.paths.dir().to_owned(), env.cgroup_parent.clone());
    blocking(move || {
        kill_init(init);
        // Without a shim these are what is left of its containers; with one they are gone.
        let ids = containers_below(&pod_dir);
        let mut outcome = Ok(());
        for id in ids {
            // One that is stuck must not keep the others alive.
            outcome = outcome.and(cgroups.end(&format!("{parent}/{id}"), KILL_LIMIT));
        }
        outcome.map_err(Error::cgroup)
    })
    .await??;
    let (pin, house, id) = (env.house.paths.netns(&env.id), env.house.clone(), env.id.clone());
    blocking(move || {
        unpin(&pin)?;
        house.parents.leave(&id);
        Ok(())
    })
    .await?
}

fn kill_init(init: Option<(u32, u64)>) {
    let Some(init) = init.filter(|init| same_process(*init)) else { return };
    if let Some(pid) = i32::try_from(init.0).ok().and_then(rustix::process::Pid::from_raw) {
        // It has just been seen to be the recorded one; gone by now is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn containers_below(pod_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(pod_dir.join("containers")) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|name| ContainerId::parse(name).is_ok()).collect()
}

/// Takes away the bind mount that keeps a network namespace, and the directory made for it.
pub(crate) fn unpin(pin: &Path) -> Result<()> {
    use rustix::io::Errno;
    loop {
        match unmount(pin, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // More than one may lie on top of another.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => break,
            Err(error) => return Err(Error::disk("unmount", pin, error.into())),
        }
    }
    let Some(dir) = pin.parent() else { return Ok(()) };
    remove_tree(dir)
}

fn remove_tree(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::disk("remove", dir, error))
        }
        _ => Ok(()),
    }
}

async fn shim(env: &PodEnv) -> Result<()> {
    if let Some(Link { shim, process }) = env.link() {
        if let Err(error) = shim.shutdown(env.id.as_str()).await {
            tracing::warn!(pod = %env.id, %error, "shim does not shut down: killed");
            kill(&process).await?;
        } else if tokio::time::timeout(KILL_LIMIT, process.ended()).await.is_err() {
            tracing::warn!(pod = %env.id, "shim does not end: killed");
            kill(&process).await?;
        }
        env.set_link(None);
        return Ok(());
    }
    // Never reached by us, or left by a daemon that died while starting it.
    for pid in find_by_directory(env.paths.dir()) {
        match Process::open(pid) {
            Ok(process) => kill(&process).await?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::disk("open process", pid.to_string(), error)),
        }
    }
    Ok(())
}

async fn kill(process: &Process) -> Result<()> {
    let killed = process.kill(KILL_LIMIT).await;
    killed.map_err(|e| Error::disk("kill shim process", process.pid().to_string(), e))
}

async fn state_dir(env: &PodEnv) -> Result<()> {
    let (dir, log) = (env.paths.dir().to_owned(), env.paths.shim_log());
    let (house, id) = (env.house.clone(), env.id.clone());
    let words = blocking(move || {
        let words = log_tail(&log);
        remove_tree(&dir)?;
        // A create that was cut short may have been the last to need the parents.
        house.parents.leave(&id);
        Ok::<_, Error>(words)
    });
    let words = words.await??;
    if !words.is_empty() {
        tracing::info!(pod = %env.id, "the shim said: {words}");
    }
    Ok(())
}

async fn task(env: &PodEnv, container: &ContainerId) -> Result<()> {
    let id = container.as_str();
    if let Some(link) = env.link() {
        match end_task(&link, id).await {
            // It died: what it left is ended like any dead shim's.
            Err(ShimError::Gone { .. } | ShimError::Connect(_)) => {}
            done => return done.map_err(|e| Error::shim("end the container", e)),
        }
    }
    let (cgroups, cgroup) = (env.house.cgroups.clone(), env.cgroup(id));
    blocking(move || cgroups.end(&cgroup, KILL_LIMIT)).await?.map_err(Error::cgroup)
}

async fn end_task(link: &Link, id: &str) -> std::result::Result<(), ShimError> {
    const SIGKILL: u32 = 9;
    match link.shim.kill(id, SIGKILL, true).await {
        // Stopped already, or never there: the delete says which.
        Ok(()) | Err(ShimError::Answer { .. }) => {}
        Err(error) => return Err(error),
    }
    let waited = tokio::time::timeout(KILL_LIMIT, link.shim.wait(id)).await;
    if let Ok(Err(error @ ShimError::Gone { .. })) = waited {
        return Err(error);
    }
    link.shim.delete(id).await
}

async fn bundle(env: &PodEnv, container: &ContainerId) -> Result<()> {
    let (dir, exit) = (env.paths.bundle(container), env.paths.exit(container));
    blocking(move || {
        volumes::unmount_all(&dir)?;
        remove_tree(&dir)?;
        match std::fs::remove_file(&exit) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::disk("remove", exit, error))
            }
            _ => Ok(()),
        }
    })
    .await?
}
