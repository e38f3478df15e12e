//! What one layer may ask of the machine.

use super::Error;

/// Bounds of one layer. What passes one is refused, so that a small blob cannot fill a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tar, headers and all.
    pub layer_bytes: u64,
    /// Entries of the tar.
    pub layer_entries: u64,
    /// Bytes of the tar for each byte of the blob, looked at from 1 GiB of tar on: much of
    /// nothing compresses well, and is harmless while there is little of it.
    pub expansion: u64,
    /// Names on a path within the layer, symlinks followed.
    pub path_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layer_bytes: 256 << 30, layer_entries: 10_000_000, expansion: 200, path_depth: 256 }
    }
}

/// From here on the expansion counts.
const EXPANSION_FROM: u64 = 1 << 30;

impl Limits {
    /// After so many bytes of the blob so many of the tar have come.
    pub(super) fn check_size(&self, blob: u64, tar: u64) -> Result<(), Error> {
        if tar > self.layer_bytes {
            let limit = self.layer_bytes;
            return Err(Error::Limit { what: "bytes unpacked", key: "layer_gib", limit });
        }
        if tar > EXPANSION_FROM && tar / self.expansion.max(1) > blob {
            let (what, limit) = ("bytes unpacked for each byte of the blob", self.expansion);
            return Err(Error::Limit { what, key: "expansion", limit });
        }
        Ok(())
    }

    pub(super) fn check_entries(&self, entries: u64) -> Result<(), Error> {
        let limit = self.layer_entries;
        if entries <= limit {
            return Ok(());
        }
        Err(Error::Limit { what: "entries", key: "layer_entries", limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_passed_only_beyond_it() {
        let limits = Limits { layer_bytes: 8 << 30, ..Limits::default() };
        let refused = |blob: u64, tar: u64| match limits.check_size(blob, tar) {
            Err(Error::Limit { key, .. }) => key,
            _ => "",
        };
        assert_eq!(refused(1, 1 << 30), "");
        assert_eq!(refused(1, (1 << 30) + 200), "expansion");
        assert_eq!(refused(10 << 20, 2000 << 20), "");
        assert_eq!(refused(10 << 20, 2001 << 20), "expansion");
        assert_eq!(refused(8 << 30, 8 << 30), "");
        assert_eq!(refused(8 << 30, (8 << 30) + 1), "layer_gib");
        assert!(limits.check_entries(10_000_000).is_ok());
        assert!(limits.check_entries(10_000_001).is_err());
    }
}
