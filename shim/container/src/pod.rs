//! What the containers of a pod share: namespaces held as descriptors, and the small mount
//! namespace (tmpfs root, /proc, /sys, the pod's /dev/shm) that each container's own is cloned
//! from, so that its cost doesn't grow with the host's mount table.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{self, Change, FsContext, Propagation, attr};
use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, Child, CloneArgs};
use berth_sys::{netif, sock};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result, StepExt};
use crate::exit::ExitStatus;
use crate::launch;
use crate::plan::{invalid, sysctls};
use crate::user::{self, IdMaps, UserNamespace};
use crate::wire::{self, ChildEnd, Doing, Failure, Said, Work, hear};

/// Directory of the small namespace where a container attaches its root.
pub(crate) const ROOTFS: &str = "/rootfs";
/// Directory of the small namespace where the layers of a root are attached for a moment.
pub(crate) const LAYERS: &str = "/layers";
/// File of the small namespace where a container attaches the null device that masks files.
pub(crate) const NULL: &str = "/null";
/// Directory of the small namespace with the pod's /dev/shm.
pub(crate) const SHM: &str = "/shm";

/// What to make for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodOptions {
    /// A network namespace of its own, with `lo` up.
    pub net: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// A UTS namespace of its own.
    pub uts: bool,
    /// Host name inside the own UTS namespace. Must be `None` without one.
    pub hostname: Option<String>,
    /// Dotted names to values, written inside the pod's namespaces. Each must belong to a
    /// namespace the pod owns ([`Error::InvalidSpec`] with field `sysctl.NAME` otherwise).
    pub sysctls: BTreeMap<String, String>,
    /// Size of the pod's /dev/shm in bytes. `None`: the small namespace holds none.
    pub shm_size: Option<u64>,
    /// A user namespace of its own that maps like this and owns the others. It must map 0.
    pub user: Option<IdMaps>,
}

/// A pod's namespaces. They live as long as this value or a process inside them.
#[derive(Debug)]
pub struct PodNamespaces {
    mnt: OwnedFd,
    user: Option<UserNamespace>,
    net: Option<OwnedFd>,
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    pid: Option<OwnedFd>,
}

impl PodNamespaces {
    /// Makes them in a short-lived child of this single-threaded process. Blocks for well under
    /// 10 ms; the host's mount table gets no entry.
    pub fn create(options: &PodOptions) -> Result<Self> {
        let kinds = options.kinds();
        let own = |kind| kinds.contains(&kind);
        let sysctls = sysctls(options.sysctls.iter(), &own, "sysctl.")?;
        if options.hostname.is_some() && !options.uts {
            return Err(invalid("hostname", "set without a uts namespace"));
        }
        let Some(maps) = &options.user else {
            let mut made = make_small(&[], |end| {
                ns::unshare(&kinds).doing(|| "unshare the pod's namespaces".to_owned())?;
                settle(options, &sysctls)?;
                small_root(options.shm_size, (0, 0)).and_then(|()| hand_over(end, &all(&kinds)))
            })?;
            return Self::of(&mut made, &kinds, None);
        };
        maps.check(|name| name.to_owned())?;
        let root = maps.root().step(|| "map the pod's ids".to_owned())?;
        let (user, inner) = make_inside(maps, options, &kinds, &sysctls)?;
        // The small mount namespace stays the host's, since its root mounts in it.
        let mut made = make_small(&inner, |end| {
            for (fd, kind) in inner.iter().zip(&kinds) {
                ns::join(fd.as_fd(), *kind).doing(|| "join the pod's namespaces".to_owned())?;
            }
            small_root(options.shm_size, root).and_then(|()| hand_over(end, &all(&kinds)))
        })?;
        Self::of(&mut made, &kinds, Some(user))
    }

    /// `fds`: the mount namespace, then one for each kind.
    fn of(
        fds: &mut impl Iterator<Item = OwnedFd>,
        kinds: &[Kind],
        user: Option<UserNamespace>,
    ) -> Result<Self> {
        let mut next = || {
            let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
            fds.next().ok_or_else(short).step(|| "receive the pod's namespaces".to_owned())
        };
        let mut pod = Self { mnt: next()?, user, net: None, ipc: None, uts: None, pid: None };
        for kind in kinds {
            let fd = next()?;
            match kind {
                Kind::Net => pod.net = Some(fd),
                Kind::Ipc => pod.ipc = Some(fd),
                Kind::Uts => pod.uts = Some(fd),
                Kind::Mnt | Kind::Pid | Kind::Cgroup | Kind::User => {}
            }
        }
        Ok(pod)
    }

