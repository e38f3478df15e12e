//! The operator's door: what berthctl asks beyond CRI, on the same socket.
//!
//! - `service`: the generated trait; which handler answers which RPC.
//! - `image`: pulls and names. `archive`: archives. `upkeep`: fsck, disk usage, collection.
//! - `render`: our snapshots -> answers.
//! - `answer`: an answer that comes in parts, and whose work ends with it.
//! - `fault`: what went wrong -> a gRPC status.
//!
//! Generated control types are named only below this module.

mod answer;
mod archive;
mod fault;
mod image;
mod render;
mod service;
mod upkeep;

use std::sync::Arc;

use berth_proto::control::control_server::ControlServer;

use crate::cri::Front;

/// The control service over the daemon's front.
#[must_use]
pub fn service(front: Arc<Front>) -> ControlServer<Control> {
    ControlServer::new(Control { front })
}

/// Answers the RPCs of `berth.control.v1`.
pub struct Control {
    front: Arc<Front>,
}
