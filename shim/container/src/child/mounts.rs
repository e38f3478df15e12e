//! The spec's mounts: taken from the host as detached copies, attached inside the root.

use std::borrow::Cow;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::mount::{self, Change, FsContext, Propagation};
use berth_sys::ns::Kind;
use berth_sys::root::{Leaf, Root, leaf_of};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};

use super::{Given, ensure};
use crate::cgroup::Layout;
use crate::plan::mounts::{Attrs, Idmap, MountKind, MountPlan};
use crate::plan::{Namespaces, Plan};
use crate::pod::SHM;
use crate::user::Users;
use crate::wire::{Doing, Work, refuse};

/// statfs(2) magic of procfs.
const PROC_MAGIC: u64 = 0x9fa0;

/// Files of /proc that a mount may cover, as runc has it (for lxcfs): they only inform.
const COVERABLE: [&str; 8] =
    ["cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"];

/// A file system's option, with its value if it has one.
type FsOption = (String, Option<String>);

/// What one mount takes from the host.
#[derive(Debug)]
pub(super) enum Source {
    /// Nothing: it is made inside.
    Inside,
    /// A copy of this.
    Tree(OwnedFd),
    /// The container's v1 directories, by name below the mount, for a container in the host's
    /// cgroup namespace.
    Cgroups(Vec<(String, OwnedFd)>),
}

/// On the host: one source for each mount, links followed.
pub(super) fn open_sources(plan: &Plan<'_>, given: &Given<'_>) -> Work<Vec<Source>> {
    plan.mounts.iter().map(|mount| open_source(mount, plan, given)).collect()
}

fn open_source(mount: &MountPlan, plan: &Plan<'_>, given: &Given<'_>) -> Work<Source> {
    let layout = given.layout;
    match &mount.kind {
        MountKind::Bind { source, recursive } => {
            if mount.propagation.iter().any(|(p, _)| *p == Propagation::Shared) {
                check_shared(source, mount)?;
            }
            let tree = mount::clone_tree(CWD, source, *recursive).doing(|| mount.describe())?;
            if let Some(idmap) = &mount.idmap {
                map_ids(mount, idmap, &tree, given.users)?;
            }
            Ok(Source::Tree(tree))
        }
        MountKind::Cgroup if has_cgroup_ns(&plan.namespaces) => Ok(Source::Inside),
        MountKind::Cgroup => {
            // Mounted anew from the host's own cgroup namespace, v2 would lose its options there
            // (nsdelegate and its kin), for the host as well.
            if let Some(root) = layout.v2().filter(|_| layout.is_unified()) {
                let tree = mount::clone_tree(CWD, root, false);
                return tree.map(Source::Tree).doing(|| mount.describe());
            }
            let mut trees = Vec::new();
            for (root, _) in layout.v1() {
                let dir = root.join(crate::cgroup::relative(&plan.cgroup_path).unwrap_or_default());
                let tree = mount::clone_tree(CWD, &dir, false).doing(|| mount.describe())?;
                let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
                trees.push((name, tree));
            }
            Ok(Source::Cgroups(trees))
        }
        _ => Ok(Source::Inside),
    }
}

fn map_ids(mount: &MountPlan, idmap: &Idmap, tree: &OwnedFd, users: &Users<'_>) -> Work<()> {
    let user = match &idmap.maps {
        Some(maps) => users.that_maps(maps),
        None => users.own(),
    };
    match user {
        Some(user) => user.map_mount(tree.as_fd(), idmap.recursive, || mount.describe()),
        None => refuse(mount.describe(), "no user namespace to map its ids by"),
    }
}

fn has_cgroup_ns(namespaces: &Namespaces<'_>) -> bool {
    namespaces.makes(Kind::Cgroup) || namespaces.join.iter().any(|(kind, _)| *kind == Kind::Cgroup)
}

/// What is mounted in the container can only reach the host if the source's mount is shared.
fn check_shared(source: &Path, mount: &MountPlan) -> Work<()> {
    let shared = || -> io::Result<bool> {
        let statx = rustix::fs::statx(
            CWD,
            source,
            rustix::fs::AtFlags::empty(),
            rustix::fs::StatxFlags::MNT_ID,
        )?;
        let id = statx.stx_mnt_id.to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let line = table.lines().find(|line| line.split(' ').next() == Some(id.as_str()));
        Ok(line.is_some_and(|line| {
            line.split(" - ").next().is_some_and(|head| head.contains(" shared:"))
        }))
    };
    if shared().doing(|| mount.describe())? {
        return Ok(());
    }
    refuse(mount.describe(), "its source lies on a mount that is not shared")
}

