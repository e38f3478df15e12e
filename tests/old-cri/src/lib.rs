//! A CRI client of an older API level, made by others.
//!
//! It is generated from the .proto file inside the package k8s-cri 0.11 (about Kubernetes 1.32).
//! Tests that speak through it prove that this daemon serves a kubelet older than itself, and that
//! the project's own `api.proto` agrees with somebody else's. It links no other member.
#![forbid(unsafe_code)]

/// Kubernetes CRI, package `runtime.v1`, client only.
#[expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The compiled descriptor set of the package, as `FileDescriptorSet` bytes.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.descriptor.bin"));
