//! What needs a process of one thread, so it runs without the test harness (which has several).
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test; the harness-free target is not seen as one"
)]

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use berth_sys::ns::{self, Kind};
use berth_sys::process::{self, CloneArgs, Exit};
use berth_sys::sock;

fn main() {
    let cases: &[(&str, fn())] = &[
        ("a child's code and signal come back", code_and_signal),
        ("a panicking child ends with 101", panicking_child),
        ("a child keeps only what it may", kept_descriptors),
        ("a first process of a PID namespace is 1", pid_namespace),
        ("with a second thread there is no child", second_thread),
        ("execve runs a program with clean signals", exec_clean),
    ];
    for (name, case) in cases {
        case();
        println!("ok: {name}");
    }
}

fn run(args: &CloneArgs<'_>, code: impl FnOnce() -> i32) -> Exit {
    let child = process::spawn(args, code).expect("spawn");
    process::wait(child.pidfd.as_fd()).expect("wait")
}

fn code_and_signal() {
    assert_eq!(run(&CloneArgs::default(), || 42), Exit::Code(42));
    let child = process::spawn(&CloneArgs::default(), || {
        loop {
            std::thread::park();
        }
    })
    .expect("spawn");
    assert_eq!(process::peek_exit(child.pidfd.as_fd()).expect("peek"), None);
    process::signal(child.pidfd.as_fd(), 9).expect("signal");
    let ended = process::wait_readable(&[child.pidfd.as_fd()], Some(Duration::from_secs(10)));
    assert!(ended.expect("poll"));
    for _ in 0..2 {
        let peeked = process::peek_exit(child.pidfd.as_fd()).expect("peek");
        assert_eq!(peeked, Some(Exit::Signal(9)), "peeking doesn't reap");
    }
    assert_eq!(process::reap(child.pidfd.as_fd()).expect("reap"), Some(Exit::Signal(9)));
    let gone = process::signal(child.pidfd.as_fd(), 0).expect_err("reaped");
    assert_eq!(gone.raw_os_error(), Some(3), "ESRCH");
}

fn panicking_child() {
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(run(&CloneArgs::default(), || panic!("on purpose")), Exit::Code(101));
    drop(std::panic::take_hook());
}

fn kept_descriptors() {
    let (kept, _other) = sock::message_pair().expect("pair");
    let dropped = sock::message_pair().expect("pair");
    let keep = [kept.as_raw_fd()];
    let args = CloneArgs { keep: Some(&keep), ..CloneArgs::default() };
    let (kept_no, dropped_no) = (kept.as_raw_fd(), dropped.0.as_raw_fd());
    let exit = run(&args, || {
        let is_open = |fd: i32| std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap_or(false);
        i32::from(is_open(dropped_no)) * 2 + i32::from(is_open(kept_no))
    });
    assert_eq!(exit, Exit::Code(1));
}

fn pid_namespace() {
    let args = CloneArgs { namespaces: Kind::Pid.flag(), ..CloneArgs::default() };
    let exit = run(&args, || i32::try_from(std::process::id()).unwrap_or(0));
    assert_eq!(exit, Exit::Code(1));
    let exit = run(&CloneArgs::default(), || match ns::unshare(&[Kind::Uts, Kind::Ipc]) {
        Ok(()) => 0,
        Err(_) => 1,
    });
    assert_eq!(exit, Exit::Code(0));
}

fn second_thread() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv());
    let err = process::spawn(&CloneArgs::default(), || 0).expect_err("two threads");
    assert_eq!(err.raw_os_error(), Some(35), "EDEADLK");
    drop(stop);
    assert!(thread.join().expect("join").is_err());
    // The kernel may still be taking the thread out of the process when join returns.
    while process::thread_count().expect("count") > 1 {
        std::thread::yield_now();
    }
}

fn exec_clean() {
    let exit = run(&CloneArgs::default(), || {
        process::reset_signals().expect("signals");
        process::cloexec_all();
        let script = c"trap - PIPE; kill -PIPE $$; exit 3".to_owned();
        let argv = [c"sh".to_owned(), c"-c".to_owned(), script];
        process::execve(&c"/bin/sh".to_owned(), &argv, &[]);
        9
    });
    assert_eq!(exit, Exit::Signal(13), "SIGPIPE, which Rust ignores, is back at its default");
}
