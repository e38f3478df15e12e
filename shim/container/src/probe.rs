//! Whether this machine's kernel has what a pod with a user namespace needs.

use std::os::fd::AsFd;
use std::path::Path;

use berth_sys::mount::{self, FsContext};
use rustix::fs::CWD;

use crate::error::{Error, Result, StepExt};
use crate::user::{IdMaps, IdRange, UserNamespace};

/// Makes a user namespace and maps mounts by it: of `layers`, a directory where images lie, and of
/// a tmpfs, as kubelet's volumes of secrets are (kernel 6.3). Leaves nothing. The caller must have
/// one thread.
///
/// # Errors
/// What the kernel, or the file system of `layers`, can't do.
pub fn user_namespaces(layers: &Path) -> Result<()> {
    let ranges = vec![IdRange { container: 0, host: 1 << 16, length: 1 << 16 }];
    let user = UserNamespace::create(&IdMaps { uids: ranges.clone(), gids: ranges })?;
    let what = || format!("map the ids of the layers in {}", layers.display());
    let tree = mount::clone_tree(CWD, layers, false).step(what)?;
    user.map_mount(tree.as_fd(), false, what).map_err(Error::from)?;
    let what = || "map the ids of a tmpfs".to_owned();
    let tmpfs = FsContext::open(c"tmpfs").and_then(|context| context.mount(0)).step(what)?;
    user.map_mount(tmpfs.as_fd(), false, what).map_err(Error::from)
}
