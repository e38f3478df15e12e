//! Compiles the .proto files with protox: no protoc needed.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cri");
    println!("cargo:rerun-if-changed=control");
    println!("cargo:rerun-if-changed=shim");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let shim = protox::compile(["shim/v1/pod.proto"], ["."])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(shim)?;

    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        let cri = protox::compile(["cri/v1/api.proto"], ["."])?;
        std::fs::write(out.join("cri.v1.descriptor.bin"), cri.encode_to_vec())?;
        tonic_prost_build::configure().compile_fds(cri)?;
        let control = protox::compile(["control/v1/control.proto"], ["."])?;
        tonic_prost_build::configure().bytes(".").compile_fds(control)?;
    }
    Ok(())
}
