//! The harness of Berth's suites, which drive built binaries through their sockets.
//!
//! - [`node`]: one `berthd` of its own (or a private containerd, or a given endpoint).
//! - [`cri`]: the client; [`work`]: requests as kubelet would write them.
//! - [`registry`], [`image`], [`fixtures`]: a real docker-registry and images made here.
//! - [`proxy`]: the way from a node to the registry, which a test can cut.
//! - [`host`]: the network and mount namespaces a node lives in.
//! - [`stream`]: clients of exec, attach and port-forward.
//! - [`footprint`]: what belongs to a node on the machine, to be compared before and after.
//! - [`eventually`]: waiting for a condition, with a deadline.
//!
//! What the suites need: root, `docker-registry`, `busybox-static`,
//! `containernetworking-plugins`, `iproute2`, `iptables`, `util-linux`, and the binaries of
//! `cargo xtask build` (`BERTH_DIST`, default `target/dist`; the daemon with failpoints in
//! `BERTH_DIST_FAILPOINTS`, default `target/dist-failpoints`).
#![forbid(unsafe_code)]

pub mod cri;
pub mod eventually;
pub mod fixtures;
pub mod footprint;
pub mod host;
pub mod image;
pub mod node;
pub mod proxy;
pub mod registry;
pub mod stream;
pub mod tar;
pub mod work;

pub use eventually::eventually;
pub use node::Node;

/// What the suites use nearly everywhere.
pub mod prelude {
    pub use std::time::Duration;

    pub use anyhow::{Context, Result, bail, ensure};
    pub use berth_proto::cri::*;
    pub use tonic::Code;

    pub use crate::eventually::{eventually, true_within};
    pub use crate::node::{MountMode, Node};
    pub use crate::work::*;
}
