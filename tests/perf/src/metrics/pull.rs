//! Pull of an image that the store lacks, from a registry on this machine.

use anyhow::Result;

use super::{Clock, Scale, Target};
use crate::pods::timed;
use crate::samples::{Metric, Samples};

const WALL: Metric = Metric::cost("pull: time", "s");
const CPU: Metric = Metric::cost("pull: CPU", "s");

pub(super) async fn measure(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let Some(image) = &target.large_image else { return Ok(samples) };
    for _ in 0..scale.repeats {
        target.node.remove_image(image).await?;
        let clock = Clock::start(target).await?;
        let (_, time) = timed(target.node.pull(image)).await?;
        samples.push(WALL, time.as_secs_f64());
        if let Some(cpu) = clock.used().await? {
            samples.push(CPU, cpu.as_secs_f64());
        }
    }
    target.node.remove_image(image).await?;
    Ok(samples)
}
