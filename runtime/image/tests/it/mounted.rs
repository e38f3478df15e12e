//! Mounting what the store prepared, and reading the tree back.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::process::Command;

use berth_image::Snapshot;

use crate::tree::{Kind, Node, Tree};

/// An overlay, unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) root: PathBuf,
}

impl Mounted {
    /// Mounts from within the layers' common parent, with relative names.
    pub(crate) fn new(at: &FsPath, snapshot: &Snapshot) -> Self {
        let root = at.to_owned();
        std::fs::create_dir_all(&root).unwrap();
        let common = snapshot.lower[0].parent().unwrap().parent().unwrap();
        let lower: Vec<_> = snapshot
            .lower
            .iter()
            .map(|path| path.strip_prefix(common).unwrap().to_str().unwrap())
            .collect();
        assert!(lower.iter().all(|name| name.len() <= 24), "{lower:?}");
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,metacopy=off",
            lower.join(":"),
            snapshot.upper.display(),
            snapshot.work.display()
        );
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&root)
            .current_dir(common)
            .status()
            .unwrap();
        assert!(status.success(), "mount with {options}");
        Self { root }
    }

    pub(crate) fn tree(&self) -> Tree {
        tree_of(&self.root)
    }
}

/// What lies in a directory.
pub(crate) fn tree_of(dir: &FsPath) -> Tree {
    let mut tree = Tree { nodes: std::collections::BTreeMap::new() };
    read(dir, &mut Vec::new(), &mut tree);
    tree
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.root).status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

fn read(path: &FsPath, at: &mut Vec<String>, tree: &mut Tree) {
    let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("listed, but {path:?}: {e}"));
    let kind = meta.file_type();
    let kind = if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        Kind::Symlink(std::fs::read_link(path).unwrap().to_str().unwrap().to_owned())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        assert!(kind.is_file(), "{path:?} is {kind:?}");
        Kind::File(std::fs::read(path).unwrap())
    };
    let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { meta.mode() & 0o7777 };
    let mut value = [0_u8; 256];
    let xattr = rustix::fs::lgetxattr(path, "trusted.berth", &mut value[..]).ok();
    let node = Node {
        mode,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: Some(meta.mtime()),
        xattr: xattr.map(|len| value[..len].to_vec()),
        kind,
    };
    let is_dir = node.kind == Kind::Dir;
    tree.nodes.insert(at.clone(), node);
    if is_dir {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            at.push(entry.file_name().to_str().unwrap().to_owned());
            read(&entry.path(), at, tree);
            at.pop();
        }
    }
}

/// Compares, times only where an entry gave one.
pub(crate) fn assert_same(mut actual: Tree, wanted: &Tree, what: &str) {
    for (path, node) in &mut actual.nodes {
        if wanted.nodes.get(path).is_none_or(|node| node.mtime.is_none()) {
            node.mtime = None;
        }
    }
    let differ: Vec<_> = actual
        .nodes
        .keys()
        .chain(wanted.nodes.keys())
        .filter(|path| actual.nodes.get(*path) != wanted.nodes.get(*path))
        .map(|p| {
            format!("/{}: {:?}, wanted {:?}", p.join("/"), actual.nodes.get(p), wanted.nodes.get(p))
        })
        .collect();
    assert!(differ.is_empty(), "{}\n{what}", differ.join("\n"));
}
