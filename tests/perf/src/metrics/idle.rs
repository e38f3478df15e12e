//! The daemon's memory while there are no pods.

use anyhow::Result;

use super::{SETTLE, Target, memory};
use crate::samples::{Metric, Samples};

const DAEMON: Metric = Metric::cost("idle daemon: PSS", "MiB");

pub(super) async fn measure(target: &Target) -> Result<Samples> {
    let mut samples = Samples::default();
    tokio::time::sleep(SETTLE).await;
    if let Some(daemon) = target.daemon {
        samples.push(DAEMON, memory::mebibytes(memory::pss(daemon)?.unwrap_or(0)));
    }
    Ok(samples)
}
