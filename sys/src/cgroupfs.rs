//! Files and directories of a cgroup file system.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::XattrFlags;

/// statfs(2) magic of a v1 hierarchy.
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
/// statfs(2) magic of the v2 hierarchy.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// What is mounted somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// A v1 hierarchy.
    V1,
    /// The v2 hierarchy.
    V2,
    /// Something else.
    Other,
}

/// What file system `path` lies on.
pub fn mounted(path: &Path) -> io::Result<Mounted> {
    let magic = rustix::fs::statfs(path)?.f_type;
    Ok(match u64::try_from(magic) {
        Ok(CGROUP_MAGIC) => Mounted::V1,
        Ok(CGROUP2_MAGIC) => Mounted::V2,
        _ => Mounted::Other,
    })
}

/// Writes a control file with one write(2), which is how the kernel takes a value.
pub fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    loop {
        match file.write(value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// The extended attribute of directories Berth made.
const MARK: &str = "trusted.berth";

/// Marks a directory as ours to remove. Gone with the directory.
pub fn mark(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::setxattr(dir, MARK, b"1", XattrFlags::empty())?)
}

/// Whether [`mark`] was here. An absent directory isn't marked.
#[must_use]
pub fn is_marked(dir: &Path) -> bool {
    let mut value = [0_u8; 8];
    rustix::fs::getxattr(dir, MARK, &mut value).is_ok()
}
