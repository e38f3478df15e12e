//! Fifty pods that do nothing: what they cost, and how fast a new daemon knows them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::*;
use berth_tests::eventually::true_within;
use tonic::Code;

use super::{Clock, SETTLE, Scale, Target, burst, memory, millis};
use crate::pods::{Network, Node, timed};
use crate::samples::{Metric, Samples};

const CONTAINERS: Metric = Metric::cost("50 pods: ListContainers", "ms");
const PODS: Metric = Metric::cost("50 pods: ListPodSandbox", "ms");
const CONTAINER_STATS: Metric = Metric::cost("50 pods: ListContainerStats", "ms");
const POD_STATS: Metric = Metric::cost("50 pods: ListPodSandboxStats", "ms");
const PER_POD: Metric = Metric::cost("50 pods: PSS per pod", "KiB");
const DAEMON: Metric = Metric::cost("50 pods: daemon PSS", "MiB");
const IDLE: Metric = Metric::cost("50 pods: idle CPU", "% of a core");
const RESTART: Metric = Metric::cost("50 pods: killed daemon back with all", "ms");

pub(super) async fn measure(target: &mut Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    tokio::time::sleep(SETTLE).await;
    let before = memory::runtime(target)?;
    let pods = burst::up(&target.node, Network::Host, scale.pods, None).await?;
    for pod in &pods {
        target.node.exec(&pod.container, &["exit", "0"]).await?;
    }
    lists(&target.node, scale, &mut samples).await?;
    idle(target, scale, &mut samples).await?;
    if let (Some(before), Some(after)) = (before, memory::runtime(target)?) {
        let grown = memory::kibibytes(after) - memory::kibibytes(before);
        samples.push(PER_POD, grown / f64::from(scale.pods));
    }
    if let Some(daemon) = target.daemon {
        samples.push(DAEMON, memory::mebibytes(memory::pss(daemon)?.unwrap_or(0)));
    }
    for _ in 0..scale.repeats {
        restart(target, scale, &mut samples).await?;
    }
    burst::down(&target.node, pods).await?;
    Ok(samples)
}

async fn lists(node: &Node, scale: Scale, samples: &mut Samples) -> Result<()> {
    for _ in 0..scale.calls {
        let (seen, time) = timed(async { running(node).await }).await?;
        ensure!(seen >= scale.pods, "ListContainers names {seen} of {} containers", scale.pods);
        samples.push(CONTAINERS, millis(time));
        let (seen, time) = timed(async { ready(node).await }).await?;
        ensure!(seen >= scale.pods, "ListPodSandbox names {seen} of {} pods", scale.pods);
        samples.push(PODS, millis(time));
    }
    // Runtimes need not have these two.
    let mut runtime = node.cri.runtime();
    for _ in 0..scale.calls.div_ceil(10) {
        let start = Instant::now();
        let answer = runtime.list_container_stats(ListContainerStatsRequest::default()).await;
        note(samples, CONTAINER_STATS, start, answer.err())?;
        let start = Instant::now();
        let answer = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await;
        note(samples, POD_STATS, start, answer.err())?;
    }
    Ok(())
}

fn note(
    samples: &mut Samples,
    metric: Metric,
    start: Instant,
    error: Option<tonic::Status>,
) -> Result<()> {
    match error {
        None => samples.push(metric, millis(start.elapsed())),
        Some(error) if error.code() == Code::Unimplemented => {}
        Some(error) => return Err(error).context(metric.name),
    }
    Ok(())
}

async fn running(node: &Node) -> Result<u32> {
    let answer = node.cri.list_containers(ListContainersRequest::default()).await?;
    let running = |container: &&Container| container.state() == ContainerState::ContainerRunning;
    Ok(u32::try_from(answer.containers.iter().filter(running).count())?)
}

async fn ready(node: &Node) -> Result<u32> {
    let answer = node.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
    let ready = |pod: &&PodSandbox| pod.state() == PodSandboxState::SandboxReady;
    Ok(u32::try_from(answer.items.iter().filter(ready).count())?)
}

async fn idle(target: &Target, scale: Scale, samples: &mut Samples) -> Result<()> {
    let clock = Clock::start(target).await?;
    let start = Instant::now();
    tokio::time::sleep(scale.idle).await;
    if let Some(used) = clock.used().await? {
        samples.push(IDLE, 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn restart(target: &mut Target, scale: Scale, samples: &mut Samples) -> Result<()> {
    let Some(instance) = &mut target.instance else { return Ok(()) };
    instance.kill();
    let start = Instant::now();
    instance.restart().await?;
    target.node.cri = instance.cri().clone();
    target.daemon = Some(instance.pid());
    let node = &target.node;
    true_within("all pods are back", Duration::from_secs(60), async || {
        Ok(running(node).await? >= scale.pods && ready(node).await? >= scale.pods)
    })
    .await?;
    samples.push(RESTART, millis(start.elapsed()));
    Ok(())
}