/// In the container's namespace: all mounts in order.
pub(super) fn attach_all(
    plan: &Plan<'_>,
    sources: Vec<Source>,
    root: &Root,
    given: &Given<'_>,
) -> Work<()> {
    for (mount, source) in plan.mounts.iter().zip(sources) {
        match mount.kind {
            MountKind::Cgroup => attach_cgroups(mount, source, root, given.layout)?,
            _ => attach(mount, source, root, given)?,
        }
    }
    Ok(())
}

fn attach(mount: &MountPlan, source: Source, root: &Root, given: &Given<'_>) -> Work<()> {
    let tree = match (source, &mount.kind) {
        (Source::Tree(tree), _) => tree,
        (_, MountKind::PodShm) => {
            mount::clone_tree(CWD, Path::new(SHM), false).doing(|| mount.describe())?
        }
        (_, MountKind::Fs { kind, source, data }) => {
            let data = host_ids(mount, data, given)?;
            let tree = make_fs(kind, source, &data, mount.attrs).doing(|| mount.describe())?;
            if kind.to_bytes() == b"devpts" && given.users.own().is_some() {
                // The only one whose root is not its mounter's.
                let (uid, gid) = given.owner()?;
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                rustix::fs::chownat(&tree, "", uid, gid, AtFlags::EMPTY_PATH)
                    .doing(|| mount.describe())?;
            }
            tree
        }
        (_, MountKind::Bind { .. } | MountKind::Cgroup) => {
            return refuse(mount.describe(), "has no source");
        }
    };
    configure(mount, tree.as_fd()).doing(|| mount.describe())?;
    let target = target(mount, root, leaf_of(tree.as_fd()).doing(|| mount.describe())?)?;
    mount::attach(tree.as_fd(), target.as_fd()).doing(|| mount.describe())
}

/// File systems are mounted from outside of the container's user namespace: the ids in their
/// options are the host's.
fn host_ids<'d>(
    mount: &MountPlan,
    data: &'d [FsOption],
    given: &Given<'_>,
) -> Work<Cow<'d, [FsOption]>> {
    let Some(user) = given.users.own() else { return Ok(Cow::Borrowed(data)) };
    let mut mapped = data.to_vec();
    for (key, value) in &mut mapped {
        let id = value.as_deref().and_then(|value| value.parse::<u32>().ok());
        let host = match (key.as_str(), id) {
            ("uid", Some(id)) => user.maps().host_uid(id),
            ("gid", Some(id)) => user.maps().host_gid(id),
            _ => continue,
        };
        match host {
            Some(host) => *value = Some(host.to_string()),
            None => {
                let text = format!("{key}={}", value.as_deref().unwrap_or_default());
                let why = format!("{text} is not mapped in the user namespace");
                return refuse(mount.describe(), &why);
            }
        }
    }
    Ok(Cow::Owned(mapped))
}

fn make_fs(
    kind: &CString,
    source: &str,
    data: &[(String, Option<String>)],
    attrs: Attrs,
) -> io::Result<OwnedFd> {
    let context = FsContext::open(kind)?;
    if !source.is_empty() {
        context.string("source", source)?;
    }
    for (key, value) in data {
        match value {
            Some(value) => context.string(key, value.as_str())?,
            None => context.flag(key)?,
        }
    }
    context.mount(attrs.set)
}

/// Attributes and propagation, on the still detached mount.
fn configure(plan: &MountPlan, tree: BorrowedFd<'_>) -> io::Result<()> {
    if plan.is_bind() && !plan.attrs.is_empty() {
        let Attrs { set, clear } = plan.attrs;
        mount::set_attr(tree, &Change { set, clear, ..Change::default() })?;
    }
    if !plan.recursive_attrs.is_empty() {
        let Attrs { set, clear } = plan.recursive_attrs;
        mount::set_attr(tree, &Change { set, clear, recursive: true, ..Change::default() })?;
    }
    let private = [(Propagation::Private, true)];
    let asked = if plan.propagation.is_empty() { &private[..] } else { &plan.propagation };
    for (propagation, recursive) in asked {
        let (propagation, recursive) = (Some(*propagation), *recursive);
        mount::set_attr(tree, &Change { propagation, recursive, ..Change::default() })?;
    }
    Ok(())
}

