//! Times of the ways a container is used most: printed, not judged. `cargo test -p berth-container
//! --test engine -- --speed`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use berth_container::{PodNamespaces, PodOptions, Rootfs, Stdio};

use super::setup::{Bench, LIMIT, USERS, end, exec, kill, process};

/// Prints the medians of some operations, back to back and after pauses; then those with a user
/// namespace for every pod.
pub(crate) fn print() {
    rows();
    println!("in a user namespace:");
    USERS.store(true, Ordering::Relaxed);
    rows();
    for count in [1, 50] {
        let bench = Bench::new();
        let spec = bench.spec("exit 0");
        let rootfs = Rootfs::Overlay(super::filesystem::layers(&bench, count));
        row(&format!("create, ready on {count} mapped layers"), 30, Duration::ZERO, || {
            let start = Instant::now();
            let made = bench.create_on(&spec, Some(&rootfs), Stdio::default());
            let taken = start.elapsed();
            made.unwrap().abort(LIMIT).unwrap();
            taken
        });
    }
}

fn rows() {
    let bench = Bench::new();
    let spec = bench.spec("exit 0");
    row("create, ready", 50, Duration::ZERO, || {
        let start = Instant::now();
        let mut container = bench.create(&spec, Stdio::default()).unwrap();
        let taken = start.elapsed();
        container.abort(LIMIT).unwrap();
        taken
    });
    row("create, start, end, delete", 50, Duration::ZERO, || {
        let start = Instant::now();
        let mut container = bench.create(&spec, Stdio::default()).unwrap();
        container.start_blocking(LIMIT).unwrap();
        end(&container);
        start.elapsed()
    });
    row("create, start after 100 ms of quiet", 20, Duration::from_millis(100), || {
        let start = Instant::now();
        let mut container = bench.create(&spec, Stdio::default()).unwrap();
        container.start_blocking(LIMIT).unwrap();
        let taken = start.elapsed();
        end(&container);
        taken
    });
    let container = bench.idle(|_| {});
    let run_true = || {
        let start = Instant::now();
        exec(&container, &process(&["/bin/true"])).unwrap();
        start.elapsed()
    };
    row("exec true", 100, Duration::ZERO, run_true);
    row("exec true after 100 ms of quiet", 20, Duration::from_millis(100), run_true);
    kill(&container);
    let options = PodOptions {
        net: true,
        ipc: true,
        uts: true,
        shm_size: Some(4096),
        user: bench.pod.user().map(|user| user.maps().clone()),
        ..PodOptions::default()
    };
    row("pod namespaces", 30, Duration::ZERO, || {
        let start = Instant::now();
        let pod = PodNamespaces::create(&options).unwrap();
        let taken = start.elapsed();
        drop(pod);
        taken
    });
}

fn row(what: &str, times: usize, pause: Duration, mut once: impl FnMut() -> Duration) {
    let mut all: Vec<Duration> = (0..times)
        .map(|_| {
            std::thread::sleep(pause);
            once()
        })
        .collect();
    all.sort();
    let at = |part: usize| all[(all.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!("{what:40} p50 {:7.2} ms  p90 {:7.2} ms  min {:7.2} ms", at(50), at(90), at(0));
}
