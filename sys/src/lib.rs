//! The kernel, safely: what Berth needs of Linux and what no ordinary crate offers as safe calls.
//!
//! Synchronous, no tokio, no state. This is the only crate of the workspace with unsafe code: one
//! operation per block, its preconditions beside it. Descriptors are close-on-exec.
//!
//! | module | what it holds |
//! |---|---|
//! | [`process`] | clone3, pidfds, waiting, execve |
//! | [`ns`] | joining and leaving namespaces |
//! | [`mount`] | detached mounts, their attributes, pivot_root |
//! | [`root`] | path walks that can't leave a root directory |
//! | [`creds`] | users, groups, capabilities, rlimits |
//! | [`pty`] | pseudo terminals |
//! | [`sock`] | message sockets that carry descriptors, sockets at long paths |
//! | [`netif`] | network interfaces |
//! | [`resident`] | a process that stays: fork away, signal descriptors, small memory |
//! | [`cgroupfs`] | one-write files and marked directories |
//! | [`bpf`] | device rules of cgroup v2 |
//! | [`fsctl`] | cutting a file system off its disk |
//! | [`quota`] | projects of directories, and their limits |

pub mod bpf;
pub mod cgroupfs;
pub mod creds;
pub mod fsctl;
pub mod mount;
pub mod netif;
pub mod ns;
pub mod process;
pub mod pty;
pub mod quota;
pub mod resident;
pub mod root;
pub mod sock;

/// The library behind most of these calls, at the version whose types this crate's signatures use.
pub use rustix;
