//! What a container's child does between clone3 and execve, top to bottom.
//!
//! It starts in the host's mount namespace, where it takes a detached copy of everything it needs
//! from there: a volume on a dead server holds up this process only, and it can be killed. Then it
//! moves into a copy of the pod's small mount namespace and never names a host path again.

mod dev;
pub(crate) mod init;
pub(crate) mod inside;
mod mounts;
pub(crate) mod program;
mod protect;
mod rootfs;
pub(crate) mod terminal;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::creds;
use berth_sys::mount;
use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, Stdio as Number};
use berth_sys::pty::Pty;
use berth_sys::root::Root;
use rustix::fs::{FileType, Mode, OFlags};

use crate::cgroup::Cgroup;
use crate::container::Stdio;
use crate::plan::process::ProcessPlan;
use crate::plan::{Place, Plan};
use crate::user::{IdMaps, Users};
use crate::wire::{ChildEnd, Doing, Failure, Work};

/// What the child is given beside its plan.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    pub(crate) small_ns: BorrowedFd<'a>,
    pub(crate) layout: &'a crate::cgroup::Layout,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) stdio: Stdio<'a>,
    pub(crate) users: &'a Users<'a>,
    pub(crate) end: ChildEnd,
}

impl Given<'_> {
    /// The host's numbers of the container's root.
    fn owner(&self) -> Work<(u32, u32)> {
        let root = self.users.own().map_or(Ok((0, 0)), |user| user.maps().root());
        root.doing(|| "map the container's root".to_owned())
    }
}

/// The child's whole life. Returns only when it failed.
pub(crate) fn run(plan: &Plan<'_>, given: &Given<'_>) -> i32 {
    let failure = match prepare(plan, given).and_then(|()| program::start(plan, given)) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    given.end.failed(&failure);
    1
}

fn prepare(plan: &Plan<'_>, given: &Given<'_>) -> Work<()> {
    begin(&plan.process, given.stdio, &[given.cgroup], None, &given.end)?;
    let taken = take_from_host(plan, given)?;
    join_shared(plan)?;
    unshare_new(plan)?;
    enter_small(given.small_ns)?;
    protect::write_sysctls(open_dir("/proc")?.as_fd(), plan)?;
    if let Some(console) = furnish(plan, given, taken)? {
        terminal::announce(&console, &plan.process, &given.end)?;
        terminal::adopt(&console.slave, &plan.process)?;
    }
    Ok(())
}

/// What a container takes from the host's mount namespace.
struct Taken {
    null: OwnedFd,
    sources: Vec<mounts::Source>,
    rootfs: rootfs::Opened,
}

/// On the host: takes it.
fn take_from_host(plan: &Plan<'_>, given: &Given<'_>) -> Work<Taken> {
    Ok(Taken {
        null: open_null()?,
        sources: mounts::open_sources(plan, given)?,
        rootfs: rootfs::open(&plan.rootfs, given.users)?,
    })
}

/// In a copy of the small mount namespace, in all the container's namespaces: makes its root file
/// system and pivots into it. Gives the terminal, where one is asked for.
fn furnish(plan: &Plan<'_>, given: &Given<'_>, taken: Taken) -> Work<Option<Pty>> {
    protect::keep_null(taken.null)?;
    let root = rootfs::attach(taken.rootfs)?;
    mounts::attach_all(plan, taken.sources, &root, given)?;
    if plan.sets_up_dev() {
        dev::set_up(&root, plan, given.owner()?)?;
    }
    dev::make_devices(&root, &plan.devices)?;
    let console = terminal::open(&root, plan)?;
    protect::read_only(&root, &plan.readonly)?;
    protect::mask(&root, &plan.masked)?;
    program::make_cwd(&root, &plan.process.cwd)?;
    rootfs::pivot(root, plan)?;
    Ok(console)
}

/// First steps of every child, container or exec, still on the host: its cgroups, so that all it
/// does counts there, a session of its own, its standard descriptors, its badness.
pub(crate) fn begin(
    process: &ProcessPlan,
    stdio: Stdio<'_>,
    cgroups: &[&Cgroup],
    maps: Option<&IdMaps>,
    end: &ChildEnd,
) -> Work<()> {
    for cgroup in cgroups {
        cgroup.enter_v1().map_err(Failure::from)?;
    }
    rustix::process::setsid().doing(|| "setsid".to_owned())?;
    rustix::process::umask(Mode::empty());
    creds::new_session_keyring().doing(|| "make a session keyring".to_owned())?;
    if let Some(wanted) = process.oom_score_adj {
        program::set_oom_score(wanted, end)?;
    }
    if maps.is_some() {
        program::raise_limits(process)?;
    }
    // Root of a user namespace is a user like others to the host.
    let owner = maps.map_or(Some(process.uid), |maps| maps.host_uid(process.uid));
    install_stdio(process, stdio, owner.filter(|uid| *uid != 0))
}

