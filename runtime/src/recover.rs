//! A daemon's start: records, shims and the kernel are brought together into pods.
//!
//! - A pod of another boot is not ready, its containers have ended; nobody knows how.
//! - A pod of this boot whose shim answers is as its shim says it is.
//! - A pod whose shim is gone is cleared up like any pod whose shim dies.
//! - What was half made is undone. What no record speaks of is removed, and said in the log.

mod orphans;
mod reconcile;

use std::sync::Arc;
use std::time::Duration;

use reconcile::Found;
use tokio::task::JoinSet;

use crate::pod::cleanup::Cleanup;
use crate::pod::driver::Driver;
use crate::pod::house::{House, Link, blocking};
use crate::pod::state::Phase;
use crate::pod::{Error, Result, Roster, exit};
use crate::shim::{Inventory, Shim, find_by_directory, resident};
use crate::store::{PodPhase, PodRecord, Recorded};

/// How long a shim may take to say what it holds.
const SHIM_LIMIT: Duration = Duration::from_secs(5);

/// Brings back all pods. Orphans are removed in the background.
pub(crate) async fn recover(roster: &Arc<Roster>) -> Result<()> {
    let house = roster.house().clone();
    let store = house.store.clone();
    let all = blocking(move || store.load()).await?.map_err(Error::store)?;
    let known = orphans::Known::of(&all);
    let mut meetings = JoinSet::new();
    for recorded in all {
        let house = house.clone();
        meetings.spawn(async move {
            let met = meet(&house, &recorded).await;
            (recorded, met)
        });
    }
    let mut count = 0;
    while let Some(met) = meetings.join_next().await {
        match met {
            Ok((recorded, met)) => {
                bring_back(roster, recorded, met).await;
                count += 1;
            }
            Err(error) => tracing::error!(%error, "recovery of a pod broke"),
        }
    }
    tracing::info!(pods = count, "records read");
    orphans::remove(house, known).await;
    Ok(())
}

/// What became of a pod's shim.
#[derive(Debug)]
pub(crate) enum Met {
    /// The pod is of another boot, or was stopped: there is none.
    NotSought,
    /// It answers.
    Answers(Link, Inventory),
    /// It lives and does not answer.
    Silent(Link),
    /// It is dead.
    Dead,
}

async fn meet(house: &Arc<House>, recorded: &Recorded) -> Met {
    let pod = &recorded.pod;
    if pod.boot != house.boot || matches!(pod.phase, PodPhase::NotReady) {
        return Met::NotSought;
    }
    let paths = house.paths.pod(&pod.id);
    let Ok(process) = resident(&paths) else { return Met::Dead };
    // A number from a file may mean another process by now; a shim sits in its pod's directory.
    if !find_by_directory(paths.dir()).contains(&process.pid()) {
        return Met::Dead;
    }
    let process = Arc::new(process);
    let asked = async {
        let shim = Shim::connect(&paths).await?;
        let inventory = shim.inventory().await?;
        Ok::<_, crate::shim::ShimError>((shim, inventory))
    };
    match tokio::time::timeout(SHIM_LIMIT, asked).await {
        Ok(Ok((shim, inventory))) => Met::Answers(Link { shim, process }, inventory),
        failed => {
            let ended = tokio::time::timeout(Duration::ZERO, process.ended()).await.is_ok();
            tracing::warn!(pod = %pod.id, ended, error = ?failed.err(), "shim does not answer");
            match (ended, Shim::connect(&paths).await) {
                (false, Ok(shim)) => Met::Silent(Link { shim, process }),
                _ => Met::Dead,
            }
        }
    }
}

async fn bring_back(roster: &Arc<Roster>, recorded: Recorded, met: Met) {
    let id = recorded.pod.id.clone();
    let same_boot = recorded.pod.boot == roster.house().boot;
    if same_boot && recorded.pod.phase != PodPhase::NotReady {
        let (house, id) = (roster.house().clone(), id.clone());
        let parent = recorded.pod.cgroup_parent.clone();
        let entered = blocking(move || {
            let entered = house.parents.enter(&id, &parent);
            entered.map_err(|e| Error::disk("note cgroups of", parent, e))
        });
        say(entered.await.and_then(|done| done));
    }
    let driver = match (recorded.pod.phase, same_boot) {
        (PodPhase::Making, _) => half_made(roster, recorded, met),
        (PodPhase::Removed, _) => gone(roster, recorded),
        (PodPhase::Ready, false) => rebooted(roster, recorded).await,
        (PodPhase::NotReady, _) => stopped(roster, recorded).await,
        (PodPhase::Ready, true) => ready(roster, recorded, met).await,
    };
    roster.let_go(id, driver);
}

