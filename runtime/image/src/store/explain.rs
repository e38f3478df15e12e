//! Why things are kept.

use super::layer::LayerKey;
use super::{Error, ImageId, State, Store};

/// One reason for which a layer or an image is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It is a layer of this image.
    Image {
        /// The image.
        id: ImageId,
        /// Its tags and digests; may be empty.
        names: Vec<String>,
    },
    /// An image has this tag or digest.
    Name(String),
    /// An image is pinned.
    Pinned,
    /// A container stands on it.
    Container {
        /// Its id.
        id: String,
    },
    /// A container's lease cannot be read, so that it may stand on any layer.
    UnknownLease {
        /// The container's id.
        container: String,
    },
    /// Pulls under way have claims on it.
    Pulls {
        /// How many claims.
        claims: usize,
    },
    /// Not all records could be read at the start, so that nothing is taken for unneeded.
    UnreadableRecords,
    /// It was found damaged and replaced; these containers still run on the old one.
    Retired {
        /// Their ids.
        containers: Vec<String>,
    },
}

impl Store {
    /// Why the image or layer of this name is kept; nothing, where it will go. A layer's name is
    /// its key, its directory's name or its diff-id.
    pub(crate) fn explain(&self, name: &str) -> Result<Vec<Reason>, Error> {
        let image = self.find_any(name);
        let state = self.read();
        if let Some(image) = image {
            let mut reasons: Vec<_> = image
                .repo_tags
                .iter()
                .chain(&image.repo_digests)
                .cloned()
                .map(Reason::Name)
                .collect();
            let of = |lease: &crate::snapshot::Lease| lease.image() == Some(&image.id);
            reasons.extend(state.containers(of).map(|id| Reason::Container { id }));
            return Ok(reasons);
        }
        let key = state.layers.values().find_map(|slot| {
            let key = &slot.record.key;
            let named = key.to_string() == name || key.short() == name;
            (named || slot.record.diff_id.as_str() == name).then_some(key)
        });
        let key = key.ok_or_else(|| Error::Unknown { name: name.to_owned() })?;
        Ok(state.reasons(key))
    }
}

impl State {
    /// The containers whose lease is of this sort.
    fn containers<'a>(
        &'a self,
        sort: impl Fn(&crate::snapshot::Lease) -> bool + 'a,
    ) -> impl Iterator<Item = String> + 'a {
        self.snapshots.iter().filter(move |(_, lease)| sort(lease)).map(|(id, _)| id.clone())
    }

    fn reasons(&self, key: &LayerKey) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for image in self.images.values().filter(|image| image.record.layers.contains(key)) {
            let names = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect();
            reasons.push(Reason::Image { id: image.id.clone(), names });
        }
        let on = |lease: &crate::snapshot::Lease| lease.layers.contains(key);
        reasons.extend(self.containers(on).map(|id| Reason::Container { id }));
        let unknown = |lease: &crate::snapshot::Lease| lease.is_unknown();
        reasons
            .extend(self.containers(unknown).map(|container| Reason::UnknownLease { container }));
        let claims = self.layers.get(key).map_or(0, |slot| slot.holds);
        reasons.extend((claims > 0).then_some(Reason::Pulls { claims }));
        reasons.extend(self.blind.then_some(Reason::UnreadableRecords));
        if self.retired.iter().any(|old| old.key.as_ref() == Some(key)) {
            let containers = self.containers(on).collect();
            reasons.push(Reason::Retired { containers });
        }
        reasons
    }
}
