//! The container engine: creates, starts, signals, executes in and deletes OCI containers.
//!
//! It knows no CRI and keeps no state on disk: the caller (the pod's shim, or a one-shot command
//! line) owns the values below and decides what to write down.
//!
//! | module | what it holds |
//! |---|---|
//! | [`pod`] | the namespaces containers share, and the small mount namespace they grow from |
//! | [`container`] | one container: create, start gate, signals, end |
//! | [`exec`] | one command inside a running container |
//! | [`user`] | user namespaces and what they map |
//! | [`probe`] | whether this machine has user namespaces to give |
//! | [`cgroup`] | the hierarchies of this machine and one container's place in them |
//! | [`error`] | what can go wrong, by kind |
//!
//! # How a caller drives it
//! Children are made by a plain fork, so **the calling process must have one thread** (checked;
//! [`ErrorKind::Internal`] otherwise). Nothing here blocks on a container: [`Container::create`]
//! and [`Exec::spawn`] return at once; the caller polls [`Container::sync_fd`] (while there is
//! one) and [`Container::pidfd`] for readability and calls `advance` when either is readable.
//! [`Container::create_blocking`] and [`Exec::spawn_blocking`] do that loop for one-shot use.
//!
//! An `Err` from `create`, `advance` before [`Progress::Ready`], or `spawn` means that everything
//! the call made is gone again: the child is dead and reaped, its cgroup removed.
#![forbid(unsafe_code)]

pub mod cgroup;
mod child;
pub mod container;
pub mod error;
pub mod exec;
mod exit;
mod launch;
mod plan;
pub mod pod;
pub mod probe;
mod rootfs;
mod talk;
pub mod user;
mod wire;

pub use cgroup::{Cgroup, Layout};
pub use container::{Container, CreateRequest, Progress, Stdio};
pub use error::{Error, ErrorKind, Result};
pub use exec::{Exec, ExecRequest};
pub use exit::ExitStatus;
pub use pod::{PodNamespaces, PodOptions};
pub use rootfs::{Overlay, Rootfs};
pub use user::{IdMaps, IdRange, UserNamespace};
