//! The engine against the kernel: real containers from a busybox root, as root.
//!
//! Runs without the test harness, because the engine's caller must have one thread. Arguments are
//! parts of case names. After every case, what a container could leave behind is compared with
//! before: cgroups, mounts, descriptors, children.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test; the harness-free target is not seen as one"
)]

mod basics;
mod filesystem;
mod setup;

use std::panic::{AssertUnwindSafe, catch_unwind};

use setup::Machine;

/// A named case.
type Case = (&'static str, fn());

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut failed = Vec::new();
    let mut run = 0;
    for (name, case) in [basics::CASES, filesystem::CASES].concat() {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        run += 1;
        let before = Machine::now();
        let ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        let left = before.left_behind();
        if ok && left.is_empty() {
            println!("ok   {name}");
        } else {
            println!("FAIL {name} {}", left.join("; "));
            failed.push(name);
        }
    }
    println!("{run} cases, {} failed {failed:?}", failed.len());
    assert!(failed.is_empty());
}
