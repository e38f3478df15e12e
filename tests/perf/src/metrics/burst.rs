//! Many pods at once.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::{Clock, Scale, Target, millis};
use crate::pods::{Loaded, Network, Node, timed};
use crate::samples::{Metric, Samples};

/// Requests under way at a time.
const IN_FLIGHT: usize = 10;

const RATE: Metric = Metric::rate("burst of 10, CNI: pods up", "/s");
const LATENCY: Metric = Metric::cost("burst of 10, CNI: one pod up", "ms");
const CPU: Metric = Metric::cost("burst of 10, CNI: CPU per pod up", "ms");

pub(super) async fn measure(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let clock = Clock::start(target).await?;
    let start = Instant::now();
    let pods = up(&target.node, Network::Own, scale.burst, Some(&mut samples)).await?;
    samples.push(RATE, f64::from(scale.burst) / start.elapsed().as_secs_f64());
    clock.note(&mut samples, CPU, scale.burst).await?;
    down(&target.node, pods).await?;
    Ok(samples)
}

/// Brings pods up, ten at a time.
pub(super) async fn up(
    node: &Node,
    network: Network,
    count: u32,
    mut samples: Option<&mut Samples>,
) -> Result<Vec<Loaded>> {
    let mut pods = Vec::new();
    let mut work = JoinSet::new();
    let mut left = count;
    loop {
        while left > 0 && work.len() < IN_FLIGHT {
            let node = node.clone();
            work.spawn(async move { timed(node.up(network, &["pause"])).await });
            left -= 1;
        }
        let Some(done) = work.join_next().await else { return Ok(pods) };
        let ((pod, _), time) = done.context("a pod's task")??;
        pods.push(pod);
        if let Some(samples) = &mut samples {
            samples.push(LATENCY, millis(time));
        }
    }
}

/// Takes pods down, ten at a time.
pub(super) async fn down(node: &Node, pods: Vec<Loaded>) -> Result<()> {
    let mut left = VecDeque::from(pods);
    let mut work = JoinSet::new();
    loop {
        while work.len() < IN_FLIGHT
            && let Some(pod) = left.pop_front()
        {
            let node = node.clone();
            work.spawn(async move { node.down(&pod).await });
        }
        let Some(done) = work.join_next().await else { return Ok(()) };
        done.context("a pod's task")??;
    }
}
