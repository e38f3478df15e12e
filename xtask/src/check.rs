//! Checks without root: formatting, lints, arrows, unit tests.

use anyhow::Result;

use crate::workspace::{self, Workspace};
use crate::{arrows, build, sh};

/// What a developer runs before a commit.
pub(crate) fn quick(workspace: &Workspace) -> Result<()> {
    lint(workspace)?;
    let args = ["test", "--workspace", "--lib", "--bins", "--exclude=berth-tests"];
    sh::run(&mut sh::cargo(workspace, args))
}

/// Formatting, clippy on every target, the shim once more the way it is linked, the arrows.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    sh::run(&mut sh::cargo(workspace, ["fmt", "--all", "--check"]))?;
    arrows::check(workspace)?;
    let args = ["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"];
    sh::run(&mut sh::cargo(workspace, args))?;
    let failpoints = ["clippy", "--workspace", "--features=berth-runtime/failpoints"];
    sh::run(sh::cargo(workspace, failpoints).args(["--", "-Dwarnings"]))?;
    let triple = workspace::host_triple()?;
    sh::run(build::static_cargo(workspace, "clippy", &triple, &[]).args(["--", "-Dwarnings"]))
}
