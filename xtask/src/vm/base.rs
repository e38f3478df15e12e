//! What stays the same from run to run: the kernel, the initial file system and the root's disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::{Place, debs};
use crate::sh;

/// The files that qemu is given.
pub(crate) struct Base {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) disk: PathBuf,
}

/// Without them there is no disk.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

const INITRD_INIT: &str = include_str!("guest/initrd.sh");

/// Makes it, unless it is there and made of the same packages.
pub(crate) fn ready(place: &Place, fresh: bool) -> Result<Base> {
    let base = Base {
        kernel: place.join("vmlinuz"),
        initrd: place.join("initrd"),
        disk: place.join("root.img"),
    };
    let (stamp, now) = (place.join("stamp"), stamp());
    if !fresh && fs::read_to_string(&stamp).is_ok_and(|then| then == now) {
        return Ok(base);
    }
    let _ = fs::remove_file(&stamp);
    make(place, &base).context("making the virtual machine's root")?;
    fs::write(stamp, now)?;
    Ok(base)
}

/// All that the files depend on.
fn stamp() -> String {
    let sources = [include_str!("base.rs"), include_str!("debs.rs"), INITRD_INIT];
    sources.join("\0")
}

fn make(place: &Place, base: &Base) -> Result<()> {
    let debs = debs::fetch(place)?;
    let root = place.join("root");
    let _ = fs::remove_dir_all(&root);
    debs::unpack(&debs, &root)?;
    let version = kernel_version(&root)?;
    fs::copy(root.join("boot").join(format!("vmlinuz-{version}")), &base.kernel)?;
    sh::run(Command::new("chroot").arg(&root).args(["depmod", &version]))?;
    fs::write(&base.initrd, initrd(&root, &version)?)?;
    disk(&base.disk, "2G", Some(&root))?;
    // All of it is on the disk now.
    fs::remove_dir_all(&root)?;
    fs::remove_dir_all(place.join("debs")).context("remove the packages")
}

/// The one kernel that was unpacked.
fn kernel_version(root: &Path) -> Result<String> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(root.join("lib/modules"))? {
        versions.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match versions.as_slice() {
        [version] => Ok(version.clone()),
        other => bail!("one kernel was expected among the packages, not {other:?}"),
    }
}

fn initrd(root: &Path, version: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "proc", "sys", "dev", "modules", "new"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", &fs::read(root.join("bin/busybox"))?);
    let mut order = String::new();
    for path in modules(root, version)? {
        let name = path.rsplit('/').next().unwrap_or_default();
        let content = fs::read(root.join(path.trim_start_matches('/')))?;
        archive.file(&format!("modules/{name}"), &content);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    archive.file("init", INITRD_INIT.as_bytes());
    Ok(archive.finish())
}

/// The files of [`MODULES`] and of what they need, in the order of loading.
fn modules(root: &Path, version: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("chroot");
        modprobe.arg(root).args(["modprobe", "--show-depends", "-S", version, module]);
        for line in sh::output(&mut modprobe)?.lines() {
            let file = line.strip_prefix("insmod ").map(|file| file.trim().to_owned());
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

/// A sparse disk with ext4, holding what `content` holds.
pub(crate) fn disk(path: &Path, size: &str, content: Option<&Path>) -> Result<()> {
    let _ = fs::remove_file(path);
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0"]);
    if let Some(content) = content {
        mkfs.arg("-d").arg(content);
    }
    sh::run(mkfs.arg(path).arg(size))
}
