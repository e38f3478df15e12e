//! Where things lie below the store's root, and below that of the writable layers.
//!
//! ```text
//! lock                        held while a store is open
//! images/HEX.json             one record per image, HEX of its id
//! images/HEX.next.json        what takes its place once it is on disk
//! layers/SHORT/fs/            an unpacked layer; SHORT of its key
//! layers/SHORT/layer.json     its record
//! layers/SHORT/listing        what it consists of, with checksums
//! layers/SHORT/durable        its data is known to be on disk
//! layers/SHORT/damaged        it is known not to be what it should
//! layers/empty/fs/            what an image without layers stands on
//! retired/N/                  a damaged layer that was replaced while containers had it mounted
//! blobs/, partial/            kept and half received blobs
//! rw/CONTAINER/{fs,work}      a writable layer
//! rw/CONTAINER/lease.json     which layers it stands on
//! blobs/ALGORITHM/HEX         a compressed layer that is kept (see `blobs`)
//! partial/ALGORITHM-HEX.N     what came of one, from its byte N on
//! staging/N/                  being made; removed at open
//! trash/N                     to be removed, in the background
//! ```
//!
//! The writable layers may lie on another file system: then `rw`, and a `staging` and a `trash`
//! of their own, are below another root.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Paths below the two roots, which may be one.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    writable: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf, writable: PathBuf) -> Self {
        Self { root, writable }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where writable layers lie; the same as the root unless configured otherwise.
    pub(crate) fn writable_root(&self) -> &Path {
        &self.writable
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, id: &Digest) -> PathBuf {
        self.images().join(format!("{}.json", id.hex()))
    }

    /// A later record of the image, not yet known to be on disk.
    pub(crate) fn next_image(&self, id: &Digest) -> PathBuf {
        self.images().join(format!("{}.next.json", id.hex()))
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, short: &str) -> PathBuf {
        self.layers().join(short)
    }

    /// The name of the directory that is no layer but stands for none.
    pub(crate) const EMPTY: &'static str = "empty";

    pub(crate) fn retired(&self) -> PathBuf {
        self.root.join("retired")
    }

    /// Blobs kept whole, and those half received.
    pub(crate) fn blob_dirs(&self) -> [PathBuf; 2] {
        [self.root.join("blobs"), self.root.join("partial")]
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.writable.join("rw")
    }

    pub(crate) fn snapshot(&self, container: &str) -> PathBuf {
        self.snapshots().join(container)
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Beside the writable layers, so that these can be renamed.
    pub(crate) fn writable_staging(&self) -> PathBuf {
        self.writable.join("staging")
    }

    pub(crate) fn writable_trash(&self) -> PathBuf {
        self.writable.join("trash")
    }

    /// All trash directories, each once.
    pub(crate) fn all_trash(&self) -> Vec<PathBuf> {
        distinct([self.trash(), self.writable_trash()])
    }

    /// All staging directories, each once.
    pub(crate) fn all_staging(&self) -> Vec<PathBuf> {
        distinct([self.staging(), self.writable_staging()])
    }

    /// What must be on disk before what was moved to the trash is removed.
    pub(crate) fn homes(&self) -> [PathBuf; 4] {
        [self.images(), self.layers(), self.retired(), self.snapshots()]
    }

    /// The trash on the file system of `path`.
    pub(crate) fn trash_for(&self, path: &Path) -> PathBuf {
        let writable =
            path.starts_with(self.snapshots()) || path.starts_with(self.writable_staging());
        if writable { self.writable_trash() } else { self.trash() }
    }

    /// All directories that must exist, each after what it lies in.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let mut all = vec![self.root.clone(), self.writable.clone()];
        all.extend(self.homes());
        all.extend(self.all_staging());
        all.extend(self.all_trash());
        all.push(self.layer(Self::EMPTY));
        all.push(self.layer(Self::EMPTY).join("fs"));
        all
    }
}

fn distinct<const N: usize>(paths: [PathBuf; N]) -> Vec<PathBuf> {
    let mut all = Vec::from(paths);
    all.dedup();
    all
}
