//! What one layer of an image may ask of the machine.

use serde::Serialize;

use super::raw;
use super::resolved::InvalidValue;

/// Bounds of one layer; none is zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageLimits {
    /// GiB unpacked.
    pub layer_gib: u64,
    /// Entries of the tar.
    pub layer_entries: u64,
    /// Bytes unpacked for each byte of the blob.
    pub expansion: u64,
    /// Names on a path.
    pub path_depth: u64,
}

pub(super) fn resolve(raw: &raw::ImageLimits) -> Result<ImageLimits, InvalidValue> {
    Ok(ImageLimits {
        layer_gib: positive("image.limits.layer_gib", raw.layer_gib, 256)?,
        layer_entries: positive("image.limits.layer_entries", raw.layer_entries, 10_000_000)?,
        expansion: positive("image.limits.expansion", raw.expansion, 200)?,
        path_depth: positive("image.limits.path_depth", raw.path_depth, 256)?,
    })
}

fn positive(key: &'static str, value: Option<u64>, default: u64) -> Result<u64, InvalidValue> {
    match value.unwrap_or(default) {
        0 => Err(InvalidValue::Zero { key }),
        value => Ok(value),
    }
}

/// A petabyte, in MiB, and a disk full of empty files.
const MOST: u64 = 1 << 30;

/// What a writable layer may use, if anything limits it. Its own directories need some inodes.
pub(super) fn quota(
    key: &'static str,
    value: Option<u64>,
    least: u64,
) -> Result<Option<u64>, InvalidValue> {
    match value {
        Some(value) if !(least..=MOST).contains(&value) => {
            Err(InvalidValue::Quota { key, value, least, most: MOST })
        }
        value => Ok(value),
    }
}

impl ImageLimits {
    /// As the image store takes them.
    #[must_use]
    pub fn of_store(&self) -> berth_image::Limits {
        berth_image::Limits {
            layer_bytes: self.layer_gib.saturating_mul(1 << 30),
            layer_entries: self.layer_entries,
            expansion: self.expansion,
            path_depth: usize::try_from(self.path_depth).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_store_s_own() {
        let limits = resolve(&raw::ImageLimits::default()).unwrap();
        assert_eq!(limits.of_store(), berth_image::Limits::default());
    }
}
