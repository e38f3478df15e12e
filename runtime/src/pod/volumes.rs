//! Image volumes: images that are mounted, read only, into a container of another image.
//!
//! The daemon mounts each at a place of its own in the container's bundle, just for as long as the
//! shim needs to take its copy; a container has its volumes from then on, and the host has no
//! mount of them. What a killed daemon leaves there goes with the bundle.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_sys::mount::{self, FsContext, attr};
use berth_sys::root::{Leaf, Root, leaf_of};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::house::{PodEnv, blocking};
use super::spec::VolumeImage;
use super::{Error, Kind, Result};
use crate::ports::{Image, PortError};
use crate::store::ContainerRecord;

/// Held while one is mounted or all of a bundle are taken away: a create that was given up half-way
/// must not mount after its undo has looked.
static MOUNTING: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MOUNTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says, when it goes, that nobody waits for the work any more.
#[derive(Default)]
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Where in a bundle they are mounted, each under its mount's number.
const DIR: &str = "volumes";
/// What mount(2) takes all in all.
const MAX_OPTIONS: usize = 4000;

/// Where the volume of the mount with this number is while its container is made.
pub(crate) fn place(bundle: &Path, number: usize) -> PathBuf {
    bundle.join(DIR).join(number.to_string())
}

fn failed(number: usize, volume: &VolumeImage, why: impl std::fmt::Display) -> Error {
    let part = match volume.sub_path.as_str() {
        "" => String::new(),
        sub_path => format!(", sub path {sub_path:?}"),
    };
    let text = format!("mounts[{number}].image: {:?}{part}: {why}", volume.image);
    let source = Box::<dyn std::error::Error + Send + Sync>::from(text);
    Error::port("mount an image volume", PortError { kind: Kind::ImageVolume, source })
}

/// Mounts all image volumes and records their images.
pub(crate) async fn mount_all(env: &PodEnv, record: &mut ContainerRecord) -> Result<()> {
    for (number, asked) in record.spec.mounts.iter().enumerate() {
        let Some(volume) = &asked.image else { continue };
        let image = find(env, number, volume).await?;
        let layers = env.house.images.lend(&record.id, &image).await;
        let layers = layers.map_err(|e| failed(number, volume, e))?;
        let (at, sub_path) =
            (place(&env.paths.bundle(&record.id), number), volume.sub_path.clone());
        let waiting = Waiting::default();
        let given_up = waiting.0.clone();
        let mounted = blocking(move || {
            let _alone = alone();
            if given_up.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            mount_one(&layers, Path::new(&sub_path), &at)
        });
        mounted.await?.map_err(|e| failed(number, volume, e))?;
        drop(waiting);
        record.volume_images.push(image.id);
    }
    Ok(())
}

async fn find(env: &PodEnv, number: usize, volume: &VolumeImage) -> Result<Image> {
    let images = &env.house.images;
    let found = images.ready(&volume.image).await.map_err(|e| failed(number, volume, e))?;
    let image = found.ok_or_else(|| failed(number, volume, "not found"))?;
    let asked = match volume.user_specified_image.as_str() {
        "" => &volume.image,
        user_specified => user_specified,
    };
    images.admit(&image, asked).map_err(|e| Error::port("use the image of a volume", e))?;
    Ok(image)
}

/// Takes the mounts of a bundle away: none is well. Blocks.
pub(crate) fn unmount_all(bundle: &Path) -> Result<()> {
    let _alone = alone();
    let dir = bundle.join(DIR);
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| Error::disk("read", &dir, e))?,
    };
    for entry in entries.flatten() {
        unmount(&entry.path()).map_err(|e| Error::disk("unmount", entry.path(), e))?;
    }
    Ok(())
}

fn unmount(path: &Path) -> io::Result<()> {
    match mount::detach(path) {
        // Not a mount.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Mounts the layers (top first), or what lies at `sub_path` in them, at `at`.
fn mount_one(layers: &[PathBuf], sub_path: &Path, at: &Path) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    // A repeated create may find what a killed daemon left.
    unmount(at)?;
    overlay(layers, at)?;
    if sub_path.as_os_str().is_empty() {
        return Ok(());
    }
    // A part can be cloned of a mount that is attached only.
    let part = part(at, sub_path);
    unmount(at)?;
    let part = part?;
    if leaf_of(part.as_fd())? != Leaf::Dir {
        std::fs::remove_dir(at)?;
        std::fs::File::create(at)?;
    }
    attach(&part, at)
}

/// What the path leads to for a process whose root the volume is: no link leads out of it
/// (CVE-2022-23648).
fn part(at: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let found = Root::open_dir(at)?.locate(sub_path)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err(io::Error::other("is neither a directory nor a file"));
    }
    mount::clone_tree(found.as_fd(), Path::new(""), false)
}

fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let spot = rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(tree.as_fd(), spot.as_fd())
}

/// Mounts the layers read only. They are named through a descriptor of their common parent:
/// fsconfig(2) takes 255 bytes for each, and mount(2) a page for all.
fn overlay(layers: &[PathBuf], at: &Path) -> io::Result<()> {
    let parent = layers.first().and_then(|layer| layer.parent()?.parent());
    let parent = parent.ok_or_else(|| io::Error::other("an image without layers"))?;
    let dir = rustix::fs::openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let name = |layer: &PathBuf| {
        let name = layer.strip_prefix(parent).map_err(io::Error::other)?;
        Ok(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
    };
    let names = layers.iter().map(name).collect::<io::Result<Vec<PathBuf>>>()?;
    match by_fsconfig(&names) {
        Ok(tree) => attach(&tree, at),
        // `lowerdir+` is there from kernel 6.7 on.
        Err(error) if mount::errno(&error) == 22 => by_mount(&names, at),
        Err(error) => Err(error),
    }
}

fn by_fsconfig(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let context = FsContext::open(c"overlay")?;
    context.string("source", "overlay")?;
    for layer in layers {
        context.string("lowerdir+", layer.as_path())?;
    }
    context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

fn by_mount(layers: &[PathBuf], at: &Path) -> io::Result<()> {
    let names: Vec<_> = layers.iter().map(|layer| layer.to_string_lossy()).collect();
    let options = format!("lowerdir={}", names.join(":"));
    if options.len() > MAX_OPTIONS {
        let why = format!("{} layers are too many for this kernel", layers.len());
        return Err(io::Error::other(why));
    }
    let options = std::ffi::CString::new(options)?;
    // MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC have the values of the attributes.
    let flags = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    mount::mount_at(at, c"overlay", flags, &options)
}
