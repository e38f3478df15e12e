//! kubelet's way with pods and containers, call by call.
//!
//! The suite runs against any CRI socket; what only Berth promises is asked of Berth only
//! (`Node::is_berth`), and docs/suite-against-containerd.md says why.
#![forbid(unsafe_code)]

mod container;
mod exec;
mod limits;
mod logs;
mod mounts;
mod pod;
mod process;
mod stats;
mod stop;
