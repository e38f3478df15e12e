//! The heart: pods, their containers, and the one task that owns each pod.

mod error;
mod roster;
mod snapshot;
pub mod spec;

pub use error::{Error, Kind, Result};
pub use roster::{Options, Roster};
pub use snapshot::{ContainerSnapshot, ContainerState, ExecOutput, PodSnapshot, User};
