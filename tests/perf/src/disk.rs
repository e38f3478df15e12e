//! A file system of the benchmark's own: ext4 with a journal in a sparse file.
//!
//! What a machine's own is like cannot be known, and it may be no measure: ext4 without a journal
//! avoids inodes that were freed within the last minutes (`recently_deleted` in fs/ext4/ialloc.c),
//! so that a pull after a removal looks for one again and again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use berth_tests::host;

const SIZE: u64 = 24 << 30;

/// A mounted file system; unmounted and removed with its value.
pub(crate) struct Disk {
    image: PathBuf,
    device: String,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts it in this directory, which exists.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let (image, mount) = (dir.join("disk.img"), dir.join("disk"));
        fs::create_dir(&mount).with_context(|| format!("make {}", mount.display()))?;
        File::create_new(&image)?.set_len(SIZE)?;
        let path = text(&image)?;
        host::run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,nodiscard", path])?;
        // Direct: what is written shall not lie in the page cache twice.
        let device = host::run("losetup", &["--find", "--show", "--direct-io=on", path])?;
        let disk = Self { device: device.trim().to_owned(), image, mount };
        host::run("mount", &[&disk.device, text(&disk.mount)?])?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a daemon that was killed may still be ending.
        let unmounted = text(&self.mount).and_then(|path| host::run("umount", &["-l", path]));
        let detached = host::run("losetup", &["--detach", &self.device]);
        for error in [unmounted.err(), detached.err()].into_iter().flatten() {
            eprintln!("the benchmark's disk: {error:#}");
        }
        let _ = fs::remove_file(&self.image);
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