/// The mount point inside the root, made where absent. Never on procfs, where a link of the image
/// could lead it, but for the few files that only inform.
fn target(mount: &MountPlan, root: &Root, leaf: Leaf) -> Work<OwnedFd> {
    let destination = &mount.destination;
    if let MountKind::Fs { kind, .. } = &mount.kind
        && matches!(kind.to_bytes(), b"proc" | b"sysfs")
    {
        refuse_link(mount, root)?;
    }
    if destination == Path::new("/") {
        return refuse(mount.describe(), "a mount on / would hide the root file system");
    }
    let target = ensure(root, destination, leaf)?;
    let on_proc = is_proc(target.as_fd()).doing(|| mount.describe())?;
    if on_proc && !covers_proc(destination) {
        return refuse(mount.describe(), "would cover a part of /proc");
    }
    Ok(target)
}

fn is_proc(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|magic| magic == PROC_MAGIC))
}

fn covers_proc(destination: &Path) -> bool {
    match destination.strip_prefix("/proc") {
        Ok(rest) => {
            rest.as_os_str().is_empty() || COVERABLE.iter().any(|name| rest == Path::new(name))
        }
        Err(_) => false,
    }
}

/// An image whose /proc is a link would have masked and read-only paths miss the real one.
fn refuse_link(mount: &MountPlan, root: &Root) -> Work<()> {
    match root.open(&mount.destination, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err).doing(|| mount.describe()),
        Ok(found) => match leaf_of(found.as_fd()).doing(|| mount.describe())? {
            Leaf::Dir => Ok(()),
            Leaf::File => refuse(mount.describe(), "must be on an ordinary directory"),
        },
    }
}

/// v2: the hierarchy. v1: a tmpfs with each hierarchy in a directory of the host's name.
fn attach_cgroups(mount: &MountPlan, source: Source, root: &Root, layout: &Layout) -> Work<()> {
    let target = target(mount, root, Leaf::Dir)?;
    let step = || mount.describe();
    if layout.is_unified() {
        let tree = match source {
            Source::Tree(tree) => {
                let Attrs { set, clear } = mount.attrs;
                mount::set_attr(tree.as_fd(), &Change { set, clear, ..Change::default() })
                    .doing(step)?;
                tree
            }
            _ => make_fs(&c"cgroup2".to_owned(), "cgroup", &[], mount.attrs).doing(step)?,
        };
        configure(mount, tree.as_fd()).doing(step)?;
        return mount::attach(tree.as_fd(), target.as_fd()).doing(step);
    }
    let size = [("mode".to_owned(), Some("755".to_owned()))];
    let writable = Attrs { set: mount.attrs.set & !mount::attr::RDONLY, clear: 0 };
    let top = make_fs(&c"tmpfs".to_owned(), "tmpfs", &size, writable).doing(step)?;
    mount::attach(top.as_fd(), target.as_fd()).doing(step)?;
    let trees = match source {
        Source::Cgroups(trees) => trees,
        _ => own_hierarchies(layout, mount.attrs).doing(step)?,
    };
    for (name, tree) in trees {
        place(&top, &name, &tree, mount.attrs).doing(step)?;
    }
    for (root, controllers) in layout.v1().iter().filter(|(_, all)| all.len() > 1) {
        let name = root.file_name().unwrap_or_default();
        for controller in controllers {
            rustix::fs::symlinkat(name, &top, controller.as_str()).doing(step)?;
        }
    }
    configure(mount, top.as_fd()).doing(step)?;
    let Attrs { set, clear } = mount.attrs;
    mount::set_attr(top.as_fd(), &Change { set, clear, ..Change::default() }).doing(step)
}

fn place(top: &OwnedFd, name: &str, tree: &OwnedFd, attrs: Attrs) -> io::Result<()> {
    rustix::fs::mkdirat(top, name, Mode::from_raw_mode(0o755))?;
    let spot = rustix::fs::openat(top, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let change = Change {
        set: attrs.set,
        clear: attrs.clear,
        propagation: Some(Propagation::Private),
        recursive: true,
    };
    mount::set_attr(tree.as_fd(), &change)?;
    mount::attach(tree.as_fd(), spot.as_fd())
}

/// Each hierarchy anew: its root is where this process's cgroup namespace says.
fn own_hierarchies(layout: &Layout, attrs: Attrs) -> io::Result<Vec<(String, OwnedFd)>> {
    let name_of = |root: &Path| root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut trees = Vec::new();
    for (root, controllers) in layout.v1() {
        let data: Vec<(String, Option<String>)> = controllers
            .iter()
            .map(|controller| match controller.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (controller.clone(), None),
            })
            .collect();
        trees.push((name_of(root), make_fs(&c"cgroup".to_owned(), "cgroup", &data, attrs)?));
    }
    if let Some(root) = layout.v2() {
        trees.push((name_of(root), make_fs(&c"cgroup2".to_owned(), "cgroup", &[], attrs)?));
    }
    Ok(trees)
}
