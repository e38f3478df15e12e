//! RunPodSandbox, as a list of steps.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::cleanup::Cleanup;
use super::house::{Link, PodEnv, blocking};
use super::spec::Scope;
use super::steps::{Cancelled, Steps};
use super::{Error, Result, files};
use crate::ports::Attach;
use crate::shim::{Namespaces, PodRequest, Shim, start_time};
use crate::store::{PodPhase, PodRecord};

/// What became of it.
pub(crate) struct Ran {
    /// Ready, or undone: then what is left over stands in the record.
    pub record: PodRecord,
    /// Why it was undone.
    pub failure: Option<Error>,
}

/// Makes the pod whose record is given; undoes everything where a step fails.
pub(crate) async fn run(env: &PodEnv, mut record: PodRecord, cancelled: Cancelled) -> Ran {
    let mut steps = Steps::new(env, cancelled);
    let Err(error) = attempt(&mut steps, env, &mut record).await else {
        return Ran { record, failure: None };
    };
    let left = steps.undo().await;
    Ran { record: undone(env, record, left).await, failure: Some(error) }
}

async fn attempt(steps: &mut Steps<'_>, env: &PodEnv, record: &mut PodRecord) -> Result<()> {
    steps.step("run.record", None, env.save_pod(record)).await?;
    steps.step("run.dirs", Some(Cleanup::StateDir), directories(env)).await?;
    steps.step("run.shim", Some(Cleanup::Shim), shim(env)).await?;
    let made = namespaces(env, record);
    record.init = steps.step("run.namespaces", Some(Cleanup::Namespaces), made).await?;
    env.set_init(record.init);
    if let Some(netns) = env.netns() {
        let attached = network(env, &netns);
        record.ips = steps.step("run.network", Some(Cleanup::Network), attached).await?;
    }
    steps.step("run.files", None, files::write(env, &record.ips)).await?;
    record.phase = PodPhase::Ready;
    steps.step("run.commit", None, env.save_pod(record)).await
}

/// The record of a pod that is gone: away, unless something is left over.
pub(crate) async fn undone(env: &PodEnv, mut record: PodRecord, left: Vec<Cleanup>) -> PodRecord {
    record.phase = PodPhase::Removed;
    record.leftovers = left;
    let done = match record.leftovers.is_empty() {
        true => env.forget_pod().await,
        false => env.save_pod(&record).await,
    };
    if let Err(error) = done {
        // The next start finds what it says and undoes it once more.
        tracing::warn!(pod = %env.id, %error, "record of a removed pod stays as it is");
    }
    record
}

async fn directories(env: &PodEnv) -> Result<()> {
    let dirs = [env.paths.dir().to_owned(), env.paths.dir().join("containers"), env.paths.exits()];
    blocking(move || dirs.iter().try_for_each(|dir| make_private(dir))).await?
}

fn make_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::disk("make directory", dir, error))
        }
        _ => Ok(()),
    }
}

async fn shim(env: &PodEnv) -> Result<()> {
    let launched = env.house.launcher.launch(&env.id, &env.paths).await;
    let process = launched.map_err(|e| Error::shim("start the shim", e))?;
    let shim = Shim::connect(&env.paths).await.map_err(|e| Error::shim("reach the shim", e))?;
    env.set_link(Some(Link { shim, process: process.into() }));
    Ok(())
}

async fn namespaces(env: &PodEnv, record: &PodRecord) -> Result<Option<(u32, u64)>> {
    let (house, id, parent) = (env.house.clone(), env.id.clone(), env.cgroup_parent.clone());
    let netns = env.netns();
    let pin = netns.clone();
    blocking(move || {
        house
            .parents
            .enter(&id, &parent)
            .map_err(|e| Error::disk("note cgroups of", &parent, e))?;
        if let Some(dir) = pin.as_deref().and_then(Path::parent) {
            std::fs::create_dir_all(dir).map_err(|e| Error::disk("make directory", dir, e))?;
        }
        Ok::<(), Error>(())
    })
    .await??;
    let asked = &env.spec.namespaces;
    let request = PodRequest {
        id: env.id.to_string(),
        netns,
        hostname: files::hostname(env),
        namespaces: Namespaces {
            host_ipc: asked.ipc == Scope::Node,
            // A host name of one's own needs a network of one's own: Kubernetes gives
            // host-network pods the node's.
            host_uts: asked.network == Scope::Node,
            shared_pid: asked.pid == Scope::Pod,
        },
        sysctls: env.spec.sysctls.clone(),
        ids: asked.ids.clone(),
        cgroup_parent: record.cgroup_parent.clone(),
    };
    let made = env.shim()?.create_pod(request).await;
    let init = made.map_err(|e| Error::shim("make the pod's namespaces", e))?;
    Ok(init.and_then(|pid| Some((pid, start_time(pid)?))))
}

async fn network(env: &PodEnv, netns: &Path) -> Result<Vec<IpAddr>> {
    let attach = Attach { id: &env.id, netns: netns.to_owned(), spec: &env.spec };
    let added = env.house.networks.add(attach).await;
    added.map_err(|e| Error::port("attach the network", e))
}
