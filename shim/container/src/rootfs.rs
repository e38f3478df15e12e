//! What a container's root directory is made of.

use std::path::PathBuf;

use crate::error::Result;
use crate::plan::invalid;
use crate::user::{IdMaps, IdRange};

/// What becomes the container's root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// This host directory, bound recursively. `spec.root.path` says nothing then.
    Directory(PathBuf),
    /// Layers joined by overlayfs, mounted in the container's own mount namespace only.
    Overlay(Overlay),
}

/// An overlay mount. All paths absolute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlay {
    /// Lower directories, top first; at least one.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; none: read only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Further options, each `key` or `key=value` (`volatile`, `index=off`, `metacopy=off`).
    pub options: Vec<String>,
    /// Mount by mount(2) with one option text, as kernels before 6.7 need (found out by itself),
    /// also where the kernel takes layers one by one.
    pub by_path: bool,
    /// Map the ids of all layers, the upper one too: what lies there as 0 is this map's root to
    /// the host. None: they are as they lie.
    pub idmap: Option<IdMaps>,
}

impl Rootfs {
    /// Reads a mount in containerd's form: type `overlay` with options `lowerdir=a:b`,
    /// `upperdir=`, `workdir=`, `uidmap=INSIDE:HOST:LENGTH,...`, `gidmap=` and others, or type `bind` with the directory as source.
    pub fn from_mount(kind: &str, source: &str, options: &[String]) -> Result<Self> {
        let rootfs = match kind {
            "bind" | "rbind" => Self::Directory(PathBuf::from(source)),
            "overlay" => Self::Overlay(Overlay::parse(options)?),
            _ => return Err(invalid("rootfs", format!("type {kind:?} is not supported"))),
        };
        let relative = match &rootfs {
            Self::Directory(path) => Some(path).filter(|path| path.is_relative()),
            Self::Overlay(overlay) => overlay.paths().find(|path| path.is_relative()),
        };
        match relative {
            Some(path) => Err(invalid("rootfs", format!("{path:?} is not an absolute path"))),
            None => Ok(rootfs),
        }
    }
}

impl Overlay {
    fn parse(options: &[String]) -> Result<Self> {
        let mut overlay = Self::default();
        let (mut upper, mut work) = (None, None);
        let mut idmap = IdMaps::default();
        for option in options {
            match option.split_once('=') {
                Some(("lowerdir", all)) => {
                    overlay.lower = all.split(':').map(PathBuf::from).collect();
                }
                Some(("upperdir", path)) => upper = Some(PathBuf::from(path)),
                Some(("workdir", path)) => work = Some(PathBuf::from(path)),
                Some(("uidmap", text)) => idmap.uids = ranges(option, text)?,
                Some(("gidmap", text)) => idmap.gids = ranges(option, text)?,
                _ => overlay.options.push(option.clone()),
            }
        }
        if overlay.lower.is_empty() {
            return Err(invalid("rootfs", "an overlay without lowerdir"));
        }
        if idmap != IdMaps::default() {
            idmap.check(|name| format!("rootfs {name}"))?;
            overlay.idmap = Some(idmap);
        }
        overlay.upper = match (upper, work) {
            (Some(upper), Some(work)) => Some((upper, work)),
            (None, None) => None,
            _ => return Err(invalid("rootfs", "upperdir and workdir come together")),
        };
        Ok(overlay)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lower.iter().chain(self.upper.iter().flat_map(|(upper, work)| [upper, work]))
    }
}

fn ranges(option: &str, text: &str) -> Result<Vec<IdRange>> {
    let range = |part: &str| {
        let mut numbers = part.split(':').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let range = IdRange { container: next()?, host: next()?, length: next()? };
        numbers.next().is_none().then_some(range)
    };
    let ranges: Option<Vec<IdRange>> = text.split(',').map(range).collect();
    ranges.ok_or_else(|| invalid("rootfs", format!("{option:?}: not INSIDE:HOST:LENGTH")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn of(kind: &str, source: &str, options: &[&str]) -> Result<Rootfs> {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        Rootfs::from_mount(kind, source, &options)
    }

    #[test]
    fn mounts_in_containerds_form_are_read() {
        let options = [
            "index=off",
            "lowerdir=/a:/b",
            "upperdir=/u",
            "workdir=/w",
            "volatile",
            "uidmap=0:1000:10",
            "gidmap=0:1000:5,5:2000:5",
        ];
        let range = |container, host, length| IdRange { container, host, length };
        let want = Overlay {
            lower: vec!["/a".into(), "/b".into()],
            upper: Some(("/u".into(), "/w".into())),
            options: vec!["index=off".into(), "volatile".into()],
            by_path: false,
            idmap: Some(IdMaps {
                uids: vec![range(0, 1000, 10)],
                gids: vec![range(0, 1000, 5), range(5, 2000, 5)],
            }),
        };
        assert_eq!(of("overlay", "overlay", &options).unwrap(), Rootfs::Overlay(want));
        assert_eq!(of("bind", "/r", &["rbind"]).unwrap(), Rootfs::Directory("/r".into()));
    }

    #[test]
    fn unusable_mounts_are_refused() {
        for (kind, source, options) in [
            ("ext4", "/dev/x", &[][..]),
            ("overlay", "overlay", &["upperdir=/u"]),
            ("overlay", "overlay", &["lowerdir=/a", "upperdir=/u"]),
            ("overlay", "overlay", &["lowerdir=/a:b"]),
            ("overlay", "overlay", &["lowerdir=/a", "uidmap=0:1:1"]),
            ("overlay", "overlay", &["lowerdir=/a", "uidmap=0:1:0", "gidmap=0:1:1"]),
            ("overlay", "overlay", &["lowerdir=/a", "uidmap=0:1", "gidmap=0:1:1"]),
            ("overlay", "overlay", &["lowerdir=/a", "uidmap=0:1:1:1", "gidmap=0:1:1"]),
            ("overlay", "overlay", &["lowerdir=/a", "uidmap=0:x:1", "gidmap=0:1:1"]),
            ("bind", "r", &[]),
        ] {
            let err = of(kind, source, options).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Invalid, "{kind} {options:?}: {err}");
        }
    }
}
