//! Who may depend on whom, and other rules of the house that cargo itself knows.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh;
use crate::workspace::Workspace;

/// Every member and the members it may name as a dependency of any kind (normal, build, dev).
const ARROWS: &[(&str, &[&str])] = &[
    ("berth-proto", &[]),
    ("berth-sys", &[]),
    ("berth-image", &["berth-sys"]),
    ("berth-network", &["berth-sys"]),
    ("berth-container", &["berth-sys"]),
    ("berth-runtime", &["berth-image", "berth-network", "berth-proto", "berth-sys"]),
    ("berth-shim", &["berth-container", "berth-proto", "berth-sys"]),
    ("berth-tests", &["berth-proto", "berth-old-cri"]),
    ("berth-perf", &["berth-proto", "berth-tests"]),
    ("berth-old-cri", &[]),
    ("berth-app", &[]),
    ("xtask", &[]),
];

/// The only crate with unsafe code.
const UNSAFE: &str = "berth-sys";

/// Sync and small: no async runtime may come in by any path.
const SYNC: &[&str] = &["berth-sys", "berth-container", "berth-shim"];

/// Fails with every broken rule.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let members = workspace.metadata.get("packages").and_then(Value::as_array);
    let members = members.context("cargo metadata names no packages")?;
    let mut faults = Vec::new();
    for member in members {
        faults.extend(broken_arrows(member));
        faults.extend(unsafe_roots(member)?);
    }
    for package in SYNC {
        faults.extend(async_runtime(workspace, package)?);
    }
    if !faults.is_empty() {
        bail!("the house rules are broken:\n  {}", faults.join("\n  "));
    }
    println!("arrows: {} members, all as ARCHITECTURE.md says", members.len());
    Ok(())
}

/// The member's dependencies that no arrow allows.
fn broken_arrows(member: &Value) -> Vec<String> {
    let name = text(member, "name");
    let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name} is not in the table of xtask/src/arrows.rs")];
    };
    dependencies(member)
        .filter(|target| ARROWS.iter().any(|(known, _)| known == target))
        .filter(|target| !allowed.contains(target))
        .map(|target| format!("{name} -> {target} is no arrow of the house"))
        .collect()
}

fn dependencies(member: &Value) -> impl Iterator<Item = &str> {
    let list = member.get("dependencies").and_then(Value::as_array);
    list.into_iter().flatten().map(|dependency| text(dependency, "name"))
}

/// The member's crate roots that don't forbid unsafe code.
fn unsafe_roots(member: &Value) -> Result<Vec<String>> {
    if text(member, "name") == UNSAFE {
        return Ok(Vec::new());
    }
    let mut faults = Vec::new();
    let targets = member.get("targets").and_then(Value::as_array);
    for target in targets.into_iter().flatten() {
        let path = text(target, "src_path");
        let source = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        // A build script ends before the program begins.
        if !source.contains("#![forbid(unsafe_code)]") && !path.ends_with("/build.rs") {
            faults.push(format!("{path} lacks #![forbid(unsafe_code)]"));
        }
    }
    Ok(faults)
}

/// Whether tokio is linked into the package, by the features that it asks for itself.
fn async_runtime(workspace: &Workspace, package: &str) -> Result<Option<String>> {
    let args = ["tree", "--edges=normal", "--prefix=none", "--package", package];
    let tree = sh::output(&mut sh::cargo(workspace, args))?;
    let tokio = tree.lines().any(|line| line.starts_with("tokio "));
    Ok(tokio.then(|| format!("{package} links tokio (cargo tree -p {package} -i tokio)")))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(name: &str, dependencies: &[&str]) -> Value {
        let list: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "dependencies": list })
    }

    #[test]
    fn arrows_of_the_house_pass_and_others_fail() {
        for (name, dependencies, faults) in [
            ("berth-runtime", &["berth-image", "tokio"][..], 0),
            ("berth-runtime", &["berth-shim"], 1),
            ("berth-shim", &["berth-container", "berth-runtime"], 1),
            ("berth-sys", &["libc", "berth-proto"], 1),
            ("berth-tests", &["berth-proto"], 0),
            ("berth-stranger", &[], 1),
        ] {
            let found = broken_arrows(&member(name, dependencies));
            assert_eq!(found.len(), faults, "{name} {dependencies:?}: {found:?}");
        }
    }
}
