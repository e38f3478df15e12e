//! What plugins say of themselves (STATUS, since CNI 1.1.0).
//!
//! kubelet asks every few seconds whether the network is ready, and must never wait for a plugin:
//! it is told what STATUS last gave, while a task asks anew. Only the first question about a
//! configuration waits, and not for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::chain::{self, Tools};
use crate::conf::Network;
use crate::error::NotReady;

/// An answer that is older is asked for again.
const FRESH: Duration = Duration::from_secs(5);
/// How long the first question about a configuration waits for its answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The last answers.
#[derive(Debug)]
pub(crate) struct Health {
    last: watch::Sender<Option<Answer>>,
    asking: AtomicBool,
}

#[derive(Debug, Clone)]
struct Answer {
    of: Arc<Network>,
    at: Instant,
    verdict: Result<(), NotReady>,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self { last: watch::Sender::new(None), asking: AtomicBool::new(false) }
    }

    /// Whether the network's plugins say that they can work. Networks of before 1.1.0 can't say
    /// and count as able.
    pub(crate) async fn of(
        self: &Arc<Self>,
        network: Arc<Network>,
        tools: &Tools,
    ) -> Result<(), NotReady> {
        if !network.version.has_status_and_gc() {
            return Ok(());
        }
        let known = self.known(&network);
        if known.as_ref().is_none_or(|answer| answer.at.elapsed() > FRESH) {
            self.ask(network.clone(), tools.clone());
        }
        match known {
            Some(answer) => answer.verdict,
            None => self.wait(&network).await,
        }
    }

    fn known(&self, network: &Arc<Network>) -> Option<Answer> {
        self.last.borrow().clone().filter(|answer| answer.of == *network)
    }

    /// Starts to ask, if nobody does. The task ends by itself: each plugin has its deadline.
    fn ask(self: &Arc<Self>, network: Arc<Network>, tools: Tools) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let health = self.clone();
        tokio::spawn(async move {
            let verdict = chain::status(&tools, &network).await.map_err(|(plugin, error)| {
                let name = &network.name;
                NotReady::new(format!("network {name:?}: plugin {plugin:?} STATUS: {error}"))
            });
            // Before the next one may ask: nobody who waits goes unanswered.
            health.asking.store(false, Ordering::Release);
            health.last.send_replace(Some(Answer { of: network, at: Instant::now(), verdict }));
        });
    }

    async fn wait(&self, network: &Arc<Network>) -> Result<(), NotReady> {
        let mut last = self.last.subscribe();
        let ours = |answer: &Option<Answer>| answer.as_ref().is_some_and(|it| it.of == *network);
        let answered = timeout(PATIENCE, last.wait_for(ours)).await;
        match answered {
            Ok(Ok(answer)) => answer.as_ref().map_or(Ok(()), |answer| answer.verdict.clone()),
            _ => {
                let name = &network.name;
                Err(NotReady::new(format!(
                    "network {name:?}: its plugins' STATUS is not known yet"
                )))
            }
        }
    }
}
