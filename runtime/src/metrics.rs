//! What the daemon counts. All names stand in one table.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Every metric: name, help, labels.
mod table {
    pub(super) type Row = (&'static str, &'static str, &'static [&'static str]);

    pub(super) const REQUESTS: Row =
        ("berth_cri_requests_total", "CRI requests that ended.", &["method", "code"]);
    pub(super) const LATENCY: Row =
        ("berth_cri_request_seconds", "How long CRI requests took.", &["method", "code"]);
    pub(super) const IN_FLIGHT: Row =
        ("berth_cri_requests_in_flight", "CRI requests under way.", &[]);
    pub(super) const PODS: Row = ("berth_pods", "Pod sandboxes by state.", &["state"]);
    pub(super) const CONTAINERS: Row = ("berth_containers", "Containers by state.", &["state"]);
    pub(super) const PULLS: Row =
        ("berth_image_pulls_total", "Image pulls that ended.", &["result"]);
}

/// From a list call (under a millisecond) to a pull (minutes).
const BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0];

/// The daemon's metrics. Cheap to update; nothing here fails after [`Metrics::new`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
    in_flight: IntGauge,
    pods: IntGaugeVec,
    containers: IntGaugeVec,
    pulls: IntCounterVec,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let (name, help, labels) = table::LATENCY;
        let latency = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let metrics = Self {
            requests: counters(table::REQUESTS)?,
            latency: HistogramVec::new(latency, labels)?,
            in_flight: IntGauge::new(table::IN_FLIGHT.0, table::IN_FLIGHT.1)?,
            pods: gauges(table::PODS)?,
            containers: gauges(table::CONTAINERS)?,
            pulls: counters(table::PULLS)?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.latency.clone()))?;
        metrics.registry.register(Box::new(metrics.in_flight.clone()))?;
        metrics.registry.register(Box::new(metrics.pods.clone()))?;
        metrics.registry.register(Box::new(metrics.containers.clone()))?;
        metrics.registry.register(Box::new(metrics.pulls.clone()))?;
        Ok(metrics)
    }

    /// A CRI request began.
    pub(crate) fn request_began(&self) {
        self.in_flight.inc();
    }

    /// A CRI request ended, also one whose caller went away.
    pub(crate) fn request_ended(&self, method: &str, code: &str, took: Duration) {
        self.in_flight.dec();
        self.requests.with_label_values(&[method, code]).inc();
        self.latency.with_label_values(&[method, code]).observe(took.as_secs_f64());
    }

    /// A pull ended.
    pub(crate) fn pull_ended(&self, succeeded: bool) {
        let result = if succeeded { "ok" } else { "error" };
        self.pulls.with_label_values(&[result]).inc();
    }

    /// How many pods and containers there are in each state, as counted just now.
    pub fn set_counts(&self, pods: &[(&str, usize)], containers: &[(&str, usize)]) {
        for (state, count) in pods {
            self.pods.with_label_values(&[state]).set(whole(*count));
        }
        for (state, count) in containers {
            self.containers.with_label_values(&[state]).set(whole(*count));
        }
    }

    /// All of it in the text format of Prometheus.
    pub fn render(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn counters((name, help, labels): table::Row) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges((name, help, labels): table::Row) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.request_began();
        metrics.request_began();
        metrics.request_ended("Version", "OK", Duration::from_millis(2));
        metrics.pull_ended(false);
        metrics.set_counts(&[("ready", 3)], &[("running", 4)]);
        let text = metrics.render().unwrap();
        for line in [
            "berth_cri_requests_total{code=\"OK\",method=\"Version\"} 1",
            "berth_cri_request_seconds_count{code=\"OK\",method=\"Version\"} 1",
            "berth_cri_requests_in_flight 1",
            "berth_image_pulls_total{result=\"error\"} 1",
            "berth_pods{state=\"ready\"} 3",
            "berth_containers{state=\"running\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