    /// The own user namespace, if any.
    #[must_use]
    pub fn user(&self) -> Option<&UserNamespace> {
        self.user.as_ref()
    }

    /// The small mount namespace.
    #[must_use]
    pub fn mnt(&self) -> BorrowedFd<'_> {
        self.mnt.as_fd()
    }

    /// The own network namespace, if any.
    #[must_use]
    pub fn net(&self) -> Option<BorrowedFd<'_>> {
        self.net.as_ref().map(AsFd::as_fd)
    }

    /// The own IPC namespace, if any.
    #[must_use]
    pub fn ipc(&self) -> Option<BorrowedFd<'_>> {
        self.ipc.as_ref().map(AsFd::as_fd)
    }

    /// The own UTS namespace, if any.
    #[must_use]
    pub fn uts(&self) -> Option<BorrowedFd<'_>> {
        self.uts.as_ref().map(AsFd::as_fd)
    }

    /// The PID namespace that containers share, if any.
    #[must_use]
    pub fn pid(&self) -> Option<BorrowedFd<'_>> {
        self.pid.as_ref().map(AsFd::as_fd)
    }

    /// Makes a PID namespace for containers to share, with a tiny init of ours as its first
    /// process: it reaps whatever is orphaned to it and ends when killed. It is a child of the
    /// caller, in the caller's cgroups, in the pod's namespaces, without rights and with an empty
    /// root directory. Returns its host process id and a pidfd; containers whose spec has a `pid`
    /// namespace with path `pod:` then join it.
    pub fn start_init(&mut self) -> Result<(u32, OwnedFd)> {
        let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
        let fds = [Some(self.mnt()), self.net(), self.ipc(), self.uts()];
        let mut keep = vec![0, 1, 2, theirs.as_raw_fd()];
        keep.extend(fds.iter().flatten().map(AsRawFd::as_raw_fd));
        let Child { pid, pidfd } = match &self.user {
            None => {
                let args = CloneArgs {
                    namespaces: Kind::Pid.flag(),
                    keep: Some(&keep),
                    ..CloneArgs::default()
                };
                let made =
                    process::spawn(&args, || crate::child::init::run(self, ChildEnd::new(theirs)));
                made.step(|| "clone the pod's init".to_owned())?
            }
            Some(user) => {
                keep.push(user.as_fd().as_raw_fd());
                let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
                let made = process::spawn(&args, || {
                    crate::child::init::bear(self, user, ChildEnd::new(theirs))
                });
                launch::born(made.step(|| "clone the pod's init".to_owned())?, &ours)?.child
            }
        };
        let told = sock::receive(ours.as_fd(), 8192, true);
        let ready = told.is_ok_and(|message| message.bytes == b"r");
        let namespace = ns::open(Path::new(&format!("/proc/{pid}/ns/pid")));
        match (ready, namespace) {
            (true, Ok(namespace)) => {
                self.pid = Some(namespace);
                Ok((pid, pidfd))
            }
            (_, opened) => {
                let _ = process::signal(pidfd.as_fd(), 9);
                let status = process::wait(pidfd.as_fd()).step(|| "wait for init".to_owned())?;
                opened.step(|| "open the pod's pid namespace".to_owned())?;
                Err(Error::Died { step: "start the pod's init".into(), status: status.into() })
            }
        }
    }

    /// Binds the own network namespace to `path` (an absolute path on the host; the file is made,
    /// mode 0444; its directory must exist), so that CNI plugins can open it.
    pub fn pin_net(&self, path: &Path) -> Result<()> {
        let step = || format!("pin the network namespace at {}", path.display());
        let net = self.net().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).step(step)?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o444));
        let file = file.map_err(io::Error::from).step(step)?;
        let pinned = mount::clone_tree(net, Path::new(""), false)
            .and_then(|namespace| mount::attach(namespace.as_fd(), file.as_fd()));
        if pinned.is_err() {
            let _ = std::fs::remove_file(path);
        }
        pinned.step(step)
    }
}