/// RunPodSandbox was cut short. Nobody has its id; all of it is undone.
fn half_made(roster: &Arc<Roster>, recorded: Recorded, met: Met) -> Driver {
    tracing::warn!(pod = %recorded.pod.id, "half-made pod sandbox is undone");
    let mut driver = roster.hire_for(recorded.pod, recorded.containers, Phase::NotReady);
    if let Met::Answers(link, _) | Met::Silent(link) = met {
        driver.link(link);
    }
    driver.undo_half_made();
    driver
}

/// Removed for kubelet; only leftovers are there.
fn gone(roster: &Arc<Roster>, recorded: Recorded) -> Driver {
    roster.hire_for(recorded.pod, Vec::new(), Phase::Gone)
}

async fn rebooted(roster: &Arc<Roster>, mut recorded: Recorded) -> Driver {
    tracing::warn!(pod = %recorded.pod.id, "pod sandbox of an earlier boot is not ready");
    let found = reconcile::after_reboot(&recorded.containers);
    recorded.pod.phase = PodPhase::NotReady;
    // Its processes and mounts ended with the boot. Its address is still held.
    recorded.pod.leftovers = vec![Cleanup::Network, Cleanup::Namespaces];
    let saved = recorded.pod.clone();
    let store = roster.house().store.clone();
    say(blocking(move || store.save_pod(&saved)).await.and_then(|done| done.map_err(Error::store)));
    resume(roster, recorded.pod, found, Phase::NotReady).await
}

async fn stopped(roster: &Arc<Roster>, recorded: Recorded) -> Driver {
    let paths = roster.house().paths.pod(&recorded.pod.id);
    let found = reconcile::after_stop(&recorded.containers, |id| exit::read(&paths, id));
    resume(roster, recorded.pod, found, Phase::NotReady).await
}

async fn ready(roster: &Arc<Roster>, mut recorded: Recorded, met: Met) -> Driver {
    let paths = roster.house().paths.pod(&recorded.pod.id);
    let (link, inventory) = match met {
        Met::Answers(link, inventory) => (Some(link), Some(inventory)),
        Met::Silent(link) => (Some(link), None),
        Met::Dead | Met::NotSought => (None, None),
    };
    let found = match &inventory {
        Some(told) => reconcile::with_shim(&recorded.containers, told, |id| exit::read(&paths, id)),
        None => reconcile::unheard(&recorded.containers),
    };
    recorded.pod.leftovers.extend(spent(&found));
    let mut driver = resume(roster, recorded.pod, found, Phase::Ready).await;
    let Some(link) = link else {
        driver.shim_died();
        return driver;
    };
    driver.link(link);
    driver.watch_shim();
    match inventory {
        Some(_) => driver.watch_containers(),
        None => driver.relink(),
    }
    driver
}

/// What the shim holds that nobody needs.
fn spent(found: &Found) -> Vec<Cleanup> {
    let spent = found.spent.iter().map(|c| Cleanup::Task { container: c.clone() });
    let strays = found.strays.iter().flat_map(|container| {
        tracing::warn!(%container, "the shim holds a container that no record speaks of");
        Cleanup::container(container)
    });
    spent.chain(strays).collect()
}

/// A driver that shows what was found.
async fn resume(roster: &Arc<Roster>, pod: PodRecord, found: Found, phase: Phase) -> Driver {
    let store = roster.house().store.clone();
    let changed: Vec<_> =
        found.containers.iter().filter(|c| found.changed.contains(&c.id)).cloned().collect();
    let saved = blocking(move || changed.iter().try_for_each(|c| store.save_container(c)));
    say(saved.await.and_then(|done| done.map_err(Error::store)));
    let mut driver = roster.hire_for(pod, found.containers, phase);
    driver.resume();
    driver
}

fn say(done: Result<()>) {
    if let Err(error) = done {
        // The next start comes to the same end by itself.
        tracing::warn!(%error, "what was found is not written down");
    }
}
