//! `containerd-shim-berth-v1`: one process per pod, which owns the pod's namespaces, its
//! containers, their logs and their exit records, and outlives the daemon that started it.
//!
//! One thread on one poll loop; no lock, no tokio.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`], [`bootstrap`] | the command line; the verbs `start`, `delete` and `probe` |
//! | [`resident`] | the resident server's life: set-up, loop, end |
//! | [`poll`] | epoll, tokens, timers |
//! | [`ttrpc`] | framing, connections, replies |
//! | [`service`] | containerd's Task service and our Pod service: decode, call, encode |
//! | [`shim`] | everything one shim has; who is woken by what |
//! | [`pod`] | the pod's namespaces and its end |
//! | [`container`] | one container's states, from create to delete |
//! | [`exec`] | commands inside a running container |
//! | [`leash`] | the streams of a command or a container, in other hands |
//! | [`outputs`] | what of a command's output does not fit into one answer |
//! | [`orphans`] | processes that nobody else reaps |
//! | [`exits`] | exit records on disk |
//! | [`pumps`] | when which output is read |
//! | [`io`] | pumps, log files, captured output |
//! | [`log`] | the shim's own messages |
#![forbid(unsafe_code)]

mod args;
mod bootstrap;
mod container;
mod delete;
mod exec;
mod exits;
mod io;
mod leash;
mod log;
mod orphans;
mod outputs;
mod pod;
mod poll;
mod pumps;
mod resident;
mod service;
mod shim;
mod ttrpc;

use std::process::ExitCode;

use args::{Args, Verb};

fn main() -> ExitCode {
    berth_sys::resident::keep_memory_small();
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            log::say(format_args!("{error}"));
            return ExitCode::from(2);
        }
    };
    let done = match args.verb {
        Verb::Version => bootstrap::version(),
        Verb::Start => bootstrap::start(&args),
        Verb::Delete => bootstrap::delete(&args),
        Verb::Probe => bootstrap::probe(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}
