//! What pods need of images and networks, in few words of our own.
//!
//! The crates behind are [`berth_image`] and [`berth_network`]; a second implementation is the
//! tests' one, which shows faults that the real ones can't.

mod images;
mod networks;

use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;

use berth_proto::ids::{ContainerId, PodId};

use crate::pod::Kind;
use crate::pod::spec::PodSpec;
use crate::shim::Rootfs;

/// A future behind a trait object.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, PortError>> + Send + 'a>>;

/// A failure in another part of the house.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct PortError {
    /// What sort of failure it is.
    pub kind: Kind,
    /// Its own words.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// An image as far as a container needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and the digest of its config.
    pub id: String,
    /// A repo digest, else the id.
    pub reference: String,
    /// How it is to be run.
    pub config: ImageConfig,
}

/// The part of an image's configuration that says how it is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `User`: `name`, `uid`, `name:group`, `uid:gid`; may be empty.
    pub user: String,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// May be empty.
    pub working_dir: String,
    /// A name or a number; may be empty.
    pub stop_signal: String,
}

/// The image store.
pub trait Images: Send + Sync + 'static {
    /// Whether the image policy lets containers be made of the image; `asked` is the caller's
    /// name for it.
    fn admit(&self, image: &Image, asked: &str) -> Result<(), PortError>;
    /// Looks an image up by id or reference. Waits for one that is being verified or repaired after
    /// a power cut; an error, if that fails or takes too long.
    fn ready<'a>(&'a self, name: &'a str) -> Pending<'a, Option<Image>>;
    /// Makes the writable layer of a container. The image's layers stay until the release.
    fn prepare<'a>(&'a self, container: &'a ContainerId, image: &'a Image) -> Pending<'a, Rootfs>;
    /// The layers of an image volume, top first: directories `COMMON/NAME/fs` with one parent.
    /// They stay until the container's writable layer, which is there, is released.
    fn lend<'a>(
        &'a self,
        container: &'a ContainerId,
        image: &'a Image,
    ) -> Pending<'a, Vec<PathBuf>>;
    /// Removes the writable layer. Ok when there is none.
    fn release<'a>(&'a self, container: &'a str) -> Pending<'a, ()>;
    /// All containers that have a writable layer.
    fn snapshots(&self) -> Vec<String>;
    /// Reads a file of the image's own tree; None when it is not there.
    fn read_file<'a>(&'a self, image: &'a Image, path: &'a str) -> Pending<'a, Option<Vec<u8>>>;
}

/// What is to be attached to a network.
#[derive(Debug, Clone)]
pub struct Attach<'a> {
    /// The pod.
    pub id: &'a PodId,
    /// Where its namespace is pinned.
    pub netns: PathBuf,
    /// What was asked for.
    pub spec: &'a PodSpec,
}

/// The networks.
pub trait Networks: Send + Sync + 'static {
    /// Attaches a pod; answers its addresses, the primary one first.
    fn add<'a>(&'a self, attach: Attach<'a>) -> Pending<'a, Vec<IpAddr>>;
    /// Undoes it, by what was recorded when it was done. Ok when there was nothing.
    fn del<'a>(&'a self, attach: Attach<'a>) -> Pending<'a, ()>;
    /// Undoes it for an id that no pod goes by any more.
    fn del_orphan<'a>(&'a self, id: &'a str) -> Pending<'a, ()>;
    /// All ids that are recorded as attached.
    fn cached(&self) -> Pending<'_, Vec<String>>;
}
