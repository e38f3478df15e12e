//! RemoveContainer and RemovePodSandbox. Nothing here is undone; what cannot be taken away is
//! left over.

use super::cleanup::{Cleanup, run_all};
use super::house::PodEnv;
use super::run::undone;
use super::{Error, Result};
use crate::store::{ContainerPhase, ContainerRecord, PodRecord};

/// Takes away a container that has ended.
pub(crate) async fn container(env: &PodEnv, mut record: ContainerRecord) -> Result<Vec<Cleanup>> {
    record.phase = ContainerPhase::Removing;
    if let Err(error) = env.save_container(&record).await {
        // A full disk must not keep anything from being removed.
        tracing::warn!(container = %record.id, %error, "removal not recorded before it began");
    }
    let container = record.id;
    let left = run_all(env, Cleanup::container(&container)).await;
    env.forget_container(&container).await?;
    Ok(left)
}

/// Takes away a stopped pod with its containers. What is left over stands in the record.
pub(crate) async fn pod(
    env: &PodEnv,
    mut record: PodRecord,
    containers: Vec<ContainerRecord>,
) -> PodRecord {
    let mut left = std::mem::take(&mut record.leftovers);
    left = run_all(env, left).await;
    for container in containers {
        // Their processes ended with the pod, and their bundles go with its directory.
        let snapshot = Cleanup::Snapshot { container: container.id };
        left.extend(run_all(env, [snapshot]).await);
    }
    let needs_state = left.iter().any(|c| matches!(c, Cleanup::Namespaces | Cleanup::Task { .. }));
    // The bundles name the cgroups that are still to be ended.
    if needs_state {
        left.push(Cleanup::StateDir);
    } else {
        left.extend(run_all(env, [Cleanup::StateDir]).await);
    }
    undone(env, record, left).await
}

/// Tries once more what is left over.
pub(crate) async fn leftovers(env: &PodEnv, left: Vec<Cleanup>) -> Vec<Cleanup> {
    run_all(env, left).await
}

/// The pod is not there: what a caller who needs it is told.
pub(crate) fn gone(id: &str) -> Error {
    Error::NoPod { id: id.to_owned() }
}
