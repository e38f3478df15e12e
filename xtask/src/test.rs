//! Everything that CI checks, as root, with one summary at the end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;
use crate::{build, check, fuzz, packages, sh, vm};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out formatting, clippy and the arrows.
    #[arg(long)]
    no_lint: bool,
    /// Run CI's suites in the virtual machine, too: ten minutes more.
    #[arg(long)]
    vm: bool,
    /// Only tests whose name contains this, and none in the virtual machine.
    filter: Option<String>,
}

/// Lints, builds, tests.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !sh::is_root()? {
        bail!("please run this as root: the tests make cgroups, mounts and namespaces");
    }
    let start = Instant::now();
    packages::install()?;
    if !options.no_lint {
        check::lint(workspace)?;
    }
    build::dist(workspace)?;
    build::failpoints(workspace)?;
    let mut tally = Tally::default();
    tally.add(tests(workspace, options))?;
    if options.filter.is_none() {
        tally.add_fuzz(fuzz::ci(workspace));
    }
    if options.vm && options.filter.is_none() {
        tally.add_vm(vm::ci(workspace));
    }
    tally.report(workspace, start)
}

fn tests(workspace: &Workspace, options: &Options) -> Command {
    let mut command = sh::cargo(workspace, ["test", "--workspace", "--no-fail-fast"]);
    command.args(&options.filter);
    // Where the suites find what was built above.
    command.env("BERTH_DIST", workspace.dist());
    command.env("BERTH_DIST_FAILPOINTS", workspace.dist_failpoints());
    command
}

/// What the test programs said.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<String>,
    /// A test program, or cargo, that ended badly without saying which test failed.
    broken: Vec<String>,
}

impl Tally {
    /// Runs `cargo test`, passes its output on and counts.
    fn add(&mut self, mut command: Command) -> Result<()> {
        sh::show(&command);
        let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo test")?;
        let output = child.stdout.take().context("the tests' output")?;
        let failed_before = self.failed;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(std::io::stdout(), "{line}")?;
            self.read(&line);
        }
        let status = child.wait()?;
        if !status.success() && self.failed == failed_before {
            self.broken.push(format!("cargo test: {status}, and no test said why"));
        }
        Ok(())
    }

    /// Counts what one line of libtest's output says.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']).map(str::trim) {
                let mut words = part.split(' ');
                let count = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
                match words.next() {
                    Some("passed") => self.passed += count,
                    Some("failed") => self.failed += count,
                    Some("ignored") => self.ignored += count,
                    _ => {}
                }
            }
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    /// Counts each fuzz target as a test.
    fn add_fuzz(&mut self, outcomes: Result<Vec<fuzz::Outcome>>) {
        match outcomes {
            Ok(outcomes) => {
                for outcome in outcomes {
                    match outcome.error {
                        None => self.passed += 1,
                        Some(error) => {
                            self.failed += 1;
                            self.failures.push(format!("fuzz {}: {error}", outcome.target));
                        }
                    }
                }
            }
            Err(error) => self.broken.push(format!("fuzz: {error:#}")),
        }
    }

    /// Counts each suite of the virtual machine as a test.
    fn add_vm(&mut self, outcomes: Result<Vec<vm::Outcome>>) {
        match outcomes {
            Ok(outcomes) => {
                for outcome in outcomes {
                    println!("{}", outcome.line());
                    if outcome.passed() {
                        self.passed += 1;
                    } else {
                        self.failed += 1;
                        self.failures.push(outcome.line());
                    }
                }
            }
            Err(error) => self.broken.push(format!("the virtual machine: {error:#}")),
        }
    }

    fn report(&self, workspace: &Workspace, start: Instant) -> Result<()> {
        println!("\n=== summary, after {} s", start.elapsed().as_secs());
        for name in self.failures.iter().chain(&self.broken) {
            println!("FAILED {name}");
        }
        let failed = self.failed + u64::try_from(self.broken.len())?;
        let line = format!("{} passed, {failed} failed, {} ignored", self.passed, self.ignored);
        println!("{line}");
        // .ci/run closes with it.
        fs::write(workspace.target.join("test-summary"), format!("{line}\n"))?;
        if failed > 0 {
            bail!("{failed} tests failed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_output_is_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::works ... ok",
            "test b::fails ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s",
            "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (8, 1, 1));
        assert_eq!(tally.failures, ["b::fails"]);
        tally.add_vm(Err(anyhow::anyhow!("no qemu")));
        assert_eq!(tally.broken, ["the virtual machine: no qemu"]);
    }
}
