//! StopContainer: ask, wait for the grace, kill. And the end of a container, for its removal.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::house::PodEnv;
use super::{Error, Result};
use crate::shim::ShimError;
use crate::store::ContainerPhase;

/// How long a container may take to leave after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(30);
const SIGKILL: u32 = 9;

/// A stop under way: later calls may bring its deadline nearer.
#[derive(Debug, Clone)]
pub(crate) struct Halt {
    /// The container.
    pub id: String,
    /// The signal that asks.
    pub signal: u32,
    /// When asking ends.
    pub deadline: watch::Receiver<Instant>,
    /// Where the container is; the driver says so after each change is recorded.
    pub phase: watch::Receiver<ContainerPhase>,
}

/// Brings a running container to its end. Answers when the end is recorded.
pub(crate) async fn halt(env: &PodEnv, mut halt: Halt) -> Result<()> {
    let mut phase = halt.phase.clone();
    // The driver answers for its containers as long as it lives: no sender means it is gone.
    if phase.wait_for(|p| *p != ContainerPhase::Starting).await.is_err() || ended(&halt) {
        return Ok(());
    }
    let shim = env.shim()?;
    let now = *halt.deadline.borrow() <= Instant::now();
    if !now {
        asked(shim.kill(&halt.id, halt.signal, false).await)?;
        tokio::select! {
            _ = phase.wait_for(|p| is_end(*p)) => return Ok(()),
            () = passed(&mut halt.deadline) => {}
        }
    }
    asked(shim.kill(&halt.id, SIGKILL, true).await)?;
    match tokio::time::timeout(KILL_LIMIT, phase.wait_for(|p| is_end(*p))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Deadline {
            step: format!("end of container {} after SIGKILL", halt.id),
            seconds: KILL_LIMIT.as_secs(),
        }),
    }
}

/// A container that ended meanwhile cannot be signalled, and need not be. A shim that is gone
/// took its containers along: their end is on its way.
fn asked(sent: std::result::Result<(), ShimError>) -> Result<()> {
    match sent {
        Ok(()) | Err(ShimError::Answer { .. } | ShimError::Gone { .. }) => Ok(()),
        Err(error) => Err(Error::shim("signal the container", error)),
    }
}

fn ended(halt: &Halt) -> bool {
    is_end(*halt.phase.borrow())
}

fn is_end(phase: ContainerPhase) -> bool {
    matches!(phase, ContainerPhase::Exited | ContainerPhase::Removing)
}

/// Waits until the deadline, wherever it moves to.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            moved = deadline.changed() => {
                if moved.is_err() {
                    return tokio::time::sleep_until(until).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_later_shorter_call_brings_the_deadline_nearer() {
        let began = Instant::now();
        let (move_to, mut deadline) = watch::channel(began + Duration::from_secs(600));
        let waiting = tokio::spawn(async move { passed(&mut deadline).await });
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        move_to.send(began + Duration::from_secs(10)).unwrap();
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }
}
