//! Networks of pods: the runtime side of CNI.
//!
//! This crate knows an [`Attachment`] (an id, a network namespace, an interface name), not pods.
//!
//! - [`Networks`]: the one door: `status`, `add`, `del`, `check`, `gc`, `cached`.
//! - [`attachment`]: what is to be attached, and the words plugins are told about it.
//! - [`error`]: what can go wrong, with [`ErrorKind`].
//! - `builtin`: the network of a machine without a CNI configuration.
//! - `directory`: which configuration is in force; re-read when the directory changes.
//! - `conf`: one network configuration (a list of plugins), parsed.
//! - `plugin`: one run of one plugin.
//! - `chain`: each verb over a list of plugins.
//! - `health`: what plugins say of themselves.
//! - `result`: what a plugin answered, parsed.
//! - `cache`: the record of each attachment on disk.
//! - `work`: the tasks that outlive their callers.
//!
//! Source: the CNI specification, versions 0.3.1 to 1.1.0
//! (<https://github.com/containernetworking/cni/blob/main/SPEC.md>).
#![forbid(unsafe_code)]

pub mod attachment;
mod builtin;
mod cache;
mod chain;
mod conf;
mod directory;
pub mod error;
mod health;
mod networks;
mod plugin;
mod result;
mod work;

pub use attachment::{Attachment, Bandwidth, Dns, PortMapping, Protocol, Rate};
pub use builtin::{BridgeConfig, InvalidSubnet, KernelError, LeaseError, Subnet};
pub use error::{Error, ErrorKind, NotReady, PluginError};
pub use networks::{NetworkConfig, Networks};
pub use plugin::Verb;
pub use result::{Attached, Interface};
