//! What becomes of attachments while the daemon runs: looked at once after recovery, and those
//! that no pod has collected by the plugins (CHECK and GC of CNI), again and again.

use std::future::pending;
use std::time::Duration;

use berth_network::Networks;

/// Never returns; may be dropped at any point: what runs is finished by the networks' own tasks.
pub(super) async fn tend(networks: &Networks, every: Option<Duration>) {
    for (id, error) in networks.check_all().await {
        tracing::warn!(id, %error, "the pod's network is not as it was made");
    }
    let Some(every) = every else { return pending().await };
    loop {
        match networks.gc().await {
            Ok(true) => tracing::debug!("the plugins have collected what no pod has"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "collect what no pod has"),
        }
        tokio::time::sleep(every).await;
    }
}
