//! The words that Berth's processes speak.
//!
//! - [`cri`] (feature `cri`): Kubernetes CRI v1, generated from `cri/v1/api.proto`.
//! - [`control`] (feature `cri`): what berthctl asks, generated from `control/v1/control.proto`.
//! - [`shim`]: messages of the shim's own service, generated from `shim/v1/pod.proto`.
//! - [`ids`]: pod and container ids as types.
//! - [`paths`]: where things lie below `state`, for daemon and shim alike.
//! - [`exit`]: the exit record that a shim leaves behind for each container.
//!
//! No I/O happens here.
#![forbid(unsafe_code)]

pub mod exit;
pub mod ids;
pub mod paths;

/// Kubernetes CRI, package `runtime.v1`.
#[cfg(feature = "cri")]
#[expect(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");

    /// The compiled descriptor set of the package, as `FileDescriptorSet` bytes.
    pub const DESCRIPTOR: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/cri.v1.descriptor.bin"));
}

/// What an operator asks of the daemon, package `berth.control.v1`.
#[cfg(feature = "cri")]
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod control {
    tonic::include_proto!("berth.control.v1");
}

/// Messages of the shim's own ttrpc service and its method names.
pub mod shim {
    /// The service name on the wire.
    pub const SERVICE: &str = "berth.shim.v1.Pod";

    #[expect(missing_docs, reason = "generated code")]
    mod generated {
        include!(concat!(env!("OUT_DIR"), "/berth.shim.v1.rs"));
    }
    pub use generated::*;
}
