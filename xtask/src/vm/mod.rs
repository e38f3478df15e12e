//! `cargo xtask vm-test`: suites on Debian's kernel in an emulated machine, with cgroup v2 only.
//!
//! - [`suites`]: what can run there, and what CI runs.
//! - [`debs`]: Debian's packages, fetched by apt and unpacked into a root of their own.
//! - [`base`]: the root's disk, the kernel and the initial file system ([`cpio`]); kept in
//!   `target/vm` until the list of packages changes.
//! - [`payload`]: the disk with Berth's programs and tests, made anew for each run.
//! - [`qemu`]: one machine's life. [`results`]: what it says on its second serial line.
//!
//! Software emulation: KVM is not to be had on every machine that runs this. A fork and exec takes
//! ten times as long there, so nothing is measured.

mod base;
mod cpio;
mod debs;
mod payload;
mod qemu;
mod results;
mod suites;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;
use crate::{build, packages, sh};
pub(crate) use results::Outcome;

/// What to run, and how.
#[derive(Args)]
pub(crate) struct Options {
    /// Every suite, not only those of CI.
    #[arg(long)]
    all: bool,
    /// With systemd as the first process, as on most nodes.
    #[arg(long)]
    systemd: bool,
    /// Take the binaries of the last build, whatever has changed since.
    #[arg(long)]
    no_build: bool,
    /// Fetch and unpack Debian's packages again.
    #[arg(long)]
    fresh: bool,
    /// A variable for the suites, as NAME=VALUE.
    #[arg(long)]
    set: Vec<String>,
    /// The limit of each suite, in place of its own.
    #[arg(long)]
    minutes: Option<u64>,
    /// Name the suites and stop.
    #[arg(long)]
    list: bool,
    /// Only these suites.
    suites: Vec<String>,
}

/// One boot.
pub(crate) struct Plan<'a> {
    suites: &'a [&'a suites::Suite],
    /// Variables, as `NAME=VALUE`.
    set: &'a [String],
    /// In place of the suites' own.
    limit: Option<Duration>,
    systemd: bool,
}

impl Plan<'_> {
    /// How long a suite may take.
    fn limit(&self, suite: &suites::Suite) -> Duration {
        self.limit.unwrap_or(Duration::from_secs(suite.seconds))
    }
}

/// Where everything of the machine lies: `target/vm`.
pub(crate) struct Place(PathBuf);

impl Place {
    fn new(workspace: &Workspace) -> Result<Self> {
        let dir = workspace.target.join("vm");
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// The command.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let chosen = suites::choose(&options.suites, options.all, options.systemd)?;
    if options.list {
        suites::print(&chosen);
        return Ok(());
    }
    if !sh::is_root()? {
        bail!("please run this as root: the machine's disk is filled with root's files");
    }
    if !options.no_build {
        build::dist(workspace)?;
        build::failpoints(workspace)?;
    }
    let outcomes = boot(workspace, &chosen, options)?;
    results::print(&outcomes);
    let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
    if failed > 0 {
        bail!("{failed} of {} suites failed in the virtual machine", outcomes.len());
    }
    Ok(())
}

/// CI's subset, on binaries that are built.
pub(crate) fn ci(workspace: &Workspace) -> Result<Vec<Outcome>> {
    let chosen = suites::choose(&[], false, false)?;
    let options = Options {
        all: false,
        systemd: false,
        no_build: true,
        fresh: false,
        set: Vec::new(),
        minutes: None,
        list: false,
        suites: Vec::new(),
    };
    boot(workspace, &chosen, &options)
}

fn boot(
    workspace: &Workspace,
    chosen: &[&suites::Suite],
    options: &Options,
) -> Result<Vec<Outcome>> {
    packages::install_for_vm()?;
    let place = Place::new(workspace)?;
    let base = base::ready(&place, options.fresh)?;
    let plan = Plan {
        suites: chosen,
        set: &options.set,
        limit: options.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        systemd: options.systemd,
    };
    let payload = payload::make(workspace, &place, &plan)?;
    qemu::run(&place, &base, &payload, &plan)
}