/// Undoes [`PodNamespaces::pin_net`]: unmounts and removes the file. Absent is fine.
pub fn unpin(path: &Path) -> Result<()> {
    let step = || format!("unpin {}", path.display());
    match mount::detach(path) {
        // EINVAL: a file on which nothing is mounted (a pin that was interrupted).
        Err(err) if err.raw_os_error() != Some(22) && err.kind() != io::ErrorKind::NotFound => {
            return Err(err).step(step);
        }
        _ => {}
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err).step(step),
        _ => Ok(()),
    }
}

impl PodOptions {
    fn kinds(&self) -> Vec<Kind> {
        let all = [(self.net, Kind::Net), (self.ipc, Kind::Ipc), (self.uts, Kind::Uts)];
        all.into_iter().filter(|(own, _)| *own).map(|(_, kind)| kind).collect()
    }
}

/// The mount namespace's kind, then these.
fn all(kinds: &[Kind]) -> Vec<Kind> {
    [Kind::Mnt].iter().chain(kinds).copied().collect()
}

/// Makes the user namespace, and those of `kinds` inside it, in a child that becomes its root:
/// the kernel lets nobody else write the sysctls of an IPC namespace, not even the host's root.
fn make_inside(
    maps: &IdMaps,
    options: &PodOptions,
    kinds: &[Kind],
    sysctls: &[(PathBuf, String)],
) -> Result<(UserNamespace, Vec<OwnedFd>)> {
    let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
    let keep = [0, 1, 2, theirs.as_raw_fd()];
    let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
    let child = user::spawn(&args, || {
        say(ChildEnd::new(theirs), |end| {
            end.wait_go()?;
            user::become_root()?;
            ns::unshare(kinds).doing(|| "unshare the pod's namespaces".to_owned())?;
            settle(options, sysctls)?;
            let all: Vec<Kind> = [Kind::User].iter().chain(kinds).copied().collect();
            hand_over(end, &all)
        })
    })?;
    let mapped = user::map(&child, maps)
        .and_then(|()| wire::say_go(ours.as_fd()).step(|| "go on with the pod".to_owned()));
    if let Err(err) = mapped {
        // The child ends when nobody is there to tell it to go on.
        drop(ours);
        process::wait(child.pidfd.as_fd()).step(|| "wait for a child".to_owned())?;
        return Err(err);
    }
    let mut fds = receive(&ours, &child)?;
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let fd = fds.next().ok_or_else(short).step(|| "receive the user namespace".to_owned())?;
    Ok((UserNamespace::new(fd, maps.clone()), fds.collect()))
}

/// Makes the small mount namespace in a child that does `work`, in which it may use `fds`, and
/// hands its namespaces over.
fn make_small(
    fds: &[OwnedFd],
    work: impl FnOnce(&ChildEnd) -> Work<()>,
) -> Result<impl Iterator<Item = OwnedFd>> {
    let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
    let mut keep = vec![0, 1, 2, theirs.as_raw_fd()];
    keep.extend(fds.iter().map(AsRawFd::as_raw_fd));
    let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
    let made = process::spawn(&args, || say(ChildEnd::new(theirs), work));
    let child = made.step(|| "clone the pod's first child".to_owned())?;
    receive(&ours, &child)
}

fn say(end: ChildEnd, work: impl FnOnce(&ChildEnd) -> Work<()>) -> i32 {
    match work(&end) {
        Ok(()) => 0,
        Err(failure) => {
            end.failed(&failure);
            1
        }
    }
}

/// Waits for the child's end, and takes the descriptors it sent.
fn receive(socket: &OwnedFd, child: &Child) -> Result<std::vec::IntoIter<OwnedFd>> {
    let exit = process::wait(child.pidfd.as_fd()).step(|| "wait for a child".to_owned())?;
    let status = ExitStatus::from(exit);
    if status != ExitStatus::Code(0) {
        return Err(match hear(socket.as_fd()) {
            Ok(Said::Failed(failure)) => failure.into(),
            _ => Error::Died { step: "make the pod's namespaces".into(), status },
        });
    }
    let message = sock::receive(socket.as_fd(), 1, false);
    Ok(message.step(|| "receive the pod's namespaces".to_owned())?.fds.into_iter())
}

