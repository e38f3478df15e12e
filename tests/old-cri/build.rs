//! Compiles the .proto file inside the package k8s-cri, with protox, without building that package:
//! cargo says where it is (and fetches it if need be), from the detached manifest in `source/`.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use serde_json::Value;

/// Inside the package.
const PROTO: &str = "v1.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=source");
    let package = package_dir(Path::new("source/Cargo.toml"), "k8s-cri")?;
    let files = protox::compile([PROTO], [package.join("proto")])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("cri.descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}

/// The directory of a package that the manifest depends on.
fn package_dir(manifest: &Path, name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let metadata = Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .output()?;
    if !metadata.status.success() {
        return Err(String::from_utf8_lossy(&metadata.stderr).into());
    }
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
    let text =
        |package: &'_ Value, key| package.get(key).and_then(Value::as_str).map(str::to_owned);
    let found = packages
        .filter(|package| text(package, "name").as_deref() == Some(name))
        .find_map(|package| text(package, "manifest_path"));
    let manifest = found.ok_or_else(|| format!("cargo metadata tells of no package {name}"))?;
    Ok(PathBuf::from(manifest).with_file_name(""))
}
