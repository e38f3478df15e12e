//! What pods and containers use: cgroups, writable layers, network interfaces.

pub mod cgroup;
pub mod network;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_image::{FsUsage, ImageStore};

use crate::clock;
use crate::shim::Hierarchies;
use cgroup::Figures;

/// A writable layer is walked at most this often: kubelet asks every ten seconds or so, and a
/// layer may have a million files.
const WALK: Duration = Duration::from_secs(10);
/// Two looks that are closer than this say nothing of the use of a CPU.
const CLOSE: Duration = Duration::from_millis(100);

/// Figures with the time at which they were read.
#[derive(Debug, Clone)]
pub struct Reading<T> {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// What was read.
    pub value: T,
}

/// A cgroup's figures, and how much CPU it used since the last look.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// The figures.
    pub figures: Figures,
    /// Billionths of a core; none at the first look.
    pub nano_cores: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    cpu: u64,
    nano_cores: Option<u64>,
}

/// Reads figures, and remembers what rates need.
pub struct Stats {
    hierarchies: Hierarchies,
    looks: Mutex<HashMap<String, Look>>,
    layers: Mutex<HashMap<String, (Instant, Reading<FsUsage>)>>,
}

impl Stats {
    /// For the cgroups of this machine.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            hierarchies: Hierarchies::probe()?,
            looks: Mutex::default(),
            layers: Mutex::default(),
        })
    }

    /// A cgroup's figures; none if it is not there (any more). Reads a few files of the kernel's.
    pub fn usage(&self, cgroup: &str) -> Option<Reading<Usage>> {
        let figures = cgroup::read(&self.hierarchies, cgroup)
            .inspect_err(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(cgroup, %error, "figures can't be read");
                }
            })
            .ok()?;
        let nano_cores = figures.cpu.and_then(|cpu| self.rate(cgroup, cpu));
        Some(Reading { at: clock::now(), value: Usage { figures, nano_cores } })
    }

    /// The processes in a cgroup and below it.
    pub fn processes(&self, cgroup: &str) -> u64 {
        cgroup::processes(&self.hierarchies, cgroup)
    }

    fn rate(&self, cgroup: &str, cpu: u64) -> Option<u64> {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, last) = (Instant::now(), looks.get(cgroup).copied());
        let passed = last.map(|last| now.duration_since(last.at));
        if let (Some(last), Some(passed)) = (last, passed)
            && passed < CLOSE
        {
            return last.nano_cores;
        }
        let used = last.map(|last| u128::from(cpu.saturating_sub(last.cpu)));
        let rate = used.zip(passed).map(|(used, passed)| {
            let rate = used.saturating_mul(1_000_000_000) / passed.as_nanos().max(1);
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
        looks.insert(cgroup.to_owned(), Look { at: now, cpu, nano_cores: rate });
        rate
    }

    /// What a container has written, as of some seconds ago at most.
    pub async fn writable(&self, images: &ImageStore, container: &str) -> Option<Reading<FsUsage>> {
        let known = {
            let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            layers.get(container).cloned()
        };
        if let Some((at, reading)) = known
            && at.elapsed() < WALK
        {
            return Some(reading);
        }
        let value = images.snapshot_usage(container).await.ok()?;
        let reading = Reading { at: clock::now(), value };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(container.to_owned(), (Instant::now(), reading.clone()));
        Some(reading)
    }

    /// Forgets what is no more.
    pub fn keep_only(&self, cgroups: &HashSet<String>, containers: &HashSet<String>) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|cgroup, _| cgroups.contains(cgroup));
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|container, _| containers.contains(container));
    }
}
