//! Writable layers: what a container needs to have an image as its root filesystem.

pub(crate) mod view;

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ErrorKind, io_kind};
use crate::store::layer::{LayerKey, LayerRecord};
use crate::store::{Chosen, FsUsage, Image, Layout, Store, make_root, open_dir, record};
use crate::unpack::node;
use view::MergedView;

/// What went wrong with a writable layer, or reading from an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container's id cannot name a directory.
    #[error("container id {id:?} cannot name a writable layer")]
    InvalidId {
        /// The id.
        id: String,
    },
    /// The container has a writable layer on another image.
    #[error("container {id} has a writable layer on image {has}, not {wanted}")]
    Exists {
        /// The container's id.
        id: String,
        /// The image of the layer that is there.
        has: String,
        /// The image asked for.
        wanted: String,
    },
    /// The container has no writable layer.
    #[error("container {id} has no writable layer")]
    NoSnapshot {
        /// The container's id.
        id: String,
    },
    /// A file within an image is not one that can be read.
    #[error("{path:?} in image {image}: {reason}")]
    File {
        /// The path within the image.
        path: String,
        /// The image's id.
        image: String,
        /// Why not.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidId { .. } | Self::File { .. } => ErrorKind::Invalid,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::NoSnapshot { .. } => ErrorKind::NotFound,
            Self::Io { source, .. } => io_kind(source),
        }
    }

    fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path: path.clone(), source }
    }
}

/// What to mount as an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The layers, top first; at least one; no directory twice. Each is `COMMON/NAME/fs` with
    /// one common parent and a `NAME/fs` of 23 bytes at most.
    pub lower: Vec<PathBuf>,
    /// The writable layer. Its own owner and mode are those of the image's root directory.
    pub upper: PathBuf,
    /// overlayfs's work directory.
    pub work: PathBuf,
}

/// A container's claim on its image's layers, recorded beside its writable layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lease {
    version: u32,
    /// `None` where the record was lost: the writable layer is there to be removed.
    image: Option<Digest>,
    /// The image's, bottom first, and then those of its image volumes.
    pub(crate) layers: Vec<LayerKey>,
    /// The project of the writable layer, if it was made with a quota: no other's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<u32>,
}

impl Lease {
    pub(crate) const FILE: &'static str = "lease.json";

    pub(crate) fn unknown(project: Option<u32>) -> Self {
        Self { version: 1, image: None, layers: Vec::new(), project }
    }

    /// Whatever layers the container stands on, they are not known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.image.is_none()
    }

    pub(crate) fn image(&self) -> Option<&Digest> {
        self.image.as_ref()
    }
}

/// Makes the container's writable layer, or finds the one there. Blocks.
pub(crate) fn prepare(
    store: &Arc<Store>,
    container: &str,
    image: &Image,
) -> Result<Snapshot, crate::Error> {
    check_id(container)?;
    let _claim = store.claim_layers(image)?;
    if let Some(lease) = store.lease(container) {
        if lease.image.as_ref() != Some(&image.id) {
            let has = lease.image.as_ref().map_or_else(|| "unknown".to_owned(), Digest::to_string);
            let wanted = image.id.to_string();
            return Err(Error::Exists { id: container.to_owned(), has, wanted }.into());
        }
        return snapshot(store, container, image);
    }
    make(store, container, image)?;
    snapshot(store, container, image)
}

/// For those who have claimed the image's layers.
fn make(store: &Arc<Store>, container: &str, image: &Image) -> Result<(), crate::Error> {
    let home = store.layout.snapshot(container);
    let project = store.choose_project()?;
    let lease = Lease {
        version: 1,
        image: Some(image.id.clone()),
        layers: image.record.layers.clone(),
        project: project.as_ref().map(Chosen::id),
    };
    // Made aside and renamed, so that what has the container's name is whole.
    let staging = store.stage_writable()?;
    if let Some(project) = &project {
        project.claim(staging.dir()).map_err(Error::io("give a project to", staging.path()))?;
    }
    make_root(&staging.fs())?;
    let records = store.layer_records(image)?;
    set_root(store, &staging.fs(), &records)?;
    make_root(&staging.path().join("work"))?;
    let path = staging.path().join(Lease::FILE);
    record::write(&path, &lease).map_err(Error::io("write", &path))?;
    if let Some(project) = &project {
        project.limit().map_err(Error::io("limit", staging.path()))?;
    }
    std::fs::rename(staging.path(), &home).map_err(Error::io("rename into place", &home))?;
    if let Some(project) = project {
        project.keep();
    }
    store.add_lease(container, lease);
    staging.committed().map_err(Error::io("keep open", &home))?;
    Ok(())
}

/// The id becomes a directory's name.
fn check_id(container: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !container.is_empty()
        && container.len() <= 128
        && !container.starts_with('.')
        && container.bytes().all(plain)
    {
        return Ok(());
    }
    Err(Error::InvalidId { id: container.to_owned() })
}

