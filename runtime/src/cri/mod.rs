//! The front door: Kubernetes CRI over gRPC.
//!
//! - `service`: the generated traits; which handler answers which RPC, and which are not built.
//! - `pod`, `container`, `exec`, `stream`, `image`, `stats`, `status`: the handlers, one file per
//!   family.
//! - `parse`: requests -> our specs; `render`: our snapshots -> answers; `filter`: list filters.
//! - `deadline`: the caller's time limit, for every RPC.
//! - `code`: error kind -> gRPC code; `call`: span, measurement and log line of every RPC.
//!
//! Generated CRI types are named only below this module.

mod call;
mod code;
mod container;
mod deadline;
mod exec;
mod filter;
mod image;
mod parse;
mod pod;
mod render;
#[cfg(test)]
mod samples;
mod service;
mod stats;
mod status;
mod stream;

use std::sync::Arc;

use berth_image::{ImageStore, RegistryConfig};
use berth_network::Networks;
use berth_proto::cri::image_service_server::ImageServiceServer;
use berth_proto::cri::runtime_service_server::RuntimeServiceServer;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::pod::Roster;
use crate::stats::Stats;
use crate::stream::Streams;

pub(crate) use code::of_image;
pub use deadline::Deadlines;

/// The largest message, both ways: what kubelet takes.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// All that the handlers reach.
pub struct Front {
    /// Pods and containers.
    pub roster: Arc<Roster>,
    /// Images.
    pub images: Arc<ImageStore>,
    /// How registries are reached.
    pub registry: RegistryConfig,
    /// Exec, attach, port-forward.
    pub streams: Arc<Streams>,
    /// Networks.
    pub networks: Arc<Networks>,
    /// What pods and containers use.
    pub stats: Arc<Stats>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What Status shows.
    pub config: Arc<Config>,
}

/// The two services of the CRI over one front.
#[must_use]
pub fn services(front: Arc<Front>) -> (RuntimeServiceServer<Front>, ImageServiceServer<Front>) {
    let runtime = RuntimeServiceServer::from_arc(Arc::clone(&front))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let image = ImageServiceServer::from_arc(front)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    (runtime, image)
}
