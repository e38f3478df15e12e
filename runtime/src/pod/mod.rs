//! The heart: pods, their containers, and the one task that owns each pod.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | what was asked for, without wire types |
//! | `state`, `policy` | legal moves; what a request meets; what cannot be honoured. Pure |
//! | `roster` | finds a pod's driver, reserves names, joins retries |
//! | `driver` | one pod's mailbox loop; [`snapshot`](PodSnapshot) and `publish` are what it shows |
//! | `run` `stop` `remove` `create` `start` `halt` | one operation each |
//! | `steps`, `cleanup` | steps that push their undo first, and the undoing |
//! | `exit` | how containers end |

pub mod cleanup;
mod container;
mod create;
pub(crate) mod driver;
mod error;
pub(crate) mod exit;
mod files;
mod halt;
pub(crate) mod house;
mod ids;
mod parents;
mod policy;
mod publish;
mod remove;
mod roster;
mod run;
mod snapshot;
pub mod spec;
mod start;
pub(crate) mod state;
mod steps;
mod stop;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod volumes;
mod work;

pub use error::{Error, Kind, Result};
pub use roster::{Options, Roster};
pub use snapshot::{ContainerSnapshot, ContainerState, ExecOutput, PodSnapshot, User};
