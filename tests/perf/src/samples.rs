//! Measured values, by metric.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Which values are the better ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// One thing that is measured: its name, its unit, its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

impl Metric {
    /// Less of it is better: times, processor use, memory.
    pub(crate) const fn cost(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Lower }
    }

    /// More of it is better: rates.
    pub(crate) const fn rate(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: Better::Higher }
    }
}

/// Values in the order of their metrics' first appearance.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    order: Vec<Metric>,
    values: BTreeMap<&'static str, Vec<f64>>,
}

impl Samples {
    /// Notes one value.
    pub(crate) fn push(&mut self, metric: Metric, value: f64) {
        if !self.order.contains(&metric) {
            self.order.push(metric);
        }
        self.values.entry(metric.name).or_default().push(value);
    }

    /// Adds what another run measured.
    pub(crate) fn merge(&mut self, other: Self) {
        for metric in other.order {
            for value in other.values.get(metric.name).into_iter().flatten() {
                self.push(metric, *value);
            }
        }
    }

    /// Each metric with its figures.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (Metric, Figures)> + '_ {
        self.order.iter().filter_map(|metric| {
            let values = self.values.get(metric.name)?;
            Some((*metric, Figures::of(values, metric.better)?))
        })
    }

    /// What one metric's values come to, if it was measured.
    pub(crate) fn figure(&self, name: &str) -> Option<Figures> {
        self.figures().find(|(metric, _)| metric.name == name).map(|(_, figures)| figures)
    }

    /// Everything, raw values included.
    pub(crate) fn to_json(&self) -> Value {
        let rows = self.figures().map(|(metric, figures)| {
            let values = self.values.get(metric.name);
            let row = json!({
                "unit": metric.unit, "p50": figures.p50, "p90": figures.p90, "values": values,
            });
            (metric.name.to_owned(), row)
        });
        Value::Object(rows.collect())
    }
}

/// What the values of one metric come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// Half the values are as good or better.
    pub(crate) p50: f64,
    /// Nine in ten values are as good or better.
    pub(crate) p90: f64,
    /// How many values there are.
    pub(crate) count: usize,
}

impl Figures {
    fn of(values: &[f64], better: Better) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if better == Better::Higher {
            sorted.reverse();
        }
        // The nearest rank: a value that was measured, none made up between two.
        let rank = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(index).copied()
        };
        Some(Self { p50: rank(50)?, p90: rank(90)?, count: sorted.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        for (count, p50, p90) in [(1_u32, 1.0, 1.0), (2, 1.0, 2.0), (10, 5.0, 9.0), (11, 6.0, 10.0)]
        {
            let values: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let figures = Figures::of(&values, Better::Lower).unwrap();
            assert_eq!((figures.p50, figures.p90), (p50, p90), "{count} values");
        }
        let rates = Figures::of(&[1.0, 2.0, 3.0, 4.0], Better::Higher).unwrap();
        assert_eq!((rates.p50, rates.p90), (3.0, 1.0));
        assert!(Figures::of(&[], Better::Lower).is_none());
    }

    #[test]
    fn runs_are_merged_in_the_order_of_their_metrics() {
        let (one, two) = (Metric::cost("one", "ms"), Metric::rate("two", "/s"));
        let mut first = Samples::default();
        first.push(one, 1.0);
        let mut second = Samples::default();
        second.push(two, 5.0);
        second.push(one, 3.0);
        first.merge(second);
        let names: Vec<&str> = first.figures().map(|(metric, _)| metric.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(first.figure("one").unwrap().count, 2);
    }
}
