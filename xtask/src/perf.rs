//! The demo and the benchmark. Both speak CRI, and so live in `tests/perf`; here is only what
//! starts them, which keeps this program quick to build.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace::Workspace;
use crate::{build, sh};

/// How the benchmark runs.
#[derive(Args)]
pub(crate) struct BenchOptions {
    /// Passed on: see `cargo xtask bench -- --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// One pod, from start to finish.
pub(crate) fn demo(workspace: &Workspace) -> Result<()> {
    need_root("the demo makes cgroups, mounts and namespaces")?;
    build::dist(workspace)?;
    sh::run(Command::new(program(workspace)).arg("demo").arg("--dist").arg(workspace.dist()))
}

/// Berth and a peer in turn on the same images and plugin chain.
pub(crate) fn bench(workspace: &Workspace, options: &BenchOptions) -> Result<()> {
    need_root("the benchmark starts container runtimes")?;
    build::dist(workspace)?;
    let mut command = Command::new(program(workspace));
    command.arg("bench").arg("--dist").arg(workspace.dist());
    command.arg("--out").arg(workspace.target.join("bench"));
    sh::run(command.args(&options.rest))
}

fn program(workspace: &Workspace) -> std::path::PathBuf {
    workspace.target.join("release/berth-perf")
}

fn need_root(why: &str) -> Result<()> {
    if !sh::is_root()? {
        bail!("please run this as root (sudo -E cargo xtask ...): {why}");
    }
    Ok(())
}
