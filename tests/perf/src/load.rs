//! Any CRI socket: whatever of the suites its side can be told from outside.

use std::path::PathBuf;

use anyhow::{Context, Result};
use berth_proto::cri::VersionRequest;
use berth_tests::cri::Cri;
use clap::Args;

use crate::metrics::{self, Pulls, Scale, Suite, Target};
use crate::pods::Node;
use crate::report::{Report, Side};
use crate::slice::Account;
use crate::trees::Tree;

/// Whom to measure, with what.
#[derive(Args)]
pub(crate) struct Options {
    /// The CRI socket's path.
    #[arg(long)]
    socket: PathBuf,
    /// An image whose program is tests/app at /berth-app; pulled first.
    #[arg(long)]
    image: String,
    /// An image to measure pulls with; removed afterwards.
    #[arg(long)]
    pull_image: Option<String>,
    /// The cgroup parent of the pods.
    #[arg(long, default_value = "")]
    cgroup_parent: String,
    /// The cgroup directory (v2, or v1's cpuacct) that holds the runtime, shims and pods: where
    /// processor time is read, and whose processes count as the runtime's.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Programs that count as the runtime's wherever they are, by file name.
    #[arg(long, value_delimiter = ',')]
    programs: Vec<String>,
    /// The daemon's process id.
    #[arg(long)]
    daemon: Option<u32>,
    /// Where the containers' logs go.
    #[arg(long, default_value = "/tmp/berth-perf-logs")]
    logs: PathBuf,
    /// Few repetitions.
    #[arg(long)]
    quick: bool,
    /// The suites to run; all otherwise.
    #[arg(long, value_delimiter = ',')]
    suites: Vec<Suite>,
    /// Write the values there as JSON, too.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Measures, prints the table.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let cri = Cri::new(&options.socket)?;
    let version = cri.version(VersionRequest::default()).await.context("Version")?;
    let name = version.runtime_name;
    let mut target = Target {
        name: name.clone(),
        node: Node {
            cri,
            image: options.image.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            logs: options.logs.clone(),
        },
        account: options.cgroup.clone().map(Account::at),
        programs: options.programs.clone(),
        daemon: options.daemon,
        instance: None,
        pulls: Pulls(options.pull_image.iter().map(|it| (Tree::Gzip, it.clone())).collect()),
    };
    target.node.pull(&options.image).await?;
    let mut report = Report::new(vec![Side::named(&name, vec![version.runtime_version])]);
    let suites = if options.suites.is_empty() { Suite::all() } else { &options.suites };
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    for suite in suites {
        eprintln!("{suite:?} ...");
        let outcome = metrics::measure(*suite, &mut target, scale).await;
        report.add(0, *suite, outcome.map_err(|error| format!("{error:#}")));
    }
    report.print();
    if let Some(dir) = &options.out {
        println!("raw values: {}", report.write(dir)?.display());
    }
    report.verdict()
}
