//! The container's root: an overlay or a directory, detached, then the root of its namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{self, Change, FsContext, Propagation, attr};
use berth_sys::root::Root;

use crate::plan::Plan;
use crate::pod::{LAYERS, ROOTFS};
use crate::rootfs::{Overlay, Rootfs};
use crate::user::{UserNamespace, Users};
use crate::wire::{Doing, Work, refuse};

/// A root taken from the host's mount namespace.
#[derive(Debug)]
pub(super) enum Opened {
    /// Ready to attach.
    Detached(OwnedFd),
    /// An overlay to be mounted where its layers' common parent, which is detached, is attached
    /// for a moment: for a kernel that only mounts it by path, or with the parent's ids mapped.
    Layers(Box<Layers>),
}

/// The layers of an overlay that is not mounted yet.
#[derive(Debug)]
pub(super) struct Layers {
    parent: OwnedFd,
    overlay: Overlay,
    names: Names,
}

/// On the host: makes it.
pub(super) fn open(rootfs: &Rootfs, users: &Users<'_>) -> Work<Opened> {
    match rootfs {
        Rootfs::Directory(path) => {
            let tree = mount::clone_tree(rustix::fs::CWD, path, true);
            tree.map(Opened::Detached).doing(|| format!("open root directory {}", path.display()))
        }
        Rootfs::Overlay(overlay) => {
            let names = Names::of(overlay);
            match &overlay.idmap {
                Some(maps) => open_mapped(overlay, names, users.that_maps(maps)),
                None => open_overlay(overlay, names)
                    .doing(|| "mount the overlay root file system".to_owned()),
            }
        }
    }
}

/// One mapped mount for all layers, not one for each.
fn open_mapped(overlay: &Overlay, names: Names, user: Option<&UserNamespace>) -> Work<Opened> {
    let what = || format!("map the ids of the layers in {}", names.parent.display());
    let Some(user) = user else { return refuse(what(), "no user namespace to map them by") };
    let parent = mount::clone_tree(rustix::fs::CWD, &names.parent, false).doing(what)?;
    user.map_mount(parent.as_fd(), false, what)?;
    Ok(Opened::Layers(Box::new(Layers { parent, overlay: overlay.clone(), names })))
}

fn open_overlay(overlay: &Overlay, names: Names) -> io::Result<Opened> {
    // Short names: fsconfig(2) takes values of at most 255 bytes.
    rustix::process::chdir(&names.parent)?;
    let made = match overlay.by_path {
        false => overlay_by_fsconfig(overlay, &names).map(Some),
        true => Ok(None),
    };
    rustix::process::chdir("/")?;
    match made {
        Ok(Some(tree)) => return Ok(Opened::Detached(tree)),
        // `lowerdir+` is there from kernel 6.7 on.
        Err(err) if mount::errno(&err) != 22 || has_append()? => return Err(err),
        _ => {}
    }
    let parent = mount::clone_tree(rustix::fs::CWD, &names.parent, true)?;
    let overlay = Overlay { by_path: true, ..overlay.clone() };
    Ok(Opened::Layers(Box::new(Layers { parent, overlay, names })))
}

fn overlay_by_fsconfig(overlay: &Overlay, names: &Names) -> io::Result<OwnedFd> {
    let context = FsContext::open(c"overlay")?;
    context.string("source", "overlay")?;
    for lower in &names.lower {
        context.string("lowerdir+", lower.as_path())?;
    }
    if let Some((upper, work)) = &names.upper {
        context.string("upperdir", upper.as_path())?;
        context.string("workdir", work.as_path())?;
    }
    for option in &overlay.options {
        match option.split_once('=') {
            Some((key, value)) => context.string(key, value)?,
            None => context.flag(option)?,
        }
    }
    context.mount(0)
}

/// Whether this kernel's overlay takes layers one by one. Before 6.5 it takes any option without
/// a look, and refuses all of them at the mount.
fn has_append() -> io::Result<bool> {
    let looks = FsContext::open(c"overlay")?.string("no such option", "/").is_err();
    Ok(looks && FsContext::open(c"overlay")?.string("lowerdir+", "/").is_ok())
}

/// The paths of an overlay as names relative to their common parent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    parent: PathBuf,
    lower: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
}

impl Names {
    fn of(overlay: &Overlay) -> Self {
        let upper = overlay.upper.as_ref();
        let all = overlay.lower.iter().chain(upper.iter().flat_map(|(u, w)| [u, w]));
        let mut parent: Option<PathBuf> = None;
        for path in all {
            let above = path.parent().unwrap_or(Path::new("/"));
            parent = Some(match parent {
                None => above.to_owned(),
                Some(known) => common(&known, above),
            });
        }
        let parent = parent.unwrap_or_else(|| PathBuf::from("/"));
        let name = |path: &PathBuf| path.strip_prefix(&parent).unwrap_or(path).to_owned();
        Self {
            lower: overlay.lower.iter().map(name).collect(),
            upper: upper.map(|(u, w)| (name(u), name(w))),
            parent: parent.clone(),
        }
    }

