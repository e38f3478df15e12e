//! The signals that a daemon hears.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Installed once, at the very start, so that no signal finds its default action.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Needs a runtime with I/O.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT. SIGHUP, which asks other daemons for a reload, changes
    /// nothing yet. Dropping the future loses no signal.
    pub(super) async fn stop(&mut self) {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP: there is no reload yet; restart to change settings");
                    continue;
                }
            };
            tracing::info!("{name}");
            return;
        }
    }
}
