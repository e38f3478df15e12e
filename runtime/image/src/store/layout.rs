//! Where things lie below the store's root.
//!
//! ```text
//! lock                        held while a store is open
//! images/HEX.json             one record per image, HEX of its id
//! layers/SHORT/fs/            an unpacked layer; SHORT of its key
//! layers/SHORT/layer.json     its record
//! layers/SHORT/listing        all that is in it, with checksums
//! layers/SHORT/durable        its data is known to be on disk
//! layers/empty/fs/            what an image without layers stands on
//! rw/CONTAINER/{fs,work}      a writable layer
//! rw/CONTAINER/lease.json     which layers it stands on
//! blobs/ALGORITHM/HEX         a compressed layer that is kept (see `blobs`)
//! partial/ALGORITHM-HEX.N     what came of one, from its byte N on
//! staging/N/                  being made; removed at open
//! trash/N                     to be removed, in the background
//! ```

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Paths below one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
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

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, short: &str) -> PathBuf {
        self.layers().join(short)
    }

    /// The name of the directory that is no layer but stands for none.
    pub(crate) const EMPTY: &'static str = "empty";

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("rw")
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

    /// All directories that must exist.
    pub(crate) fn directories(&self) -> [PathBuf; 6] {
        let empty = self.layer(Self::EMPTY).join("fs");
        [self.images(), self.layers(), empty, self.snapshots(), self.staging(), self.trash()]
    }
}
