//! The resident server's life: set-up, loop, end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use berth_container::Layout;
use berth_proto::paths::PodPaths;
use berth_sys::resident::Signals;
use rustix::process::Signal;

use crate::args::Args;
use crate::poll::{Interest, Poll, Token};
use crate::shim::Shim;
use crate::ttrpc::Server;

/// As containerd's shims: killed for want of memory after nearly everything else.
const OOM_SCORE: &str = "-998";
/// What asks other programs to end. A shim ends by Shutdown alone: its containers outlive it
/// unwatched otherwise.
const DEAF_TO: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

/// Serves until Shutdown is granted.
pub(crate) fn run(listener: OwnedFd, paths: PodPaths, args: &Args) -> io::Result<()> {
    let mut shim = set_up(listener, paths)?;
    let mut numbers: Vec<i32> = DEAF_TO.iter().map(|signal| signal.as_raw()).collect();
    numbers.push(Signal::CHILD.as_raw());
    let signals = Signals::block(&numbers)?;
    shim.poll.add(&signals, Token::Signals, Interest::IN)?;
    if args.debug {
        crate::log::say(format_args!("pod {}: serving", args.id));
    }
    let mut woken = Vec::new();
    while !shim.ending {
        shim.poll.wait(&mut woken)?;
        for &(token, interest) in &woken {
            if token == Token::Signals {
                hear(&signals, &shim)?;
            } else {
                shim.woken(token, interest);
            }
        }
    }
    // Nobody is to find a socket that nobody serves.
    fs::remove_file(shim.paths.shim_socket())
}

fn set_up(listener: OwnedFd, paths: PodPaths) -> io::Result<Shim> {
    let inherited = lower_oom_score();
    // Orphans of containers in the host's PID namespace come to us, not to the host's init.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let poll = Poll::new()?;
    let server = Server::new(listener, &poll)?;
    let layout = Layout::detect().map_err(io::Error::other)?;
    let mut shim = Shim::new(poll, server, paths, layout);
    shim.inherited_oom_score = inherited;
    Ok(shim)
}

/// Sets the shim's `oom_score_adj` and gives what it was if that worked.
fn lower_oom_score() -> Option<i32> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let inherited = fs::read_to_string(PATH).ok()?.trim().parse().ok()?;
    match fs::write(PATH, OOM_SCORE) {
        Ok(()) => Some(inherited),
        Err(error) => {
            crate::log::say(format_args!(
                "oom_score_adj stays {inherited}, not {OOM_SCORE}: {error}"
            ));
            None
        }
    }
}

fn hear(signals: &Signals, shim: &Shim) -> io::Result<()> {
    while let Some(number) = signals.next()? {
        if number == Signal::CHILD.as_raw() {
            shim.reap_orphans();
        } else {
            crate::log::say(format_args!("signal {number} is ignored: a shim ends by Shutdown"));
        }
    }
    Ok(())
}
