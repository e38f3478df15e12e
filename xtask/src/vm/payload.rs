//! The disk with Berth's programs, its test programs and the plan: `/berth` in the machine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::suites::{Program, Suite};
use super::{Place, Plan, base};
use crate::sh;
use crate::workspace::Workspace;

/// What the machine runs at its start, by name.
const GUEST: &[(&str, &str)] = &[
    ("init.sh", include_str!("guest/init.sh")),
    ("run.sh", include_str!("guest/run.sh")),
    ("berth-vm.service", include_str!("guest/berth-vm.service")),
];

/// Builds the suites' programs and makes the disk.
pub(crate) fn make(workspace: &Workspace, place: &Place, plan: &Plan<'_>) -> Result<PathBuf> {
    let dir = place.join("payload");
    let _ = fs::remove_dir_all(&dir);
    for part in ["guest", "dist", "dist-failpoints", "tests", "suites"] {
        fs::create_dir_all(dir.join(part))?;
    }
    for (name, content) in GUEST {
        write(&dir.join("guest").join(name), content)?;
    }
    for (from, to) in [(workspace.dist(), "dist"), (workspace.dist_failpoints(), "dist-failpoints")]
    {
        copy_programs(&from, &dir.join(to))?;
    }
    for (program, file) in built(workspace, plan.suites)? {
        strip(&file, &dir.join("tests").join(program.file_name()))?;
    }
    let mut lines = String::new();
    for suite in plan.suites {
        write(&dir.join("suites").join(suite.name), &suite.script(plan.set))?;
        lines.push_str(&format!("{} {}\n", suite.name, plan.limit(suite).as_secs()));
    }
    write(&dir.join("plan"), &lines)?;
    let disk = place.join("payload.img");
    base::disk(&disk, "1G", Some(&dir))?;
    Ok(disk)
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn copy_programs(from: &Path, to: &Path) -> Result<()> {
    let built = fs::read_dir(from);
    let built = built.with_context(|| format!("{}: build first", from.display()))?;
    for entry in built {
        let path = entry?.path();
        strip(&path, &to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Debug information is most of a test program, and would only make the disk slower to fill.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    let status = strip.arg("--strip-debug").arg("-o").arg(to).arg(from).status();
    if !status.context("run strip")?.success() {
        bail!("strip {} failed", from.display());
    }
    Ok(())
}

/// Builds the test programs with the features of the whole workspace, as `cargo xtask test` does,
/// so that nothing is compiled twice.
fn built(workspace: &Workspace, suites: &[&Suite]) -> Result<Vec<(Program, PathBuf)>> {
    let programs: BTreeSet<Program> = suites.iter().filter_map(|suite| suite.program).collect();
    if programs.is_empty() {
        // Without a name, cargo would build every test.
        return Ok(Vec::new());
    }
    let mut cargo = sh::cargo(workspace, ["test", "--workspace", "--no-run", "--quiet"]);
    cargo.arg("--message-format=json-render-diagnostics");
    for program in &programs {
        cargo.args(["--test", program.target]);
    }
    let artifacts = sh::output(&mut cargo)?;
    programs
        .into_iter()
        .map(|program| {
            let file = artifacts.lines().find_map(|line| executable(line, program));
            Ok((program, file.with_context(|| format!("cargo built no {program:?}"))?))
        })
        .collect()
}

/// The test program that this line of cargo's messages tells of, if it is `program`.
fn executable(line: &str, program: Program) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = message.get("target")?;
    let kind = target.get("kind")?.get(0)?.as_str()?;
    let name = target.get("name")?.as_str()?;
    let package = message.get("package_id")?.as_str()?;
    let same = kind == "test" && name == program.target && of(package, program.package);
    let test = message.get("profile")?.get("test")?.as_bool()?;
    let file = message.get("executable")?.as_str()?;
    (same && test).then(|| PathBuf::from(file))
}

/// Whether cargo's id of a package (`path+file:///DIR#NAME@VERSION`, and without `NAME@` where it
/// is the directory's) is of that directory.
fn of(id: &str, dir: &str) -> bool {
    id.split('#').next().is_some_and(|url| url.ends_with(&format!("/{dir}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/shim/container#berth-container@0.1.0","target":{"kind":["test"],"name":"engine"},"profile":{"test":true},"executable":"/t/engine-1"}"#;
        let engine = Program { package: "shim/container", target: "engine" };
        assert_eq!(executable(line, engine), Some(PathBuf::from("/t/engine-1")));
        let other = Program { package: "tests", target: "engine" };
        assert_eq!(executable(line, other), None, "of another package");
        assert_eq!(executable("not JSON", engine), None);
    }
}
