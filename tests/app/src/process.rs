//! Commands about the process itself: its end, its signals, its surroundings.

use std::io::{self, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd;

use crate::{Outcome, invalid, number, text};

pub(crate) fn sleep(args: &[String]) -> Outcome {
    let seconds: f64 = number(args, 0, None)?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|e| invalid(&e.to_string()))?;
    std::thread::sleep(time);
    Ok(0)
}

/// Blocks the signals first: as PID 1 a signal without a handler would be lost.
pub(crate) fn pause(_: &[String]) -> Outcome {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    set.wait()?;
    Ok(0)
}

pub(crate) fn exit(args: &[String]) -> Outcome {
    number(args, 0, None)
}

pub(crate) fn raise(args: &[String]) -> Outcome {
    let signal: Signal = text(args, 0)?.parse().map_err(|_| invalid("no such signal"))?;
    nix::sys::signal::raise(signal)?;
    Ok(0)
}

/// Touches every page, then holds the memory for the time given.
pub(crate) fn alloc(args: &[String]) -> Outcome {
    let count: usize = number(args, 0, None)?;
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(vec![0xa5_u8; 1 << 20]);
    }
    writeln!(io::stdout(), "allocated {} MiB", held.len())?;
    sleep(args.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(&["0".to_owned()]))?;
    drop(std::hint::black_box(held));
    Ok(0)
}

/// Says `ready`, waits for any signal that can be caught, names it and ends.
pub(crate) fn signal_trap(args: &[String]) -> Outcome {
    let code = number(args, 0, Some(0))?;
    let mut set = SigSet::all();
    set.remove(Signal::SIGCHLD);
    set.thread_block()?;
    writeln!(io::stdout(), "ready")?;
    let signal = set.wait()?;
    writeln!(io::stdout(), "trapped {signal}")?;
    Ok(code)
}

/// Says `ready` and goes on whatever comes, SIGKILL excepted.
pub(crate) fn ignore_term(_: &[String]) -> Outcome {
    SigSet::all().thread_block()?;
    writeln!(io::stdout(), "ready")?;
    loop {
        std::thread::park();
    }
}

/// Starts sleeping children until N run or the kernel refuses; says how many run.
pub(crate) fn forkbomb(args: &[String]) -> Outcome {
    let count: u32 = number(args, 0, None)?;
    let seconds = args.get(1).map_or("0", String::as_str);
    let mut children = Vec::new();
    for _ in 0..count {
        match again(&["sleep", seconds]) {
            Ok(child) => children.push(child),
            Err(_) => break,
        }
    }
    writeln!(io::stdout(), "{} children", children.len())?;
    for mut child in children {
        child.wait()?;
    }
    Ok(0)
}

/// A chain of processes, each in a session of its own and deaf to signals, that hold stdout.
pub(crate) fn tree(args: &[String]) -> Outcome {
    let depth: u32 = number(args, 0, None)?;
    let seconds = text(args, 1)?;
    SigSet::all().thread_block()?;
    // The first process may lead its group already; then it stays in its session.
    let _ = unistd::setsid();
    if let Some(next) = depth.checked_sub(1) {
        again(&["tree", &next.to_string(), seconds])?;
    }
    writeln!(io::stdout(), "process {}", std::process::id())?;
    sleep(&[seconds.to_owned()])
}

/// This program once more, with other arguments.
fn again(args: &[&str]) -> io::Result<std::process::Child> {
    Command::new("/proc/self/exe").named_as_own().args(args).stdin(Stdio::null()).spawn()
}

/// Keeps a command's name from being read off `/proc/self/exe`.
trait OwnName {
    fn named_as_own(&mut self) -> &mut Self;
}

impl OwnName for Command {
    fn named_as_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::arg0(self, "berth-app")
    }
}

pub(crate) fn env(_: &[String]) -> Outcome {
    for (name, value) in std::env::vars_os() {
        writeln!(io::stdout(), "{}={}", name.to_string_lossy(), value.to_string_lossy())?;
    }
    Ok(0)
}

/// `uid=U gid=G groups=A,B,C` with the effective ids, as numbers.
pub(crate) fn id(_: &[String]) -> Outcome {
    let groups: Vec<String> =
        unistd::getgroups()?.iter().map(|group| group.as_raw().to_string()).collect();
    let (uid, gid) = (unistd::geteuid(), unistd::getegid());
    writeln!(io::stdout(), "uid={uid} gid={gid} groups={}", groups.join(","))?;
    Ok(0)
}

pub(crate) fn pwd(_: &[String]) -> Outcome {
    writeln!(io::stdout(), "{}", std::env::current_dir()?.display())?;
    Ok(0)
}

/// One argument per line, as it came.
pub(crate) fn args(args: &[String]) -> Outcome {
    for arg in args {
        writeln!(io::stdout(), "{arg}")?;
    }
    Ok(0)
}

/// Which of the three streams are terminals.
pub(crate) fn tty(_: &[String]) -> Outcome {
    let streams =
        [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
    writeln!(io::stdout(), "{streams:?}")?;
    Ok(0)
}
