//! What is measured, one file per kind.

mod burst;
mod cycle;
mod density;
mod exec;
mod idle;
mod log;
mod memory;
pub(crate) mod pull;
mod stream;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::instance::Instance;
use crate::pods::Node;
use crate::samples::{Metric, Samples};
use crate::slice::Account;
use crate::trees::Tree;
use pull::Pull;

/// One group of measurements that share their preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// The daemon's memory before the first pod.
    Idle,
    /// Pull of an image of several gzip layers into a store that lacks it, and its removal.
    Pull,
    /// The same with Zstandard.
    PullZstd,
    /// Pull of one large layer.
    PullFat,
    /// Pull of very many small files.
    PullFiles,
    /// Ten equal pulls at once.
    PullTen,
    /// A pod's life on the host's network, step by step.
    PodHost,
    /// The same with a network of its own.
    PodCni,
    /// Pods per second with ten requests in flight.
    Burst,
    /// ExecSync of a program that ends at once.
    Exec,
    /// Throughput of exec's output and of a forwarded port.
    Stream,
    /// Log throughput, in large writes and a line at a time.
    Log,
    /// Fifty pods: lists, memory, idle processor time, restart.
    Density,
}

impl Suite {
    /// The image that it pulls.
    pub(crate) fn tree(self) -> Option<Tree> {
        Some(match self {
            Self::Pull | Self::PullTen => Tree::Gzip,
            Self::PullZstd => Tree::Zstd,
            Self::PullFat => Tree::Fat,
            Self::PullFiles => Tree::Files,
            _ => return None,
        })
    }

    /// What it pulls of which a floor can be measured.
    pub(crate) fn pull(self) -> Option<&'static Pull> {
        Some(match self {
            Self::Pull => &pull::GZIP,
            Self::PullZstd => &pull::ZSTD,
            Self::PullFat => &pull::FAT,
            Self::PullFiles => &pull::FILES,
            _ => return None,
        })
    }

    /// All, in the order of their running.
    pub(crate) fn all() -> &'static [Self] {
        Self::value_variants()
    }
}

/// A runtime that is measured.
#[derive(Debug)]
pub(crate) struct Target {
    /// The runtime's name.
    pub(crate) name: String,
    /// Its client, and how pods are run on it.
    pub(crate) node: Node,
    /// Where its processor time is counted, if that is known.
    pub(crate) account: Option<Account>,
    /// The names of programs that are the runtime's, where no cgroup tells.
    pub(crate) programs: Vec<String>,
    /// The daemon's process, if that is known.
    pub(crate) daemon: Option<u32>,
    /// The daemon, where it is ours to kill.
    pub(crate) instance: Option<Instance>,
    /// Images to pull that no pod uses.
    pub(crate) pulls: Pulls,
}

/// References of images to pull; a tree without one is left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulls(pub(crate) Vec<(Tree, String)>);

impl Pulls {
    fn get(&self, tree: Tree) -> Option<&str> {
        self.0.iter().find(|(of, _)| *of == tree).map(|(_, reference)| reference.as_str())
    }
}

/// How often things are repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Pods lived through one after the other.
    pub(crate) cycles: u32,
    /// Pods of a burst.
    pub(crate) burst: u32,
    /// Calls of one kind.
    pub(crate) calls: u32,
    /// Bytes of log.
    pub(crate) log: u64,
    /// Bytes of a stream.
    pub(crate) stream: u64,
    /// Pods that are there at once.
    pub(crate) pods: u32,
    /// Restarts and pulls.
    pub(crate) repeats: u32,
    /// How long idleness is looked at.
    pub(crate) idle: Duration,
}

impl Scale {
    /// For figures that are written down.
    pub(crate) const FULL: Self = Self {
        cycles: 50,
        burst: 100,
        calls: 200,
        log: 512 << 20,
        stream: 1_000_000_000,
        pods: 50,
        repeats: 3,
        idle: Duration::from_secs(10),
    };

    /// To see whether all works.
    pub(crate) const QUICK: Self = Self {
        cycles: 10,
        burst: 20,
        calls: 30,
        log: 64 << 20,
        stream: 200_000_000,
        pods: 10,
        repeats: 1,
        idle: Duration::from_secs(2),
    };
}

/// Runs one suite on one runtime.
pub(crate) async fn measure(suite: Suite, target: &mut Target, scale: Scale) -> Result<Samples> {
    match suite {
        Suite::Idle => idle::measure(target).await,
        Suite::Pull => pull::measure(target, &pull::GZIP, scale).await,
        Suite::PullZstd => pull::measure(target, &pull::ZSTD, scale).await,
        Suite::PullFat => pull::measure(target, &pull::FAT, scale).await,
        Suite::PullFiles => pull::measure(target, &pull::FILES, scale).await,
        Suite::PullTen => pull::ten(target, scale).await,
        Suite::PodHost => cycle::measure(target, &cycle::HOST, scale).await,
        Suite::PodCni => cycle::measure(target, &cycle::CNI, scale).await,
        Suite::Burst => burst::measure(target, scale).await,
        Suite::Exec => exec::measure(target, scale).await,
        Suite::Stream => stream::measure(target, scale).await,
        Suite::Log => log::measure(target, scale).await,
        Suite::Density => density::measure(target, scale).await,
    }
}

/// The processor time of some work: what is left after an operation's answer counts as well.
struct Clock {
    account: Option<Account>,
    start: Duration,
}

impl Clock {
    async fn start(target: &Target) -> Result<Self> {
        tokio::time::sleep(SETTLE).await;
        let account = target.account.clone();
        let start = account.as_ref().map_or(Ok(Duration::ZERO), Account::cpu)?;
        Ok(Self { account, start })
    }

    /// Notes the processor time per piece of work, in milliseconds.
    async fn note(self, samples: &mut Samples, metric: Metric, pieces: u32) -> Result<()> {
        if let Some(used) = self.used().await? {
            samples.push(metric, millis(used) / f64::from(pieces));
        }
        Ok(())
    }

    /// Processor time since the start; None where nobody counts it.
    async fn used(self) -> Result<Option<Duration>> {
        tokio::time::sleep(SETTLE).await;
        let Some(account) = &self.account else { return Ok(None) };
        Ok(Some(account.cpu()?.saturating_sub(self.start)))
    }
}

/// How long work goes on behind an answer, at most: shims that end, namespaces that go.
const SETTLE: Duration = Duration::from_millis(300);

/// A time as tables show it.
fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
