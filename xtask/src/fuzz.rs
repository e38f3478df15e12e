//! The fuzz targets in `fuzz/`: built with the instrumentation that libFuzzer wants, and run.
//!
//! What cargo-fuzz would do, without it: the coverage pass is part of every rustc. The sanitizers,
//! which only nightly has, are left out: the targets are safe Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::sh;
use crate::workspace::Workspace;

/// How long CI gives each target.
const CI_SECONDS: u32 = 5;
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// What to fuzz.
#[derive(Args)]
pub(crate) struct Options {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target; all, if none is named.
    target: Option<String>,
}

/// What came of one target.
pub(crate) struct Outcome {
    pub(crate) target: String,
    pub(crate) error: Option<String>,
}

/// Builds and runs the targets; a finding is an error.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let outcomes = all(workspace, options.seconds, options.target.as_deref())?;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.error.is_some()).collect();
    for outcome in &failed {
        eprintln!("FAILED {}: {}", outcome.target, outcome.error.as_deref().unwrap_or_default());
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} targets failed", failed.len()) }
}

/// The short run of CI; nothing, with the reason printed, where it cannot be built.
pub(crate) fn ci(workspace: &Workspace) -> Result<Vec<Outcome>> {
    if Command::new("c++").arg("--version").output().is_err() {
        println!("fuzz: not run, libFuzzer needs a C++ compiler; the corpus ran with the tests");
        return Ok(Vec::new());
    }
    all(workspace, CI_SECONDS, None)
}

fn all(workspace: &Workspace, seconds: u32, only: Option<&str>) -> Result<Vec<Outcome>> {
    let root = workspace.root.join("fuzz");
    let targets: Vec<_> =
        targets(&root)?.into_iter().filter(|name| only.is_none_or(|only| only == name)).collect();
    if targets.is_empty() {
        bail!("no target {} in {}", only.unwrap_or_default(), root.display());
    }
    let programs = build(workspace, &root)?;
    let one = |target: String| {
        let result = fuzz(workspace, &root, &programs, &target, seconds);
        Outcome { target, error: result.err().map(|error| format!("{error:#}")) }
    };
    Ok(targets.into_iter().map(one).collect())
}

/// Each source file is a target.
fn targets(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| name(entry.path())).collect();
    names.sort();
    Ok(names)
}

/// Builds all targets and returns where they lie. A target triple is named so that build scripts
/// and macros are not instrumented.
fn build(workspace: &Workspace, root: &Path) -> Result<PathBuf> {
    // The versions of the workspace, as far as it has the same crates.
    fs::copy(workspace.root.join("Cargo.lock"), root.join("Cargo.lock"))?;
    let triple = host()?;
    let target = workspace.target.join("fuzz");
    let mut cargo = sh::cargo(workspace, ["build", "--release", "--bins"]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target).args(["--target", &triple]);
    cargo.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(&mut cargo)?;
    Ok(target.join(triple).join("release"))
}

fn host() -> Result<String> {
    let version = sh::output(Command::new("rustc").arg("-vV"))?;
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}

/// What is found goes to `target/fuzz`; the corpus of the repository is only read.
fn fuzz(
    workspace: &Workspace,
    root: &Path,
    programs: &Path,
    target: &str,
    seconds: u32,
) -> Result<()> {
    let found = workspace.target.join("fuzz/found").join(target);
    fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let mut program = Command::new(programs.join(target));
    program.arg(&found).arg(root.join("corpus").join(target));
    program.arg(format!("-max_total_time={seconds}"));
    program.arg(format!("-artifact_prefix={}/{target}-", workspace.target.join("fuzz").display()));
    // A hang and a flood of memory are findings, too.
    program.args(["-timeout=10", "-rss_limit_mb=1024", "-max_len=65536", "-verbosity=0"]);
    program.args(["-print_final_stats=1"]);
    sh::run(&mut program)
}
