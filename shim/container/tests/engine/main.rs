//! The engine against the kernel: real containers from a busybox root, as root.
//!
//! Runs without the test harness, because the engine's caller must have one thread. Arguments are
//! parts of case names. After every case, what a container could leave behind is compared with
//! before: cgroups, mounts, descriptors, children.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test; the harness-free target is not seen as one"
)]

mod basics;
mod cgroups;
mod filesystem;
mod pods;
mod processes;
mod setup;
mod speed;
mod users;

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use berth_sys::mount::{self, Change, Propagation};
use berth_sys::ns::{self, Kind};
use setup::Machine;

/// A named case.
type Case = (&'static str, fn());

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    // What other tests mount meanwhile is not to be mistaken for what a container left.
    ns::unshare(&[Kind::Mnt]).unwrap();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--speed") {
        return speed::print();
    }
    let mut failed = Vec::new();
    set_root(Propagation::Private);
    let all = [
        basics::CASES,
        cgroups::CASES,
        filesystem::CASES,
        pods::CASES,
        processes::CASES,
        users::CASES,
    ];
    run(&all.concat(), "", &wanted, &mut failed);
    set_root(Propagation::Shared);
    run(filesystem::CASES, " (the host's root is shared)", &wanted, &mut failed);
    setup::USERS.store(true, Ordering::Relaxed);
    run(&all.concat(), " (in a user namespace)", &wanted, &mut failed);
    println!("{} failed {failed:?}", failed.len());
    assert!(failed.is_empty());
}

/// The host's root mount is private on some machines and shared on others (systemd).
fn set_root(propagation: Propagation) {
    let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let propagation = Some(propagation);
    let change = Change { propagation, recursive: true, ..Change::default() };
    mount::set_attr(root.as_fd(), &change).unwrap();
}

fn run(cases: &[Case], how: &str, wanted: &[String], failed: &mut Vec<String>) {
    for (name, case) in cases {
        let other = setup::USERS.load(Ordering::Relaxed);
        if let Some((_, why)) = users::OTHERWISE.iter().find(|(case, _)| other && case == name) {
            println!("n/a  {name}{how}: {why}");
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let before = Machine::now();
        let ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        let left = before.left_behind();
        if ok && left.is_empty() {
            println!("ok   {name}{how}");
        } else {
            println!("FAIL {name}{how} {}", left.join("; "));
            failed.push(format!("{name}{how}"));
            Machine::clean();
        }
    }
}
