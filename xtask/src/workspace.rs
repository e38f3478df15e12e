//! Where the workspace and its build results lie.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sh;

/// The workspace that this program was built from.
pub(crate) struct Workspace {
    /// The directory of the root Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// What `cargo metadata --no-deps` says.
    pub(crate) metadata: Value,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let text = sh::output(
            Command::new(cargo)
                .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
                .arg(manifest),
        )?;
        let metadata: Value = serde_json::from_str(&text).context("read cargo metadata")?;
        let directory = |key: &str| {
            metadata.get(key).and_then(Value::as_str).map(PathBuf::from).context("cargo metadata")
        };
        Ok(Self {
            root: directory("workspace_root")?,
            target: directory("target_directory")?,
            metadata,
        })
    }

    /// Where the release binaries are left.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// Where the daemon with failpoints is left.
    pub(crate) fn dist_failpoints(&self) -> PathBuf {
        self.target.join("failpoints")
    }
}

/// The triple of this machine, as rustc names it.
pub(crate) fn host_triple() -> Result<String> {
    let text = sh::output(Command::new("rustc").arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host")
}
