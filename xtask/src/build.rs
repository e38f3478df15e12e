//! The release binaries in `target/dist`, and the daemon with failpoints for the tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{self, Workspace};
use crate::{elf, sh};

/// Linked statically: the shim, which outlives every library upgrade of its host and whose
/// memory is paid per pod, and the program inside test images, which finds no library there.
pub(crate) const STATIC_PACKAGES: &[&str] = &["berth-shim", "berth-app"];
const STATIC_BINARIES: &[&str] = &["containerd-shim-berth-v1", "berth-app"];

/// A linker warning is an error here: glibc warns of getaddrinfo, getpwnam, dlopen and their
/// kin in a static program, since they would load the host's libraries at run time. Rust's own
/// linker, lld, keeps those warnings to itself.
///
/// Not position-independent: relocating its constants at start makes 168 KiB of pages private to
/// each shim, more than all else it uses. A shim reads no bytes of strangers but log output.
const STATIC_FLAGS: &str = "-Ctarget-feature=+crt-static -Crelocation-model=static \
     -Clinker-features=-lld -Clink-arg=-Wl,--fatal-warnings";

/// Builds everything in `target/dist`.
pub(crate) fn dist(workspace: &Workspace) -> Result<()> {
    daemon(workspace)?;
    statics(workspace)?;
    for binary in fs::read_dir(workspace.dist())? {
        let binary = binary?;
        println!("{:>12} bytes  {}", binary.metadata()?.len(), binary.path().display());
    }
    Ok(())
}

/// The daemon and the operator's command, and beside them the program that demo and benchmark are made of.
fn daemon(workspace: &Workspace) -> Result<()> {
    let args = ["build", "--release", "--package=berth-runtime", "--package=berth-perf"];
    sh::run(&mut sh::cargo(workspace, args))?;
    let built = workspace.target.join("release");
    install(&built, &workspace.dist(), &["berthd", "berthctl"])
}

fn statics(workspace: &Workspace) -> Result<()> {
    let triple = workspace::host_triple()?;
    let target = workspace.target.join("shim");
    sh::run(&mut static_cargo(workspace, "build", &triple, &["--profile=shim"]))?;
    let built = target.join(&triple).join("shim");
    install(&built, &workspace.dist(), STATIC_BINARIES)?;
    STATIC_BINARIES.iter().try_for_each(|name| elf::ensure_static(&workspace.dist().join(name)))
}

/// A cargo command on the static packages. With `--target` the flags stay away from build
/// scripts and procedural macros, which cannot be static; the target directory of their own
/// keeps other builds from being thrown away.
pub(crate) fn static_cargo(
    workspace: &Workspace,
    verb: &str,
    triple: &str,
    args: &[&str],
) -> Command {
    let mut command = sh::cargo(workspace, [verb, "--target", triple, "--target-dir"]);
    command.arg(workspace.target.join("shim")).args(args);
    for package in STATIC_PACKAGES {
        command.args(["--package", package]);
    }
    command.env("RUSTFLAGS", STATIC_FLAGS);
    command
}

/// The daemon that can be made to fail at each named step. A debug build with the features of
/// the workspace's tests, so that only the daemon's own crate is compiled once more.
pub(crate) fn failpoints(workspace: &Workspace) -> Result<()> {
    let args = ["build", "--workspace", "--bin=berthd", "--features=berth-runtime/failpoints"];
    sh::run(&mut sh::cargo(workspace, args))?;
    install(&workspace.target.join("debug"), &workspace.dist_failpoints(), &["berthd"])
}

/// Copies programs by rename, so that one that is running stays as it is.
fn install(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for name in names {
        let (source, fresh) = (from.join(name), to.join(format!(".{name}.new")));
        fs::copy(&source, &fresh).with_context(|| format!("copy {}", source.display()))?;
        fs::rename(&fresh, to.join(name)).with_context(|| format!("install {name}"))?;
    }
    Ok(())
}
