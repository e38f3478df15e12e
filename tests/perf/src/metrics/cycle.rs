//! A pod's life, one pod after the other.

use anyhow::Result;

use super::{Clock, Scale, Target, millis};
use crate::pods::{Down, Network, Up};
use crate::samples::{Metric, Samples};

/// The metrics of a life on one kind of network.
pub(super) struct Life {
    network: Network,
    run: Metric,
    create: Metric,
    start: Metric,
    up: Metric,
    stop: Metric,
    stop_pod: Metric,
    remove: Metric,
    down: Metric,
    cpu: Metric,
}

macro_rules! life {
    ($network:expr, $name:literal) => {
        Life {
            network: $network,
            run: Metric::cost(concat!($name, ": RunPodSandbox"), "ms"),
            create: Metric::cost(concat!($name, ": CreateContainer"), "ms"),
            start: Metric::cost(concat!($name, ": StartContainer"), "ms"),
            up: Metric::cost(concat!($name, ": up (all three)"), "ms"),
            stop: Metric::cost(concat!($name, ": StopContainer"), "ms"),
            stop_pod: Metric::cost(concat!($name, ": StopPodSandbox"), "ms"),
            remove: Metric::cost(concat!($name, ": remove both"), "ms"),
            down: Metric::cost(concat!($name, ": down (all)"), "ms"),
            cpu: Metric::cost(concat!($name, ": CPU per life"), "ms"),
        }
    };
}

pub(super) const HOST: Life = life!(Network::Host, "pod, host network");
pub(super) const CNI: Life = life!(Network::Own, "pod, CNI");

pub(super) async fn measure(target: &Target, life: &Life, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    once(target, life).await?;
    let clock = Clock::start(target).await?;
    for _ in 0..scale.cycles {
        let (up, down) = once(target, life).await?;
        for (metric, time) in [
            (life.run, up.run),
            (life.create, up.create),
            (life.start, up.start),
            (life.up, up.run + up.create + up.start),
            (life.stop, down.stop),
            (life.stop_pod, down.stop_pod),
            (life.remove, down.remove),
            (life.down, down.stop + down.stop_pod + down.remove),
        ] {
            samples.push(metric, millis(time));
        }
    }
    clock.note(&mut samples, life.cpu, scale.cycles).await?;
    Ok(samples)
}

async fn once(target: &Target, life: &Life) -> Result<(Up, Down)> {
    let (pod, up) = target.node.up(life.network, &["pause"]).await?;
    let down = target.node.down(&pod).await?;
    Ok((up, down))
}