/// The merged root shows the writable layer's own attributes: they come from the topmost layer
/// that says something of its root.
fn set_root(store: &Store, upper: &Path, records: &[Arc<LayerRecord>]) -> Result<(), crate::Error> {
    let Some(top) = records.iter().rev().find(|record| record.root_entry) else { return Ok(()) };
    let from = open_dir(&fs(store, &top.key))?;
    let to = open_dir(upper)?;
    node::copy_dir_meta(from.as_fd(), to.as_fd())
        .map_err(Error::io("copy the root's attributes to", upper))?;
    Ok(())
}

fn fs(store: &Store, key: &LayerKey) -> PathBuf {
    store.layout.layer(&key.short()).join("fs")
}

/// The layers that show, top first: none below one that hides all below it, and none twice
/// (overlayfs refuses that; the topmost place of a layer is the one that counts).
fn showing(records: &[Arc<LayerRecord>]) -> Vec<&LayerRecord> {
    let mut seen = HashSet::new();
    let mut layers = Vec::new();
    for record in records.iter().rev() {
        if seen.insert(&record.key) {
            layers.push(record.as_ref());
        }
        if record.opaque_root {
            break;
        }
    }
    layers
}

fn snapshot(store: &Store, container: &str, image: &Image) -> Result<Snapshot, crate::Error> {
    let records = store.layer_records(image)?;
    let mut lower: Vec<_> = showing(&records).iter().map(|layer| fs(store, &layer.key)).collect();
    if lower.is_empty() {
        lower.push(store.layout.layer(Layout::EMPTY).join("fs"));
    }
    let home = store.layout.snapshot(container);
    Ok(Snapshot { lower, upper: home.join("fs"), work: home.join("work") })
}

/// Claims another image's layers for the container, and names those that show, top first. Blocks.
pub(crate) fn lend(
    store: &Arc<Store>,
    container: &str,
    image: &Image,
) -> Result<Vec<PathBuf>, crate::Error> {
    check_id(container)?;
    let _claim = store.claim_layers(image)?;
    let lease = store.lease(container);
    let lease = lease.ok_or_else(|| Error::NoSnapshot { id: container.to_owned() })?;
    let mut lease = Lease::clone(&lease);
    for key in &image.record.layers {
        if !lease.layers.contains(key) {
            lease.layers.push(key.clone());
        }
    }
    let path = store.layout.snapshot(container).join(Lease::FILE);
    record::write(&path, &lease).map_err(Error::io("write", &path))?;
    store.add_lease(container, lease);
    let records = store.layer_records(image)?;
    let mut lower: Vec<_> = showing(&records).iter().map(|layer| fs(store, &layer.key)).collect();
    // overlayfs wants two where there is no upper one.
    let empty = store.layout.layer(Layout::EMPTY).join("fs");
    if lower.len() < 2 && !lower.contains(&empty) {
        lower.push(empty);
    }
    Ok(lower)
}

/// What the container has written. Blocks.
pub(crate) fn usage(store: &Store, container: &str) -> Result<FsUsage, crate::Error> {
    check_id(container)?;
    Ok(store.writable_usage(Some(container)))
}

/// Removes the container's writable layer and its claim. One that is not there is well. Blocks.
pub(crate) fn release(store: &Store, container: &str) -> Result<(), crate::Error> {
    check_id(container)?;
    store.remove_snapshot(container)?;
    Ok(())
}

/// The merged view of these layers, bottom first.
pub(crate) fn merged(store: &Store, records: &[Arc<LayerRecord>]) -> std::io::Result<MergedView> {
    let layers: Vec<_> =
        showing(records).iter().map(|l| (fs(store, &l.key), l.opaque_root)).collect();
    MergedView::open(layers.iter().map(|(path, opaque)| (path.as_path(), *opaque)))
}

/// Reads a regular file of the image, symlinks followed within it. `None` if there is no such
/// file. Blocks.
pub(crate) fn read_file(
    store: &Store,
    image: &Image,
    path: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, crate::Error> {
    let fail =
        |reason: String| Error::File { path: path.to_owned(), image: image.id.to_string(), reason };
    let records = store.layer_records(image)?;
    let view = merged(store, &records).map_err(|e| fail(e.to_string()))?;
    let found = match view.resolve(path.as_bytes()) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error) => return Err(fail(error.to_string()).into()),
    };
    // A FIFO or device must not even be opened.
    if found.file_type() != FileType::RegularFile {
        return Err(fail("is no regular file".to_owned()).into());
    }
    let file = std::fs::File::open(node::proc_path(found.fd.as_fd()));
    let mut bytes = Vec::new();
    file.and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(fail(format!("is longer than {limit} bytes")).into());
    }
    Ok(Some(bytes))
}
