//! ExecSync of a program that ends at once, as probes do it.

use anyhow::{Result, ensure};

use super::{Clock, Scale, Target, millis};
use crate::pods::{Network, timed};
use crate::samples::{Metric, Samples};

const LATENCY: Metric = Metric::cost("ExecSync: latency", "ms");
const CPU: Metric = Metric::cost("ExecSync: CPU", "ms");

pub(super) async fn measure(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let (pod, _) = target.node.up(Network::Host, &["pause"]).await?;
    target.node.exec(&pod.container, &["exit", "0"]).await?;
    let clock = Clock::start(target).await?;
    for _ in 0..scale.calls {
        let call = target.node.exec(&pod.container, &["exit", "0"]);
        let (answer, time) = timed(call).await?;
        ensure!(answer.exit_code == 0, "the program in the container ended with {answer:?}");
        samples.push(LATENCY, millis(time));
    }
    clock.note(&mut samples, CPU, scale.calls).await?;
    target.node.down(&pod).await?;
    Ok(samples)
}
