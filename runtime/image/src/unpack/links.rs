//! Hard links, also to files of the layers below.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType};

use super::apply::{Applier, DISK_BLOCK, Place, is_whiteout_at, stat_at};
use super::facts::join;
use super::tar::Entry;
use super::{Error, entry_error, listing_error, node, write_error};
use crate::snapshot::view::components;

impl Applier<'_> {
    pub(super) fn hard_link(
        &mut self,
        place: &Place,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let mut parts = components(&entry.link);
        let target_name = parts.pop();
        let Some(target_name) = target_name.filter(|_| !parts.contains(&b"..".to_vec())) else {
            return Err(entry_error(path, "is a hard link that leads out of the layer"));
        };
        let Some(target) = self.link_target(&parts, &target_name, path)? else { return Ok(()) };
        if join(&target.path, &target_name) == path {
            return Ok(());
        }
        self.clear(place, name, path)?;
        let (from, to) = (target.dir.as_fd(), place.dir.as_fd());
        rustix::fs::linkat(from, &*target_name, to, name, AtFlags::empty())
            .map_err(|e| write_error("make the hard link", path)(e.into()))?;
        self.listing.link(path, &join(&target.path, &target_name)).map_err(listing_error)
    }

    /// Where a hard link's target is; `None` when it is not in this layer, which is noted.
    fn link_target(
        &mut self,
        parts: &[Vec<u8>],
        name: &[u8],
        link: &[u8],
    ) -> Result<Option<Place>, Error> {
        let fail = write_error("find the target of the hard link", link);
        if let Some(place) = self.walk(parts, false)? {
            match stat_at(&place, name).map_err(&fail)? {
                Some(FileType::Directory) => {
                    return Err(entry_error(link, "is a hard link to a directory"));
                }
                Some(FileType::CharacterDevice) if is_whiteout_at(&place, name) => {}
                Some(_) => return Ok(Some(place)),
                None => {}
            }
        }
        if self.below.is_none() {
            self.facts.unapplied = true;
            return Ok(None);
        }
        let place = self.walk(parts, true)?;
        let place = place.ok_or_else(|| entry_error(link, "is a hard link to nothing"))?;
        self.copy_up(&place, name, link)?;
        Ok(Some(place))
    }

    fn copy_up(&mut self, place: &Place, name: &[u8], link: &[u8]) -> Result<(), Error> {
        let path = join(&place.path, name);
        let fail = write_error("copy from the layer below", &path);
        let nothing = || entry_error(link, "is a hard link to nothing");
        let below = self.below.as_ref().filter(|_| !self.facts.hides(&path)).ok_or_else(nothing)?;
        let found = below.view.peek(&path).map_err(&fail)?.ok_or_else(nothing)?;
        let (meta, body) = node::copy_node(&found.fd, place.dir.as_fd(), name).map_err(&fail)?;
        self.listing.node(&path, &meta, &body).map_err(listing_error)?;
        self.counts.inodes += 1;
        let size = u64::try_from(found.stat.st_size).unwrap_or(0);
        self.counts.bytes += size.next_multiple_of(DISK_BLOCK);
        Ok(())
    }
}
