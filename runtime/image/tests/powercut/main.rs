//! Power cuts: a process pulls, removes, mounts and restarts on a file system of its own, which
//! is cut off its disk at a random instant (`FS_IOC_SHUTDOWN`) and mounted again. After each cut
//! every file of every listed image is read and compared with what was pushed, every image that
//! was known to be on disk must be there, and nothing may be left that no record knows. Some
//! processes are cut while they check and repair.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `BERTH_POWERCUT_CUTS` | how many cuts | 500 |
//! | `BERTH_POWERCUT_SEED` | what all chance follows from; printed at the start | the time |
//! | `BERTH_POWERCUT_FS` | which file system is made (`mkfs.FS` must be there) | `ext4` |
//! | `BERTH_POWERCUT_OPTIONS` | mount options | none |
//! | `BERTH_POWERCUT_DEVICE` | a block device to make it on: what it holds is lost | a loop device |
//!
//! A test program that was built once runs anywhere: on XFS in a virtual machine
//! `BERTH_POWERCUT_FS=xfs BERTH_POWERCUT_CUTS=2000 powercut`. For a device that records the order
//! of writes (dm-log-writes), the two halves can be had by themselves:
//!
//! - `powercut work DIR JOURNAL SEED OPERATIONS` works on a store below DIR and cuts nothing. Each
//!   time that what must survive changes, it appends a line to JOURNAL and then runs
//!   `$BERTH_POWERCUT_MARK LINE_NUMBER` (such as a script around `dmsetup message DEV 0 mark`).
//! - `powercut check DIR JOURNAL SEED LINE_NUMBER` checks the store below DIR, which is a replay
//!   up to or past that mark and not past the next one.
//!
//! The program proves itself: `a_marker_before_its_data_is_found_out` breaks the order of writes,
//! markers before data, and must find wrong files.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program: what does not hold ends it"
)]

mod catalog;
mod check;
mod child;
mod cuts;
mod disk;
#[path = "../it/images.rs"]
#[allow(dead_code, reason = "shared with the other test program")]
mod images;
mod journal;
mod server;
#[path = "../it/tarball.rs"]
#[allow(dead_code, reason = "shared with the other test program")]
mod tarball;

use std::process::ExitCode;

type Test = fn(seed: u64);

const TESTS: [(&str, Test); 2] = [
    ("no_cut_gives_a_wrong_file_or_loses_an_image", cuts::no_wrong_file),
    ("a_marker_before_its_data_is_found_out", cuts::broken_order),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", ..] => child::run(&args[1..]),
        ["work", dir, journal, seed, operations] => journal::work(dir, journal, seed, operations),
        ["check", dir, journal, seed, line] => journal::check(dir, journal, seed, line),
        _ => return tests(&args),
    }
    ExitCode::SUCCESS
}

/// As libtest: words are parts of the names of the tests to run.
fn tests(args: &[String]) -> ExitCode {
    let wanted = args.iter().find(|arg| !arg.starts_with('-'));
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let seed = number("BERTH_POWERCUT_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    println!("power cuts with BERTH_POWERCUT_SEED={seed}");
    // A mount namespace that is made meanwhile must not keep a copy of the cut file system.
    berth_sys::ns::unshare(&[berth_sys::ns::Kind::Mnt]).unwrap();
    let private = std::process::Command::new("mount").args(["--make-rprivate", "/"]).status();
    assert!(private.unwrap().success());
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for (name, test) in TESTS {
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            left_out += 1;
            continue;
        }
        if std::panic::catch_unwind(|| test(seed)).is_ok() {
            println!("test {name} ... ok");
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed += 1;
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; \
         {left_out} filtered out"
    );
    ExitCode::from(u8::from(failed > 0))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")))
}
