//! The RPCs that say what pods and containers use.
//!
//! A list has what lives; what vanishes while it is made is left out, and never an error.

use std::collections::HashSet;
use std::sync::Arc;

use berth_proto::cri;
use tokio::task::spawn_blocking;

use super::code::Failure;
use super::{Front, filter, parse, render};
use crate::clock;
use crate::pod::{ContainerSnapshot, ContainerState, PodSnapshot};
use crate::stats::network::{self, Interface};
use crate::stats::{Reading, Usage};

fn cgroup(pod: &PodSnapshot, container: &ContainerSnapshot) -> String {
    format!("{}/{}", pod.cgroup.trim_end_matches('/'), container.id)
}

/// A pod whose request named no cgroup shares one with others.
fn own_cgroup(pod: &PodSnapshot) -> Option<&str> {
    pod.spec.cgroup_parent.is_some().then_some(pod.cgroup.as_str())
}

fn lives(container: &ContainerSnapshot) -> bool {
    container.state != ContainerState::Exited
}

async fn usage(front: &Front, cgroup: String) -> Option<Reading<Usage>> {
    let stats = front.stats.clone();
    spawn_blocking(move || stats.usage(&cgroup)).await.ok().flatten()
}

async fn figures(
    front: &Front,
    container: &ContainerSnapshot,
    usage: Option<&Reading<Usage>>,
) -> cri::ContainerStats {
    let written = front.stats.writable(&front.images, container.id.as_str()).await;
    render::container_stats(container, usage, written.as_ref())
}

/// Of a container that has ended: what it has written.
pub(super) async fn container(
    front: &Front,
    request: &cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Failure> {
    let container =
        front.roster.container_status(parse::id("container_id", &request.container_id)?)?;
    let pod = front.roster.pod_status(container.pod.as_str())?;
    let usage = match lives(&container) {
        true => usage(front, cgroup(&pod, &container)).await,
        false => None,
    };
    let stats = Some(figures(front, &container, usage.as_ref()).await);
    Ok(cri::ContainerStatsResponse { stats })
}

pub(super) async fn containers(
    front: &Front,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Failure> {
    let filter = request.filter.map(|filter| cri::ContainerFilter {
        id: filter.id,
        state: None,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
    });
    let filter = filter::Containers::parse(filter)?;
    let mut stats = Vec::new();
    for pod in forget(front) {
        for container in pod.containers.iter().filter(|container| filter.takes(container)) {
            stats.extend(living(front, &pod, container).await);
        }
    }
    Ok(cri::ListContainerStatsResponse { stats })
}

async fn living(
    front: &Front,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
) -> Option<cri::ContainerStats> {
    if !lives(container) {
        return None;
    }
    let usage = usage(front, cgroup(pod, container)).await?;
    Some(figures(front, container, Some(&usage)).await)
}

/// All pods; what others have left is forgotten.
fn forget(front: &Front) -> Vec<Arc<PodSnapshot>> {
    let pods = front.roster.list_pods();
    let (mut cgroups, mut containers) = (HashSet::new(), HashSet::new());
    for pod in &pods {
        cgroups.insert(pod.cgroup.clone());
        for container in &pod.containers {
            cgroups.insert(cgroup(pod, container));
            containers.insert(container.id.to_string());
        }
    }
    front.stats.keep_only(&cgroups, &containers);
    pods
}

pub(super) async fn pod(
    front: &Front,
    request: &cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Failure> {
    let pod = front.roster.pod_status(parse::id("pod_sandbox_id", &request.pod_sandbox_id)?)?;
    Ok(cri::PodSandboxStatsResponse { stats: Some(whole(front, &pod).await) })
}

pub(super) async fn pods(
    front: &Front,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Failure> {
    let filter = request.filter.map(|filter| cri::PodSandboxFilter {
        id: filter.id,
        state: None,
        label_selector: filter.label_selector,
    });
    let filter = filter::Pods::parse(filter)?;
    let mut stats = Vec::new();
    for pod in forget(front).iter().filter(|pod| pod.ready && filter.takes(pod)) {
        stats.push(whole(front, pod).await);
    }
    Ok(cri::ListPodSandboxStatsResponse { stats })
}

async fn whole(front: &Front, pod: &PodSnapshot) -> cri::PodSandboxStats {
    let mut containers = Vec::new();
    for container in &pod.containers {
        containers.extend(living(front, pod, container).await);
    }
    let own = own_cgroup(pod).map(str::to_owned);
    let (stats, netns) = (front.stats.clone(), pod.netns.clone());
    let looked = spawn_blocking(move || {
        let usage = own.as_deref().and_then(|cgroup| stats.usage(cgroup));
        let processes = own.as_deref().map(|cgroup| stats.processes(cgroup));
        let processes = processes.map(|value| Reading { at: clock::now(), value });
        (usage, processes, netns.and_then(|netns| interfaces(&netns)))
    });
    let (usage, processes, network) = looked.await.unwrap_or_default();
    render::pod_stats(pod, usage.as_ref(), processes, network, containers)
}

fn interfaces(netns: &std::path::Path) -> Option<Reading<Vec<Interface>>> {
    // A pod that is being stopped has lost its namespace already.
    let value = network::read(netns)
        .inspect_err(|error| tracing::debug!(?netns, %error, "interfaces can't be read"))
        .ok()?;
    Some(Reading { at: clock::now(), value })
}
