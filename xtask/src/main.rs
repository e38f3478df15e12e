//! The developer's commands: `cargo xtask build|test|check|arrows|demo|bench|fuzz|vm-test`.
//!
//! - [`workspace`]: where the workspace and its build results lie.
//! - [`sh`]: other programs, run and checked.
//! - [`build`], [`elf`]: the release binaries in `target/dist`, the static ones proved static.
//! - [`arrows`]: who may depend on whom.
//! - [`check`], [`test`], [`packages`]: what CI runs.
//! - [`fuzz`]: what reads foreign bytes, given bytes that nobody would write.
//! - [`vm`]: suites on another kernel, with cgroup v2 only, in an emulated machine.
//! - [`perf`]: the demo and the benchmark, both from the `berth-perf` crate.
#![forbid(unsafe_code)]

mod arrows;
mod build;
mod check;
mod elf;
mod fuzz;
mod packages;
mod perf;
mod sh;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands of Berth")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the release binaries into target/dist.
    Build,
    /// Install what the tests need, then run every check and every test (as root).
    Test(test::Options),
    /// Formatting, clippy, the dependency arrows and the unit tests: no root needed.
    Check,
    /// Check who depends on whom, and that unsafe code stays in `sys`.
    Arrows,
    /// One pod through a daemon of its own, from start to finish (as root).
    Demo,
    /// Run suites on Debian's kernel with cgroup v2 in an emulated machine (as root).
    VmTest(vm::Options),
    /// Fuzz what reads foreign bytes: tars, manifests, references and so on.
    Fuzz(fuzz::Options),
    /// Measure Berth beside another CRI runtime (as root).
    Bench(perf::BenchOptions),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    match &args.command {
        Command::Build => build::dist(&workspace),
        Command::Test(options) => test::run(&workspace, options),
        Command::Check => check::quick(&workspace),
        Command::Arrows => arrows::check(&workspace),
        Command::Demo => perf::demo(&workspace),
        Command::VmTest(options) => vm::run(&workspace, options),
        Command::Fuzz(options) => fuzz::run(&workspace, options),
        Command::Bench(options) => perf::bench(&workspace, options),
    }
}
