//! Directories of one hierarchy: made with a mark, removed bottom up, parents by their mark.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_sys::cgroupfs;

/// What the last component of a path to make may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// It must not exist.
    New,
    /// It may exist.
    Any,
}

/// How often a parent that vanishes under our feet is made again: another pod's end may remove a
/// shared parent between our look and our mkdir.
const RETRIES: usize = 16;

/// Makes `path` below `root`; `prepare` sees every directory on the way, made or found.
pub(super) fn make(
    root: &Path,
    path: &Path,
    leaf: Leaf,
    prepare: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..RETRIES {
        match make_once(root, path, leaf, prepare) {
            Err(err) if err.kind() == io::ErrorKind::NotFound && root.exists() => {}
            other => return other,
        }
    }
    make_once(root, path, leaf, prepare)
}

fn make_once(
    root: &Path,
    path: &Path,
    leaf: Leaf,
    prepare: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut dir = root.to_owned();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        dir.push(part);
        let last = parts.peek().is_none();
        match fs::create_dir(&dir) {
            Ok(()) => cgroupfs::mark(&dir)?,
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            Err(err) if last && leaf == Leaf::New => return Err(err),
            Err(_) => {}
        }
        prepare(&dir)?;
    }
    Ok(())
}

/// Removes the marked directory `path` with all below it, then parents as long as they are marked
/// and empty.
pub(super) fn remove(root: &Path, path: &Path, patience: Duration) -> io::Result<()> {
    let leaf = root.join(path);
    if cgroupfs::is_marked(&leaf) {
        let deadline = Instant::now() + patience;
        remove_below(&leaf, deadline)?;
    } else if leaf.exists() {
        return Ok(());
    }
    for parent in leaf.ancestors().skip(1).take_while(|dir| *dir != root) {
        // Busy: another child, or one being made this moment, keeps it.
        if !cgroupfs::is_marked(parent) || fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

fn remove_below(dir: &Path, deadline: Instant) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path(), deadline)?;
        }
    }
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel takes a dying process out of its cgroup a moment after its end is told.
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(500));
            }
            Err(err) => return Err(err),
        }
    }
}
