//! Finding the directory of an entry: name by name, symlinks resolved within the root.

use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::apply::{Applier, Place, is_whiteout_at, stat_at};
use super::facts::join;
use super::{Error, entry_error, node, write_error};
use crate::snapshot::view::components;

/// As the kernel's own limit.
const MAX_SYMLINKS: usize = 40;

/// What a name on the way turned out to be.
enum Step {
    Into(Place),
    Follow(Vec<u8>),
    Missing,
}

impl Applier<'_> {
    /// The directory that `parts` lead to. With `create`, what is missing is made and noted as
    /// implicit, and the layers below (where known) have their say; without, missing is `None`.
    pub(super) fn walk(&mut self, parts: &[Vec<u8>], create: bool) -> Result<Option<Place>, Error> {
        let mut waiting: Vec<Vec<u8>> = parts.iter().rev().cloned().collect();
        let mut stack = vec![self.root_place()];
        let mut symlinks = 0;
        while let Some(name) = waiting.pop() {
            if name == b".." {
                // `..` at the root is the root.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let Some(here) = stack.last().cloned() else { break };
            if stack.len() > self.limits.path_depth {
                return Err(self.too_deep());
            }
            match self.step(&here, &name, create)? {
                Step::Into(place) => stack.push(place),
                Step::Missing => return Ok(None),
                Step::Follow(target) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(entry_error(&join(&here.path, &name), "is a loop of symlinks"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    waiting.extend(components(&target).into_iter().rev());
                }
            }
        }
        Ok(stack.pop())
    }

    pub(super) fn root_place(&self) -> Place {
        Place { dir: self.root.clone(), path: Vec::new() }
    }

    /// The directory for an entry. Most entries lie in or near the directory of the last, so the
    /// directories on the way there are kept open.
    pub(super) fn place(&mut self, parts: &[Vec<u8>]) -> Result<Place, Error> {
        // With the layers below in view, any new node may put a symlink there out of sight.
        if self.below.is_some() {
            return self.walk_whole(parts);
        }
        // While on the way nothing that is kept can change: it lies above.
        let mut trail = std::mem::take(&mut self.trail);
        let shared = trail.iter().zip(parts).take_while(|((name, _), part)| name == *part).count();
        trail.truncate(shared);
        if parts.len() > self.limits.path_depth {
            return Err(self.too_deep());
        }
        for name in parts.iter().skip(shared) {
            let here = trail.last().map_or_else(|| self.root_place(), |(_, place)| place.clone());
            match self.step(&here, name, true)? {
                Step::Into(place) => trail.push((name.clone(), place)),
                Step::Follow(_) | Step::Missing => {
                    self.trail = trail;
                    return self.walk_whole(parts);
                }
            }
        }
        let place = trail.last().map_or_else(|| self.root_place(), |(_, place)| place.clone());
        self.trail = trail;
        Ok(place)
    }

    fn too_deep(&self) -> Error {
        let limit = self.limits.path_depth as u64;
        Error::Limit { what: "names on a path", key: "path_depth", limit }
    }

    fn walk_whole(&mut self, parts: &[Vec<u8>]) -> Result<Place, Error> {
        let place = self.walk(parts, true)?;
        place.ok_or_else(|| entry_error(&parts.join(&b'/'), "is missing"))
    }

    fn step(&mut self, here: &Place, name: &[u8], create: bool) -> Result<Step, Error> {
        let path = join(&here.path, name);
        let fail = write_error("open the directory", &path);
        match node::open_dir(here.dir.as_fd(), name) {
            Ok(dir) => return Ok(Step::Into(Place { dir: Rc::new(dir), path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(fail(error.into())),
        }
        match stat_at(here, name).map_err(&fail)? {
            Some(FileType::Symlink) => {
                let target = rustix::fs::readlinkat(&here.dir, name, Vec::new());
                Ok(Step::Follow(target.map_err(|e| fail(e.into()))?.into_bytes()))
            }
            Some(_) if !is_whiteout_at(here, name) => {
                Err(entry_error(&path, "is no directory, but something is to lie in it"))
            }
            _ if !create => Ok(Step::Missing),
            found => self.missing(here, name, path, found.is_some()),
        }
    }

    /// A directory that this layer does not have, or has removed.
    fn missing(
        &mut self,
        here: &Place,
        name: &[u8],
        path: Vec<u8>,
        removed: bool,
    ) -> Result<Step, Error> {
        let fail = write_error("make the directory", &path);
        if let Some(below) = self.below.as_ref().filter(|_| !removed && !self.facts.hides(&path))
            && let Some(found) = below.view.peek(&path).map_err(&fail)?
        {
            match found.file_type() {
                FileType::Directory => {}
                FileType::Symlink => return Ok(Step::Follow(found.target().map_err(&fail)?)),
                _ => {
                    let reason = "is no directory below, but something is to lie in it";
                    return Err(entry_error(&path, reason));
                }
            }
        }
        let dir = self.make_implicit(here, name, path.clone())?;
        Ok(Step::Into(Place { dir: Rc::new(dir), path }))
    }
}
