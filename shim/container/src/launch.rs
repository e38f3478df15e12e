//! How a container's first process is cloned.
//!
//! Without a user namespace it is the caller's child and does everything itself. With one it is
//! born inside, where it has no right to do the host's part: it waits while a second child, the
//! builder, makes its root file system, and then takes that over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, Child, CloneArgs};
use berth_sys::sock;

use crate::cgroup::Cgroup;
use crate::child::{self, Given, inside};
use crate::container::{CreateRequest, in_pid_namespace};
use crate::error::{Error, Result, StepExt};
use crate::plan::{Place, Plan, UserPlace};
use crate::talk::Talk;
use crate::user::{Own, UserNamespace, Users};
use crate::wire::{self, ChildEnd, Said};

/// The user namespaces that a plan needs, opened or made.
pub(crate) fn users<'a>(plan: &Plan<'a>) -> Result<Users<'a>> {
    let own = match &plan.user {
        None => None,
        Some(UserPlace::Pod(user)) => Some(Own::Pod(user)),
        Some(UserPlace::Path(path)) => Some(Own::New(UserNamespace::open(path)?)),
        Some(UserPlace::New(maps)) => Some(Own::New(UserNamespace::create(maps)?)),
    };
    let mut users = Users::new(own);
    plan.check_ids(users.own().map(UserNamespace::maps))?;
    for maps in plan.mapped() {
        users.provide(maps)?;
    }
    Ok(users)
}

/// Clones it.
pub(crate) fn launch(
    plan: &Plan<'_>,
    request: &CreateRequest<'_>,
    cgroup: &Cgroup,
    users: &Users<'_>,
) -> Result<Talk> {
    let (ours, theirs) = sock::message_pair().step(|| "make a socket".to_owned())?;
    let mut keep = vec![0, 1, 2, theirs.as_raw_fd(), request.pod.mnt().as_raw_fd()];
    keep.extend(request.stdio.raw());
    keep.extend(users.fds().map(|fd| fd.as_raw_fd()));
    keep.extend(plan.namespaces.join.iter().filter_map(|(_, place)| match place {
        Place::Pod(fd) => Some(fd.as_raw_fd()),
        Place::Path(_) => None,
    }));
    let cgroup_fd = cgroup.open_v2()?;
    let birth = Birth { plan, keep, cgroup: cgroup_fd.as_ref().map(AsFd::as_fd) };
    let given = |end: OwnedFd| Given {
        small_ns: request.pod.mnt(),
        layout: request.layout,
        cgroup,
        stdio: request.stdio,
        users,
        end: ChildEnd::new(end),
    };
    match users.own() {
        None => {
            let new_pid = plan.namespaces.makes(Kind::Pid);
            let namespaces = if new_pid { Kind::Pid.flag() } else { 0 };
            let made = birth.of(&[], namespaces, || child::run(plan, &given(theirs)));
            Ok(Talk::new(made?, ours))
        }
        Some(_) => birth.inside(ours, theirs, &given),
    }
}

/// What all children of one launch have in common.
struct Birth<'a> {
    plan: &'a Plan<'a>,
    keep: Vec<RawFd>,
    cgroup: Option<BorrowedFd<'a>>,
}

impl Birth<'_> {
    /// A child in the PID namespace that the plan joins, if it joins one.
    fn of(&self, keep: &[RawFd], namespaces: u64, work: impl FnOnce() -> i32) -> Result<Child> {
        let keep = [&self.keep, keep].concat();
        let args = CloneArgs { namespaces, cgroup: self.cgroup, keep: Some(&keep), sibling: false };
        let clone = || process::spawn(&args, work);
        let made = match self.plan.namespaces.join.iter().find(|(kind, _)| *kind == Kind::Pid) {
            Some((_, Place::Pod(fd))) => in_pid_namespace(*fd, clone),
            Some((_, Place::Path(path))) => {
                let fd =
                    ns::open(path).step(|| format!("join the pid namespace {}", path.display()))?;
                in_pid_namespace(fd.as_fd(), clone)
            }
            None => clone(),
        };
        made.step(|| "clone the container's first process".to_owned())
    }

    /// The first process inside its user namespace, and the builder.
    fn inside<'a>(
        &self,
        ours: OwnedFd,
        theirs: OwnedFd,
        given: &dyn Fn(OwnedFd) -> Given<'a>,
    ) -> Result<Talk> {
        let plan = self.plan;
        let step = || "make a socket".to_owned();
        let (builders, firsts) = sock::message_pair().step(step)?;
        let own = theirs.try_clone().step(step)?;
        let helper = self.of(&[own.as_raw_fd(), firsts.as_raw_fd()], 0, || {
            inside::bear(plan, &given(own), firsts)
        })?;
        let born = born(helper, &ours)?;
        let first = born.child;
        let mut keep = [&self.keep[..], &[builders.as_raw_fd()]].concat();
        keep.push(first.pidfd.as_raw_fd());
        let args = CloneArgs { cgroup: self.cgroup, keep: Some(&keep), ..CloneArgs::default() };
        let clone =
            || process::spawn(&args, || inside::build(plan, &given(theirs), builders, &first));
        let builder = match plan.kinds().contains(&Kind::Pid) {
            true => in_pid_namespace(first.pidfd.as_fd(), clone),
            false => clone(),
        };
        match builder {
            Ok(builder) => {
                let mut talk = Talk::new(first, ours).with_builder(builder);
                talk.warnings = born.warnings;
                Ok(talk)
            }
            Err(err) => {
                let _ = process::signal(first.pidfd.as_fd(), 9);
                process::wait(first.pidfd.as_fd()).step(|| "wait for a child".to_owned())?;
                Err(err).step(|| "clone the container's builder".to_owned())
            }
        }
    }
}

/// A process that a helper made for its own maker.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) child: Child,
    pub(crate) warnings: Vec<String>,
}

/// Waits for the helper's end, and takes the process that it made.
pub(crate) fn born(helper: Child, socket: &OwnedFd) -> Result<Born> {
    let step = || "clone a process inside the user namespace".to_owned();
    let exit = process::wait(helper.pidfd.as_fd()).step(step)?;
    let mut warnings = Vec::new();
    loop {
        match wire::hear(socket.as_fd()) {
            Ok(Said::Warning(text)) => warnings.push(text),
            Ok(Said::Born(pidfd)) => {
                let pid = process::pid_of(pidfd.as_fd()).step(step)?;
                return Ok(Born { child: Child { pid, pidfd }, warnings });
            }
            Ok(Said::Failed(failure)) => return Err(failure.into()),
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Err(err).step(step),
            _ => return Err(Error::Died { step: step(), status: exit.into() }),
        }
    }
}