/// `owner`: whose the pipes are to be; `None`: they stay the maker's.
fn install_stdio(process: &ProcessPlan, stdio: Stdio<'_>, owner: Option<u32>) -> Work<()> {
    let null = open_null_file()?;
    let terminal = process.terminal.is_some();
    let given =
        [(stdio.stdin, Number::In), (stdio.stdout, Number::Out), (stdio.stderr, Number::Err)];
    // Lifted above the three first: one of them may be the other's number.
    let mut lifted = Vec::new();
    for (fd, number) in given {
        let fd = fd.filter(|_| !terminal);
        let high = rustix::io::fcntl_dupfd_cloexec(fd.unwrap_or(null.as_fd()), 3);
        lifted.push((high.doing(|| "set up stdio".to_owned())?, number, fd.is_some()));
    }
    for (fd, number, is_given) in &lifted {
        process::install_stdio(fd.as_fd(), *number).doing(|| "set up stdio".to_owned())?;
        if let Some(owner) = owner.filter(|_| *is_given) {
            give_to_user(fd.as_fd(), owner).doing(|| "set up stdio".to_owned())?;
        }
    }
    Ok(())
}

/// So that the user can open /dev/stdout anew. Only what has no other life: a file or device of
/// the host keeps its owner.
fn give_to_user(fd: BorrowedFd<'_>, uid: u32) -> std::io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if matches!(kind, FileType::Fifo | FileType::Socket) {
        rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    Ok(())
}

fn open_null_file() -> Work<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".to_owned())
}

/// A detached mount of the host's /dev/null, checked to be it: what masks files.
fn open_null() -> Work<OwnedFd> {
    let null = mount::clone_tree(rustix::fs::CWD, Path::new("/dev/null"), false);
    let null = null.doing(|| "open /dev/null".to_owned())?;
    let stat = rustix::fs::fstat(&null).doing(|| "stat /dev/null".to_owned())?;
    if stat.st_rdev == rustix::fs::makedev(1, 3) {
        return Ok(null);
    }
    crate::wire::refuse("open /dev/null".to_owned(), "the host's is not the null device")
}

pub(crate) fn open_dir(path: &str) -> Work<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("open {path}"))
}

/// Into the namespaces that others made, but for those that the clone or a later step joins.
fn join_shared(plan: &Plan<'_>) -> Work<()> {
    let mut joined = Vec::new();
    for (kind, place) in &plan.namespaces.join {
        let step = || format!("join the {} namespace", kind.name());
        match place {
            // Joined by the clone itself.
            _ if *kind == Kind::Pid => {}
            Place::Pod(fd) => ns::join(*fd, *kind).doing(step)?,
            Place::Path(path) => {
                let step = || format!("{} {}", step(), path.display());
                joined.push((ns::open(path).doing(step)?, *kind));
            }
        }
    }
    for (fd, kind) in joined {
        let step = || format!("join the {} namespace", kind.name());
        ns::join(fd.as_fd(), kind).doing(step)?;
    }
    Ok(())
}

/// Into those of its own.
fn unshare_new(plan: &Plan<'_>) -> Work<()> {
    // A cgroup namespace takes the groups its maker is in as its roots: those entered above.
    let made_here = |kind: &&Kind| **kind != Kind::Pid;
    let new: Vec<Kind> = plan.namespaces.new.iter().filter(made_here).copied().collect();
    ns::unshare(&new).doing(|| "unshare namespaces".to_owned())?;
    name_host(plan)
}

/// Into a copy of the pod's small mount namespace.
fn enter_small(small_ns: BorrowedFd<'_>) -> Work<()> {
    ns::join(small_ns, Kind::Mnt).doing(|| "join the small mount namespace".to_owned())?;
    ns::unshare(&[Kind::Mnt]).doing(|| "unshare the mount namespace".to_owned())
}

fn name_host(plan: &Plan<'_>) -> Work<()> {
    if plan.namespaces.makes(Kind::Net) {
        berth_sys::netif::bring_up("lo").doing(|| "bring lo up".to_owned())?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).doing(|| format!("set hostname {name}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).doing(|| format!("set domain {name}"))?;
    }
    Ok(())
}

/// A location inside the root, made where absent.
fn ensure(root: &Root, path: &Path, leaf: berth_sys::root::Leaf) -> Work<OwnedFd> {
    root.ensure(path, leaf).doing(|| format!("make {} in the root file system", path.display()))
}
