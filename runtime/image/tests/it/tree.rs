//! A file tree in memory, with the plainest possible way of applying layers one after another:
//! the oracle that mounted layers are compared with.

use std::collections::BTreeMap;

pub(crate) type Path = Vec<String>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Fifo,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None`: made without an entry, any time will do.
    pub(crate) mtime: Option<i64>,
    pub(crate) xattr: Option<Vec<u8>>,
}

impl Node {
    pub(crate) fn implicit() -> Self {
        Self { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime: None, xattr: None }
    }
}

/// What one tar entry asks for; paths as written, that is with symlinks on the way.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put(Path, Node),
    Link { path: Path, target: Path },
    Whiteout(Path),
    Opaque(Path),
}

/// Nodes by canonical path; the root is the empty one.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: BTreeMap<Path, Node>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self { nodes: BTreeMap::from([(Path::new(), Node::implicit())]) }
    }

    fn is_dir(&self, path: &[String]) -> bool {
        self.nodes.get(path).is_some_and(|node| node.kind == Kind::Dir)
    }

    /// The directory that a path leads to, symlinks followed within the tree. With `create`
    /// missing ones are made.
    pub(crate) fn resolve(&mut self, path: &[String], create: bool) -> Option<Path> {
        let mut waiting: Vec<String> = path.iter().rev().cloned().collect();
        let mut at = Path::new();
        let mut symlinks = 0;
        while let Some(name) = waiting.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(name),
            }
            match self.nodes.get(&at).map(|node| &node.kind) {
                Some(Kind::Dir) => {}
                Some(Kind::Symlink(target)) => {
                    symlinks += 1;
                    if symlinks > 40 {
                        return None;
                    }
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    waiting.extend(target.split('/').rev().map(str::to_owned));
                }
                None if create => {
                    self.nodes.insert(at.clone(), Node::implicit());
                }
                _ => return None,
            }
        }
        Some(at)
    }

    /// The place of this removal is reached through a symlink.
    pub(crate) fn is_bent(&self, op: &Op) -> bool {
        let dir = match op {
            Op::Whiteout(path) => &path[..path.len() - 1],
            Op::Opaque(path) => &path[..],
            _ => return false,
        };
        (1..=dir.len()).any(|length| {
            matches!(self.nodes.get(&dir[..length]), Some(Node { kind: Kind::Symlink(_), .. }))
        })
    }

    fn remove_below(&mut self, dir: &[String]) {
        self.nodes.retain(|path, _| path.len() <= dir.len() || !path.starts_with(dir));
    }

    fn remove(&mut self, path: &[String]) {
        self.nodes.retain(|known, _| !known.starts_with(path));
    }

    /// What the layer takes away, all of it before anything it brings; the outer first.
    pub(crate) fn take_away(&mut self, ops: &[Op]) {
        let mut removals: Vec<_> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Whiteout(path) => Some((path, false)),
                Op::Opaque(path) => Some((path, true)),
                _ => None,
            })
            .collect();
        removals.sort_by_key(|(path, opaque)| (path.len(), *opaque));
        for (path, opaque) in removals {
            if opaque {
                if let Some(dir) = self.resolve(path, false) {
                    self.remove_below(&dir);
                }
            } else if let Some(mut parent) = self.resolve(&path[..path.len() - 1], false) {
                parent.push(path[path.len() - 1].clone());
                self.remove(&parent);
            }
        }
    }

    /// What one entry brings. `false`, and nothing done, where it cannot be applied.
    pub(crate) fn bring(&mut self, op: &Op) -> bool {
        let before = self.clone();
        let done = match op {
            Op::Put(path, node) => self.put(path, node),
            Op::Link { path, target } => self.link(path, target),
            // Removals have been made; what they lie in comes to be.
            Op::Whiteout(path) => self.resolve(&path[..path.len() - 1], true).is_some(),
            Op::Opaque(path) => self.resolve(path, true).is_some(),
        };
        if !done {
            *self = before;
        }
        done
    }

    fn put(&mut self, path: &[String], node: &Node) -> bool {
        let Some((name, parent)) = path.split_last() else {
            self.nodes.insert(Path::new(), node.clone());
            return true;
        };
        let Some(mut at) = self.resolve(parent, true) else { return false };
        at.push(name.clone());
        if !(node.kind == Kind::Dir && self.is_dir(&at)) {
            self.remove(&at);
        }
        self.nodes.insert(at, node.clone());
        true
    }

    fn link(&mut self, path: &[String], target: &[String]) -> bool {
        let at = |tree: &mut Self, path: &[String], create| {
            let (name, parent) = path.split_last()?;
            let mut at = tree.resolve(parent, create)?;
            at.push(name.clone());
            Some(at)
        };
        let Some(from) = at(self, target, false) else { return false };
        let Some(to) = at(self, path, true) else { return false };
        // Making way for the link must not remove its target.
        if from.starts_with(&to) && from != to {
            return false;
        }
        let node = self.nodes.get(&from).filter(|node| node.kind != Kind::Dir).cloned();
        let Some(node) = node else { return false };
        self.remove(&to);
        self.nodes.insert(to, node);
        true
    }
}