    /// mount(2)'s text. `:` and `,` and `\` in names are escaped, as overlayfs wants.
    fn options(&self, overlay: &Overlay) -> String {
        let escape = |path: &Path, more: &str| {
            let mut text = String::new();
            for c in path.to_string_lossy().chars() {
                if c == '\\' || c == ',' || more.contains(c) {
                    text.push('\\');
                }
                text.push(c);
            }
            text
        };
        let lower: Vec<String> = self.lower.iter().map(|path| escape(path, ":")).collect();
        let mut text = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.upper {
            text += &format!(",upperdir={},workdir={}", escape(upper, ""), escape(work, ""));
        }
        for option in &overlay.options {
            text += ",";
            text += option;
        }
        text
    }
}

fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(x, y)| x == y).map(|(x, _)| x).collect()
}

/// In the container's own mount namespace: attaches it, private, and opens it as the root of every
/// later walk.
pub(super) fn attach(opened: Opened) -> Work<Root> {
    let step = || "attach the root file system".to_owned();
    let spot = super::open_dir(ROOTFS)?;
    match opened {
        Opened::Detached(tree) => mount::attach(tree.as_fd(), spot.as_fd()).doing(step)?,
        Opened::Layers(layers) => {
            // mount(2) says no more than "invalid argument".
            let asked = layers.overlay.options.join(",");
            mount_layers(&layers, &spot)
                .doing(|| format!("mount the overlay root file system ({asked})"))?;
        }
    }
    let root = Root::open_dir(Path::new(ROOTFS)).doing(step)?;
    let private =
        Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    mount::set_attr(root.as_fd(), &private).doing(step)?;
    Ok(root)
}

/// Layers must lie in the mounter's own namespace, so their parent is attached for the moment of
/// the mount.
fn mount_layers(layers: &Layers, target: &OwnedFd) -> io::Result<()> {
    let Layers { parent, overlay, names } = layers;
    let spot = Root::open_dir(Path::new(LAYERS))?;
    mount::attach(parent.as_fd(), spot.as_fd())?;
    rustix::process::chdir(LAYERS)?;
    let mounted = match overlay.by_path {
        false => overlay_by_fsconfig(overlay, names)
            .and_then(|tree| mount::attach(tree.as_fd(), target.as_fd())),
        true => mount_by_path(overlay, names),
    };
    let mounted = match mounted {
        Err(err) if !overlay.by_path && mount::errno(&err) == 22 && !has_append()? => {
            mount_by_path(overlay, names)
        }
        other => other,
    };
    rustix::process::chdir("/")?;
    mount::detach(Path::new(LAYERS))?;
    mounted
}

fn mount_by_path(overlay: &Overlay, names: &Names) -> io::Result<()> {
    let data = std::ffi::CString::new(names.options(overlay))?;
    mount::mount_at(Path::new(ROOTFS), c"overlay", 0, &data)
}

/// Makes the root read only or shared as asked, then the root of this process.
pub(super) fn pivot(root: Root, plan: &Plan<'_>) -> Work<()> {
    let step = || "pivot into the root file system".to_owned();
    if plan.readonly_root {
        let change = Change { set: attr::RDONLY, ..Change::default() };
        mount::set_attr(root.as_fd(), &change)
            .doing(|| "make the root file system read only".to_owned())?;
    }
    rustix::process::fchdir(root.as_fd()).doing(step)?;
    drop(root);
    mount::pivot_to_cwd().doing(step)?;
    if let Some((propagation, _)) = plan.root_propagation {
        // Not recursive: the volumes below have chosen for themselves.
        let root = super::open_dir("/")?;
        let change = Change { propagation: Some(propagation), ..Change::default() };
        mount::set_attr(root.as_fd(), &change)
            .doing(|| "set the root's mount propagation".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_get_short_names_below_their_common_parent() {
        let overlay = Overlay {
            lower: vec!["/v/image/l/aa".into(), "/v/image/l/b:b".into()],
            upper: Some(("/v/image/rw/x/fs".into(), "/v/image/rw/x/work".into())),
            options: vec!["volatile".into(), "index=off".into()],
            ..Overlay::default()
        };
        let names = Names::of(&overlay);
        assert_eq!(names.parent, Path::new("/v/image"));
        assert_eq!(
            names.options(&overlay),
            "lowerdir=l/aa:l/b\\:b,upperdir=rw/x/fs,workdir=rw/x/work,volatile,index=off"
        );
        let single = Overlay { lower: vec!["/one".into()], ..Overlay::default() };
        let names = Names::of(&single);
        assert_eq!((names.parent.as_path(), names.lower), (Path::new("/"), vec!["one".into()]));
    }
}
