//! What was measured, as a table and as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::bench::Outcome;
use crate::instance::Kind;
use crate::metrics::Suite;
use crate::samples::{Better, Metric, Samples};

/// One runtime of the comparison.
pub(crate) struct Side {
    name: String,
    versions: Vec<String>,
    samples: Samples,
    failures: Vec<(Suite, String)>,
}

impl Side {
    /// A runtime of which nothing is measured yet.
    pub(crate) fn of(kind: &Kind) -> Self {
        Self::named(kind.name(), kind.versions())
    }

    /// The same, for one that only its socket is known of.
    pub(crate) fn named(name: &str, versions: Vec<String>) -> Self {
        Self { name: name.to_owned(), versions, samples: Samples::default(), failures: vec![] }
    }
}

/// All sides, the first of which is set against each other one.
pub(crate) struct Report {
    sides: Vec<Side>,
    /// The least that each could cost, where that was measured.
    floor: Samples,
}

impl Report {
    pub(crate) fn new(sides: Vec<Side>) -> Self {
        Self { sides, floor: Samples::default() }
    }

    /// Notes what things cost with nothing around them.
    pub(crate) fn add_floor(&mut self, floor: Samples) {
        self.floor.merge(floor);
    }

    /// Notes what a suite gave on one side.
    pub(crate) fn add(&mut self, side: usize, suite: Suite, outcome: Outcome) {
        let Some(side) = self.sides.get_mut(side) else { return };
        match outcome {
            Ok(samples) => side.samples.merge(samples),
            Err(error) => side.failures.push((suite, error)),
        }
    }

    /// The table, with the ratio by which the first side is better than each other.
    pub(crate) fn print(&self) {
        for side in &self.sides {
            println!("{}: {}", side.name, side.versions.join(", "));
        }
        println!("machine: {}", machine());
        let heads = self.sides.iter().map(|side| format!("{:>24}", format!("{} p50", side.name)));
        let heads = heads.collect::<String>();
        println!("\n{:<46}{heads}{:>9}{:>12}{:>9}", "", "better", "floor", "over it");
        for metric in self.metrics() {
            println!("{}", self.row(metric));
        }
        for side in &self.sides {
            for (suite, error) in &side.failures {
                println!("FAILED {suite:?} on {}: {error}", side.name);
            }
        }
    }

    /// Every metric that some side has, in the order of their measuring.
    fn metrics(&self) -> Vec<Metric> {
        let mut found = Vec::new();
        for (metric, _) in self.sides.iter().flat_map(|side| side.samples.figures()) {
            if !found.contains(&metric) {
                found.push(metric);
            }
        }
        found
    }

    fn row(&self, metric: Metric) -> String {
        let mut row = format!("{:<46}", format!("{} ({})", metric.name, metric.unit));
        for side in &self.sides {
            let cell = match side.samples.figure(metric.name) {
                Some(figures) if figures.count > 1 => {
                    format!("{:.2} (p90 {:.2})", figures.p50, figures.p90)
                }
                Some(figures) => format!("{:.2}", figures.p50),
                None => "-".to_owned(),
            };
            row.push_str(&format!("{cell:>24}"));
        }
        row.push_str(&self.ratio(metric).map_or(" ".repeat(9), |it| format!("{it:>8.1}x")));
        if let (Some(floor), Some(over)) = (self.floor.figure(metric.name), self.over(metric)) {
            row.push_str(&format!("{:>12.2}{over:>8.2}x", floor.p50));
        }
        row
    }

    /// How many times its floor the first side's median is.
    fn over(&self, metric: Metric) -> Option<f64> {
        let ours = self.sides.first()?.samples.figure(metric.name)?.p50;
        Some(ours / self.floor.figure(metric.name)?.p50)
    }

    /// How many times better the first side's median is than the second's.
    fn ratio(&self, metric: Metric) -> Option<f64> {
        let [first, second] = self.sides.as_slice() else { return None };
        let (ours, theirs) =
            (first.samples.figure(metric.name)?.p50, second.samples.figure(metric.name)?.p50);
        Some(match metric.better {
            Better::Lower => theirs / ours,
            Better::Higher => ours / theirs,
        })
    }

    /// Writes everything, raw values included, into a new file of the directory.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let path = dir.join(format!("{seconds}.json"));
        fs::write(&path, serde_json::to_string_pretty(&self.to_json(seconds))?)?;
        Ok(path)
    }

    fn to_json(&self, seconds: u64) -> Value {
        let sides = self.sides.iter().map(|side| {
            let failures: Vec<String> =
                side.failures.iter().map(|(suite, error)| format!("{suite:?}: {error}")).collect();
            json!({
                "name": side.name, "versions": side.versions,
                "metrics": side.samples.to_json(), "failures": failures,
            })
        });
        json!({
            "unix_time": seconds, "machine": machine(), "sides": sides.collect::<Vec<_>>(),
            "floor": self.floor.to_json(),
        })
    }

    /// An error if anything could not be measured.
    pub(crate) fn verdict(&self) -> Result<()> {
        let failures = self.sides.iter().map(|side| side.failures.len()).sum::<usize>();
        if failures > 0 {
            bail!("{failures} measurements failed");
        }
        Ok(())
    }
}

/// Processors, kernel, load: what figures hold for.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name\t: "));
    let release = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cpus} x {}, Linux {}, load {load}", model.unwrap_or("?"), release.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_says_how_much_better_the_first_side_is() {
        let (time, rate) = (Metric::cost("time", "ms"), Metric::rate("rate", "/s"));
        let mut report =
            Report::new(vec![Side::named("one", Vec::new()), Side::named("two", Vec::new())]);
        for (side, slow, fast) in [(0, 10.0, 40.0), (1, 30.0, 10.0)] {
            let mut samples = Samples::default();
            samples.push(time, slow);
            samples.push(rate, fast);
            report.add(side, Suite::Exec, Ok(samples));
        }
        assert_eq!(report.metrics(), [time, rate]);
        assert!((report.ratio(time).unwrap() - 3.0).abs() < 1e-9);
        assert!((report.ratio(rate).unwrap() - 4.0).abs() < 1e-9);
        assert!(report.verdict().is_ok());
        report.add(1, Suite::Exec, Err("no".into()));
        assert!(report.verdict().is_err());
    }
}
