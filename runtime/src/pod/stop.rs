//! StopPodSandbox as a list of steps, and the same for a pod whose shim has died.
//!
//! Unlike a create it is never undone. Only containers that do not end make it fail; what else
//! cannot be taken away is left over and retried, so that no pod is Terminating for ever.

use std::time::Duration;

use berth_proto::ids::ContainerId;

use super::cleanup::Cleanup;
use super::exit::{self, Ended};
use super::house::{PodEnv, blocking};
use super::{Error, Result};
use crate::failpoint;
use crate::shim::ShimError;
use crate::store::{PodPhase, PodRecord};

/// How long containers may take to leave after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// What became of it.
pub(crate) struct Stopped {
    /// NotReady, with what is left over; as before where `failure` says that containers run.
    pub record: PodRecord,
    /// How the containers ended that had not yet.
    pub ended: Vec<(ContainerId, Ended)>,
    /// Why it is to be tried again.
    pub failure: Option<Error>,
}

/// Stops the pod. `alive`: its containers that have not ended.
pub(crate) async fn stop(env: &PodEnv, mut record: PodRecord, alive: Vec<ContainerId>) -> Stopped {
    let ended = match containers(env, alive).await {
        Ok(ended) => ended,
        Err(error) => return Stopped { record, ended: Vec::new(), failure: Some(error) },
    };
    // What an earlier stop left over is part of this one.
    let mut left = std::mem::take(&mut record.leftovers);
    let mut wanted = vec![
        ("stop.network", Cleanup::Network),
        ("stop.namespaces", Cleanup::Namespaces),
        ("stop.namespaces", Cleanup::Shim),
    ];
    left.retain(|cleanup| wanted.iter().all(|(_, w)| w != cleanup));
    for (name, cleanup) in wanted.drain(..) {
        if let Err(error) = step(env, name, &cleanup).await {
            tracing::warn!(pod = %env.id, %cleanup, %error, "left over, will be retried");
            left.push(cleanup);
        }
    }
    record.leftovers = left;
    record.phase = PodPhase::NotReady;
    let failure = commit(env, &record).await.err();
    Stopped { record, ended, failure }
}

async fn step(env: &PodEnv, name: &'static str, cleanup: &Cleanup) -> Result<()> {
    failpoint::before(name)?;
    cleanup.run(env).await?;
    failpoint::after(name)
}

async fn commit(env: &PodEnv, record: &PodRecord) -> Result<()> {
    failpoint::before("stop.commit")?;
    env.save_pod(record).await?;
    failpoint::after("stop.commit")
}

async fn containers(env: &PodEnv, alive: Vec<ContainerId>) -> Result<Vec<(ContainerId, Ended)>> {
    failpoint::before("stop.containers")?;
    let mut tasks = tokio::task::JoinSet::new();
    let mut ended = Vec::new();
    match env.link() {
        None => {
            for id in alive {
                ended.push((id.clone(), end_without_shim(env, id).await?));
            }
        }
        Some(link) => {
            for id in alive {
                let (shim, paths) = (link.shim.clone(), env.paths.clone());
                tasks.spawn(async move {
                    let done = end_by_shim(&shim, &id).await;
                    (exit::read(&paths, &id), done, id)
                });
            }
        }
    }
    while let Some(task) = tasks.join_next().await {
        let Ok((told, done, id)) = task else { continue };
        match (told, done) {
            (Some(how), _) => ended.push((id, how)),
            (None, Ok(Some(how))) => ended.push((id, how)),
            (None, Ok(None)) => ended.push((id, Ended::unknown("the shim does not know it"))),
            // The shim went away meanwhile: what it left is ended like any dead shim's.
            (None, Err(ShimError::Gone { .. })) => {
                ended.push((id.clone(), end_without_shim(env, id).await?));
            }
            (None, Err(error)) => return Err(Error::shim("end the containers", error)),
        }
    }
    failpoint::after("stop.containers")?;
    Ok(ended)
}

async fn end_by_shim(
    shim: &crate::shim::Shim,
    id: &ContainerId,
) -> std::result::Result<Option<Ended>, ShimError> {
    const SIGKILL: u32 = 9;
    match shim.kill(id.as_str(), SIGKILL, true).await {
        // Already ended: the wait says how.
        Ok(()) | Err(ShimError::Answer { .. }) => {}
        Err(error) => return Err(error),
    }
    let limit = KILL_LIMIT.as_secs();
    match tokio::time::timeout(KILL_LIMIT, shim.wait(id.as_str())).await {
        Ok(Ok(exit)) => Ok(Some(Ended {
            code: exit.code,
            at: exit.at,
            oom: false,
            log_bytes_lost: 0,
            told: None,
        })),
        Ok(Err(ShimError::Answer { .. })) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ShimError::Deadline { method: "wait for killed container", seconds: limit }),
    }
}

/// Kills by cgroup what a dead shim left of a container.
pub(crate) async fn end_without_shim(env: &PodEnv, id: ContainerId) -> Result<Ended> {
    let (cgroups, cgroup) = (env.house.cgroups.clone(), env.cgroup(id.as_str()));
    let paths = env.paths.clone();
    blocking(move || {
        let ran = cgroups.populated(&cgroup);
        cgroups.end(&cgroup, KILL_LIMIT).map_err(Error::cgroup)?;
        Ok(match exit::read(&paths, &id) {
            Some(ended) => ended,
            None if ran => Ended::killed_with_shim(),
            None => Ended::unknown("the pod's shim died, and with it the container's exit code"),
        })
    })
    .await?
}
