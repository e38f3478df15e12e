//! Which host is asked next, when, and when to give up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::source::{Endpoint, Source};
use super::{Error, RegistryConfig};

/// No pause between tries is longer, whatever a registry asks for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// One request's way through the hosts: in order, those that failed lately last; then, after a
/// pause, those again that may yet recover.
pub(super) struct Tries<'a> {
    source: &'a Source,
    capability: &'static str,
    /// Hosts of this round still to be asked.
    round: VecDeque<usize>,
    rounds: u32,
    /// Hosts that answered for good, and not well.
    refused: BTreeSet<usize>,
    asked: Option<usize>,
    errors: BTreeMap<usize, Error>,
    /// The longest pause that a host asked for.
    retry_after: Duration,
}

impl<'a> Tries<'a> {
    pub(super) fn new(
        source: &'a Source,
        capability: &'static str,
        refused: BTreeSet<usize>,
    ) -> Self {
        let mut tries = Self {
            source,
            capability,
            round: VecDeque::new(),
            rounds: 0,
            refused,
            asked: None,
            errors: BTreeMap::new(),
            retry_after: Duration::ZERO,
        };
        tries.round = tries.order();
        tries
    }

    fn order(&self) -> VecDeque<usize> {
        let able = self.source.able(self.capability);
        let left = able.filter(|(index, _)| !self.refused.contains(index));
        let avoided = |endpoint: &Endpoint| self.source.net.avoided(&endpoint.host.base);
        let (late, soon): (Vec<_>, Vec<_>) = left.partition(|(_, endpoint)| avoided(endpoint));
        soon.into_iter().chain(late).map(|(index, _)| index).collect()
    }

    /// The next host to ask; `None` when it is time to [give up](Self::give_up). Pauses between
    /// rounds.
    pub(super) async fn next(&mut self) -> Option<&'a Endpoint> {
        if self.round.is_empty() {
            let config = &self.source.config;
            let again = self.order();
            if again.is_empty() || self.errors.is_empty() || self.rounds >= config.retries {
                return None;
            }
            let pause = pause(config, self.rounds).max(self.retry_after.min(MAX_PAUSE));
            tokio::time::sleep(pause).await;
            self.retry_after = Duration::ZERO;
            self.rounds += 1;
            self.round = again;
        }
        let index = self.round.pop_front()?;
        self.asked = Some(index);
        self.source.endpoints.get(index)
    }

    /// The number of the host that was asked last.
    pub(super) fn asked(&self) -> Option<usize> {
        self.asked
    }

    /// The host that was asked last did not serve.
    pub(super) fn failed(&mut self, error: Error) {
        let Some((index, endpoint)) =
            self.asked.and_then(|index| Some((index, self.source.endpoints.get(index)?)))
        else {
            return;
        };
        tracing::debug!(host = endpoint.host.authority, %error, "host did not serve");
        if let Error::Status { retry_after: Some(pause), .. } = &error {
            self.retry_after = self.retry_after.max(*pause);
        }
        if error.may_pass() {
            self.source.net.failed(&endpoint.host.base, self.source.config.avoid_for);
        } else {
            self.refused.insert(index);
        }
        self.errors.insert(index, error);
    }

    /// The host that was asked last served, in whole or for a good while.
    pub(super) fn served(&mut self) {
        if let Some(endpoint) = self.asked.and_then(|index| self.source.endpoints.get(index)) {
            self.source.net.served(&endpoint.host.base);
        }
        self.rounds = 0;
    }

    pub(super) fn give_up(self) -> Error {
        if self.errors.is_empty() {
            let registry = self.source.reference.registry().to_owned();
            return Error::NoHost { registry, capability: self.capability };
        }
        Error::AllHosts { attempts: self.errors.into_values().collect() }
    }
}

/// Doubles with each round; between half and all of it, so that a registry that comes back is
/// not asked by all nodes at once.
pub(super) fn pause(config: &RegistryConfig, round: u32) -> Duration {
    let whole = config.retry_pause.saturating_mul(1 << round.min(10)).min(MAX_PAUSE);
    whole.mul_f64(0.5 + jitter() / 2.0)
}

/// From 0 to 1. No secret hangs on it: the clock's last digits will do.
fn jitter() -> f64 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    f64::from(nanos % 1009) / 1009.0
}

/// What `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}
