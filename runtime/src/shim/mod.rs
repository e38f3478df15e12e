//! The client side of a pod's shim: start it, talk to it, and clear up after one that died.
//!
//! - [`Launcher`]: starts shims inside `[shim] cgroup`.
//! - [`Shim`]: one connection. Generated message types are named only in `client`
//!   and `leash`.
//! - [`Leash`]: a connection of one exec or attach, by which its streams come.
//! - [`Process`]: the shim's process, held by a pidfd.
//! - [`Hierarchies`]: cgroups without a shim.

mod cgroups;
mod client;
mod error;
mod launch;
mod leash;
mod probe;
mod process;

pub use cgroups::{CgroupError, Hierarchies};
pub use client::{
    CreateTask, Exec, ExecResult, Exit, Inventory, Namespaces, PodRequest, Rootfs, Shim, Task,
    TaskPhase,
};
pub use error::ShimError;
pub use launch::Launcher;
pub(crate) use launch::{log_tail, resident};
pub use leash::{Ending, Ends, Leash, Open};
pub use probe::lacks_user_namespaces;
pub use process::{Process, find_by_directory, same_process, start_time};