/// In a child in the pod's new namespaces: their names and settings.
fn settle(options: &PodOptions, sysctls: &[(PathBuf, String)]) -> Work<()> {
    if options.net {
        netif::bring_up("lo").doing(|| "bring lo up".to_owned())?;
    }
    if let Some(name) = &options.hostname {
        rustix::system::sethostname(name.as_bytes()).doing(|| format!("set hostname {name}"))?;
    }
    for (path, value) in sysctls {
        let file = Path::new("/proc/sys").join(path);
        std::fs::write(&file, value).doing(|| format!("write {value:?} to {}", file.display()))?;
    }
    Ok(())
}

/// Leaves the host's mounts behind for a tmpfs with what containers start from. `owner`: the
/// host's numbers of the pod's root.
fn small_root(shm_size: Option<u64>, owner: (u32, u32)) -> Work<()> {
    let whole = || "make the small mount namespace".to_owned();
    ns::unshare(&[Kind::Mnt]).doing(whole)?;
    let host = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let host = host.doing(whole)?;
    let private =
        Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    mount::set_attr(host.as_fd(), &private).doing(whole)?;
    let root = new_fs("tmpfs", &[("mode", "0755"), ("size", "64k")], attr::NODEV | attr::NOSUID)?;
    let safe = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    // Any directory of the host's tree serves as the mount point, for a moment.
    let spot = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    mount::attach(root.as_fd(), spot.doing(whole)?.as_fd()).doing(whole)?;
    put(&root, "proc", &new_fs("proc", &[], safe)?)?;
    put(&root, "sys", &new_fs("sysfs", &[], safe)?)?;
    if let Some(size) = shm_size {
        let (size, uid, gid) = (size.to_string(), owner.0.to_string(), owner.1.to_string());
        let options = [("mode", "1777"), ("size", &size), ("uid", &uid), ("gid", &gid)];
        put(&root, "shm", &new_fs("tmpfs", &options, safe)?)?;
    }
    for name in ["rootfs", "layers"] {
        // For all to enter: the init of a pod with a user namespace has no right over it.
        rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755)).doing(whole)?;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&root, "null", flags, Mode::empty()).doing(whole)?;
    rustix::process::fchdir(&root).doing(whole)?;
    drop((host, root));
    mount::pivot_to_cwd().doing(whole)
}

fn new_fs(kind: &str, options: &[(&str, &str)], attrs: u64) -> Work<OwnedFd> {
    let make = || -> io::Result<OwnedFd> {
        let context = FsContext::open(&std::ffi::CString::new(kind)?)?;
        for (key, value) in options {
            context.string(key, *value)?;
        }
        context.mount(attrs)
    };
    make().doing(|| format!("make a {kind} for the small mount namespace"))
}

fn put(root: &OwnedFd, name: &str, mount: &OwnedFd) -> Work<()> {
    let attach = || -> io::Result<()> {
        rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
        let spot = rustix::fs::openat(root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(mount.as_fd(), spot.as_fd())
    };
    attach().doing(|| format!("mount /{name} in the small mount namespace"))
}

fn hand_over(end: &ChildEnd, kinds: &[Kind]) -> Work<()> {
    let mut fds = Vec::new();
    for kind in kinds {
        let fd = ns::current(*kind);
        fds.push(fd.doing(|| format!("open the pod's {} namespace", kind.name()))?);
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    sock::send(end.as_fd(), b"n", &borrowed)
        .map_err(|source| Failure::Step { step: "hand the namespaces over".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_would_change_the_host_are_refused_before_anything_is_made() {
        let sysctls = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        let options = PodOptions { sysctls, ..PodOptions::default() };
        let err = PodNamespaces::create(&options).unwrap_err();
        assert!(err.to_string().starts_with("sysctl.net.ipv4.ip_forward"), "{err}");
        let options = PodOptions { hostname: Some("x".into()), ..PodOptions::default() };
        let err = PodNamespaces::create(&options).unwrap_err();
        assert!(err.to_string().starts_with("hostname"), "{err}");
    }
}
