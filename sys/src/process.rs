//! Children by clone3, handles to them, their end, and execve.

use std::ffi::{CString, c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{WaitId, WaitIdOptions};

/// How to make a child.
#[derive(Debug, Default)]
pub struct CloneArgs<'a> {
    /// `CLONE_NEW*` flags: namespaces the child is the first member of.
    pub namespaces: u64,
    /// A cgroup v2 directory the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Descriptors the child keeps; all others are closed in it before its code runs.
    /// `None`: it keeps all.
    pub keep: Option<&'a [RawFd]>,
    /// The child is a child of the caller's own parent, not of the caller.
    pub sibling: bool,
}

/// A process we made.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's PID namespace.
    pub pid: u32,
    /// A handle to it; readable when it ended.
    pub pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

/// The kernel's `struct clone_args` (linux/sched.h, size of kernel 5.7).
#[repr(C)]
#[derive(Default)]
struct RawCloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Runs `child` in a new process and ends it with the returned code (101 after a panic).
///
/// The child is a full copy (as by fork(2)), so it may allocate and lock, but only because no
/// other thread can hold a lock at that moment: a caller with more than one thread gets
/// `EDEADLK`. It is born non-dumpable, so that a process in a PID namespace it is born into
/// can't read its memory or descriptors unless it holds CAP_SYS_PTRACE.
///
/// Errors: those of clone3(2); `EDEADLK`.
pub fn spawn(args: &CloneArgs<'_>, child: impl FnOnce() -> i32) -> io::Result<Child> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let was_dumpable = set_dumpable(false)?;
    let made = clone3(args);
    if let Ok(None) = made {
        if let Some(keep) = args.keep {
            close_all_but(keep);
        }
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
        exit_now(code)
    }
    if was_dumpable {
        set_dumpable(true)?;
    }
    made?.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// `Ok(None)` in the child.
fn clone3(args: &CloneArgs<'_>) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let mut raw = RawCloneArgs {
        flags: args.namespaces | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: 17, // SIGCHLD
        ..RawCloneArgs::default()
    };
    if args.sibling {
        raw.flags |= CLONE_PARENT;
        // It gets the caller's own.
        raw.exit_signal = 0;
    }
    if let Some(cgroup) = args.cgroup {
        raw.flags |= CLONE_INTO_CGROUP;
        raw.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `raw` is a live clone_args of the size given. Neither CLONE_VM nor a stack is asked
    // for, so the child gets its own copy of this memory and stack, as by fork. `pidfd` outlives
    // the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut raw), size_of::<RawCloneArgs>())
    };
    match ret {
        0 => Ok(None),
        pid if pid > 0 => {
            // SAFETY: the kernel stored a new descriptor there that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = u32::try_from(pid).map_err(io::Error::other)?;
            Ok(Some(Child { pid, pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Threads of this process.
pub fn thread_count() -> io::Result<u64> {
    let tasks = rustix::fs::stat("/proc/self/task")?;
    // Two links of the directory itself, one per thread.
    Ok(tasks.st_nlink.saturating_sub(2))
}

/// prctl(PR_SET_DUMPABLE); returns whether it was on.
pub fn set_dumpable(on: bool) -> io::Result<bool> {
    use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
    let was = dumpable_behavior()? == DumpableBehavior::Dumpable;
    if was != on {
        let new = if on { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
        set_dumpable_behavior(new)?;
    }
    Ok(was)
}

/// Ends this process at once: no destructors, no atexit functions, no flush.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor not in `keep`. For a child that has just been made: values of its
/// parent's memory that own other descriptors must not be used any more.
fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1, 0);
        }
        from = from.max(fd.saturating_add(1));
    }
    close_range(from, u32::MAX, 0);
}

/// Closes every descriptor of this process but these. For a child that stays and must hold nothing
/// of its parent's: values that own other descriptors must not be used any more.
pub fn keep_only(keep: &[BorrowedFd<'_>]) {
    let keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    close_all_but(&keep);
}

/// Marks every descriptor from 3 up close-on-exec.
pub fn cloexec_all() {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: u32) {
    // SAFETY: takes numbers only. Closing is what the callers document. It fails for a kernel
    // below 5.9 or bad arguments only, which the kernel floor and the callers exclude.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Makes `fd` number `target` (0, 1 or 2), inherited over execve. `fd` itself stays.
pub fn install_stdio(fd: BorrowedFd<'_>, target: Stdio) -> io::Result<()> {
    match target {
        Stdio::In => rustix::stdio::dup2_stdin(fd)?,
        Stdio::Out => rustix::stdio::dup2_stdout(fd)?,
        Stdio::Err => rustix::stdio::dup2_stderr(fd)?,
    }
    Ok(())
}

/// The three standard descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// 0
    In,
    /// 1
    Out,
    /// 2
    Err,
}

/// Gives every signal its default action and unblocks all: what a program expects at its start.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL is always a valid handler. The two numbers glibc keeps for itself fail
        // with EINVAL, which is what we want of them.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none: u64 = 0;
    // SAFETY: a kernel signal set is 64 bits here, `none` lives over the call, and no old set is
    // asked for.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            std::ptr::from_ref(&none),
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
    check(ret)
}

/// execve(2). Returns only on failure.
pub fn execve(program: &CString, argv: &[CString], envp: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let envp = pointers(envp);
    // SAFETY: all three are NUL-terminated strings, or null-terminated arrays of such, that
    // outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// A handle to a running process of this PID namespace. `ESRCH`: no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// The id, in the PID namespace that /proc shows, of a process of which there is a handle. `ESRCH`:
/// it is reaped, or of no such namespace.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid != 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Sends `signal`. `ESRCH`: ended and reaped; `EINVAL`: no such signal.
pub fn signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: takes numbers and a null siginfo, which the call allows.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(ret)
}

/// How a child of ours ended; `None` while it runs. Doesn't reap it. `ECHILD`: not our child, or
/// reaped.
pub fn peek_exit(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    wait_with(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)
}

/// As [`peek_exit`], and reaps it.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    wait_with(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// Waits for the end of a child of ours and reaps it.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    wait_with(pidfd, WaitIdOptions::EXITED)?
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))
}

fn wait_with(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<Exit>> {
    let Some(status) =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), options))?
    else {
        return Ok(None);
    };
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    Ok(status
        .exit_status()
        .map(|code| Exit::Code(byte(code)))
        .or_else(|| status.terminating_signal().map(|signal| Exit::Signal(byte(signal)))))
}

/// Waits until one of `fds` is readable or hung up. `false`: the time is over.
pub fn wait_readable(
    fds: &[BorrowedFd<'_>],
    limit: Option<std::time::Duration>,
) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    match poll(&mut polled, limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(err) => Err(err.into()),
    }
}

pub(crate) fn check(ret: c_long) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
