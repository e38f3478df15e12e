//! `berthd`, the daemon, as a library; `main.rs` is its thin command line.
//!
//! - [`pod`]: the heart. One task owns one pod; [`pod::Roster`] is its front.
//! - [`spec`]: pod + container + image + host -> OCI runtime spec. Pure.
//! - [`shim`]: the client side of a pod's shim.
//! - [`store`]: records on disk. [`recover`]: records + shims + kernel -> pods.
//! - [`ports`]: what pods need of images and networks.
//! - [`stats`]: what pods and containers use.
//! - [`cri`], [`control`]: the doors for kubelet and for the operator.
//! - [`stream`]: exec, attach and port-forward: the streaming server.
//! - [`failpoint`]: named steps that tests make fail. [`clock`]: time and boot.
#![forbid(unsafe_code)]

mod bandwidth;
pub mod clock;
pub mod config;
pub mod control;
pub mod cri;
pub mod daemon;
pub mod failpoint;
pub mod metrics;
pub mod pod;
pub mod ports;
mod recover;
pub mod shim;
pub mod spec;
pub mod stats;
pub mod store;
pub mod stream;
