//! Berth and a peer on the same machine, in turn: one, other, other, one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use berth_tests::image::Built;
use berth_tests::registry::Registry;
use clap::{Args, ValueEnum};

use crate::cni::Chain;
use crate::disk::Disk;
use crate::images;
use crate::instance::{self, Instance, Kind, Settings};
use crate::metrics::pull::Pull;
use crate::metrics::{self, Pulls, Scale, Suite, Target};
use crate::pods::Node;
use crate::report::{Report, Side};
use crate::samples::Samples;
use crate::trees::Tree;

/// What is compared, and how long.
#[derive(Args)]
pub(crate) struct Options {
    /// The runtime beside Berth.
    #[arg(long, default_value = "containerd")]
    peer: Peer,
    /// Where the peer's programs lie; PATH otherwise.
    #[arg(long)]
    peer_bin: Option<PathBuf>,
    /// Measure one side alone.
    #[arg(long)]
    only: Option<Which>,
    /// Few repetitions: to see whether all works, not for figures.
    #[arg(long)]
    quick: bool,
    /// The suites to run; all otherwise.
    #[arg(long, value_delimiter = ',')]
    suites: Vec<Suite>,
    /// Where berthd, its shim and the test program lie.
    #[arg(long, default_value = "target/dist")]
    dist: PathBuf,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Containerd,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Berth,
    Containerd,
}

impl Options {
    fn kinds(&self) -> Result<Vec<Kind>> {
        let peer = || match self.peer {
            Peer::Containerd => Kind::Containerd { bin: self.peer_bin.clone() },
        };
        Ok(match self.only {
            None => vec![Kind::berth(&self.dist)?, peer()],
            Some(Which::Berth) => vec![Kind::berth(&self.dist)?],
            Some(Which::Containerd) => vec![peer()],
        })
    }

    fn suites(&self) -> &[Suite] {
        if self.suites.is_empty() { Suite::all() } else { &self.suites }
    }

    fn scale(&self) -> Scale {
        if self.quick { Scale::QUICK } else { Scale::FULL }
    }
}

/// Measures, prints the table, writes the JSON.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let ground = Ground::prepare(options)?;
    let mut targets = Vec::new();
    let kinds = options.kinds()?;
    let mut report = Report::new(kinds.iter().map(Side::of).collect());
    for kind in kinds {
        targets.push(ground.target(kind).await?);
    }
    for suite in options.suites() {
        // There and back again: a drift of the machine's speed hits both sides alike.
        let there = 0..targets.len();
        let back = if targets.len() > 1 { there.clone().rev() } else { (0..0).rev() };
        for index in there.chain(back) {
            let Some(target) = targets.get_mut(index) else { continue };
            eprintln!("{suite:?} on {} ...", target.name);
            let outcome = metrics::measure(*suite, target, options.scale()).await;
            if outcome.is_err() {
                target.node.sweep().await.context("clean up after a failed suite")?;
            }
            report.add(index, *suite, outcome.map_err(|error| format!("{error:#}")));
        }
        if let Some(pull) = suite.pull() {
            eprintln!("{suite:?}, its floor ...");
            report.add_floor(ground.floor(pull, options.scale()).await?);
        }
    }
    report.print();
    let file = report.write(&options.out)?;
    println!("raw values: {}", file.display());
    for target in targets {
        stop(target).await?;
    }
    report.verdict()
}

/// Ends a daemon. Ours must have left nothing behind; the peer's ways are its own.
async fn stop(target: Target) -> Result<()> {
    let Some(instance) = target.instance else { return Ok(()) };
    if matches!(instance.kind(), Kind::Berth { .. }) {
        let left = instance.left_behind().await?;
        ensure!(left.is_empty(), "{} left behind:\n  {}", target.name, left.join("\n  "));
    }
    instance.stop().await
}

/// What both sides stand on: images in a registry, a plugin chain, a directory.
struct Ground {
    chain: Chain,
    registry: Registry,
    trees: Vec<(Tree, Built)>,
    // In this order: the disk is mounted in the directory.
    disk: Disk,
    dir: Scratch,
}

const REPOSITORY: &str = "berth/perf";

impl Ground {
    fn prepare(options: &Options) -> Result<Self> {
        let program = options.dist.join("berth-app");
        let dir = std::env::temp_dir().join(format!("berth-perf-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let dir = Scratch(dir);
        let disk = Disk::new(&dir.0)?;
        let registry = Registry::http()?;
        let mut ground = Self { chain: Chain::new(), registry, disk, dir, trees: Vec::new() };
        ground.push("app", &images::app(&program)?)?;
        ground.push("pause", &images::pause(&program)?)?;
        let wanted = |tree| options.suites().iter().any(|suite| suite.tree() == Some(tree));
        for tree in Tree::ALL.into_iter().filter(|tree| wanted(*tree)) {
            eprintln!("build the image {} ...", tree.tag());
            let image = tree.build(options.quick)?;
            ground.push(tree.tag(), &image)?;
            ground.trees.push((tree, image));
        }
        ground.write_hosts()?;
        Ok(ground)
    }

    fn push(&self, tag: &str, image: &Built) -> Result<()> {
        self.registry.push(REPOSITORY, tag, image)
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.registry.address())
    }

    async fn floor(&self, pull: &'static Pull, scale: Scale) -> Result<Samples> {
        let image = self.trees.iter().find(|(tree, _)| *tree == pull.tree());
        let (_, image) = image.context("the image of a pull")?;
        metrics::pull::floor(pull, image, self.disk.path(), scale).await
    }

    fn pulls(&self) -> Pulls {
        Pulls(self.trees.iter().map(|(tree, _)| (*tree, self.image(tree.tag()))).collect())
    }

    /// The registry speaks plain HTTP, which both sides must be told in the same file.
    fn write_hosts(&self) -> Result<()> {
        let address = self.registry.address();
        let dir = self.registries().join(address.to_string());
        fs::create_dir_all(&dir)?;
        let text = format!(
            "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n"
        );
        Ok(fs::write(dir.join("hosts.toml"), text)?)
    }

    fn registries(&self) -> PathBuf {
        self.dir.0.join("certs.d")
    }

    async fn target(&self, kind: Kind) -> Result<Target> {
        let name = kind.name().to_owned();
        let instance = format!("berth-perf-{}-{name}", std::process::id());
        let dir = self.disk.path().join(&instance);
        self.chain.write(&instance::net_dir(&dir), &name)?;
        let settings = Settings {
            registries: Some(self.registries()),
            pause: self.image("pause"),
            ..Settings::default()
        };
        let instance = Instance::start(kind, self.disk.path(), &instance, &settings).await?;
        let logs = dir.join("logs");
        let target = target(name, instance, self.image("app"), &logs, self.pulls());
        target.node.pull(&target.node.image).await?;
        Ok(target)
    }
}

fn target(name: String, instance: Instance, image: String, logs: &Path, pulls: Pulls) -> Target {
    let node = Node {
        cri: instance.cri().clone(),
        image,
        cgroup_parent: instance.slice().path("pods"),
        logs: logs.to_owned(),
    };
    Target {
        name,
        node,
        account: Some(instance.slice().account().clone()),
        programs: Vec::new(),
        daemon: Some(instance.pid()),
        instance: Some(instance),
        pulls,
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.chain.remove();
    }
}

/// A directory that goes with its value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What one side measured.
pub(crate) type Outcome = Result<Samples, String>;
