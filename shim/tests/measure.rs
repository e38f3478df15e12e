//! Measurements against the aims (docs: SPECIFICATION.md). They print; they don't judge, since the
//! machine's speed drifts. Run alone, on the static build:
//!
//! ```text
//! BERTH_TEST_SHIM=target/dist/containerd-shim-berth-v1 BERTH_TEST_APP=target/dist/berth-app \
//!     cargo test -p berth-shim --test measure -- --ignored --nocapture --test-threads 1
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Pod, context, until};

fn app(pod: &Pod) {
    let app = std::env::var("BERTH_TEST_APP").unwrap();
    fs::copy(app, pod.root.join("lower/bin/app")).unwrap();
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// The part of it that was spent in the program itself; ticks of 10 ms.
fn user(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: u64 = stat.rsplit(')').next().unwrap().split(' ').nth(12).unwrap().parse().unwrap();
    Duration::from_millis(10 * ticks)
}

fn rollup(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kept = |line: &&str| line.starts_with("Pss:") || line.starts_with("Private_Dirty");
    let words: Vec<String> = text
        .lines()
        .filter(kept)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    words.join(", ")
}

#[test]
#[ignore = "a measurement"]
fn log_throughput() {
    let pod = Pod::new();
    app(&pod);
    for (what, block, bytes) in [
        ("64 KiB writes", 65536, 1_u64 << 30),
        ("4 KiB writes", 4096, 1 << 30),
        ("a line a write", 120, 1 << 28),
    ] {
        let id = format!("b{block}");
        let mut order =
            pod.order(&id, &["app", "flood", &bytes.to_string(), "120", &block.to_string()]);
        for (to, stdout) in [("log", order.stdout.clone()), ("nothing", String::new())] {
            order.stdout = stdout;
            let (before, user_before) = (cpu(pod.pid), user(pod.pid));
            pod.task.create(context(), &order).unwrap();
            let start = Instant::now();
            pod.start(&id).unwrap();
            assert_eq!(pod.wait(&id), 0);
            let took = start.elapsed();
            let gigabytes = bytes as f64 / 1e9;
            println!(
                "120-byte lines, {what}, to {to}: {:.0} MB/s, shim CPU {:.2} s/GB, user {:.2}",
                gigabytes * 1e3 / took.as_secs_f64(),
                (cpu(pod.pid) - before).as_secs_f64() / gigabytes,
                (user(pod.pid) - user_before).as_secs_f64() / gigabytes
            );
            pod.delete(&id).unwrap();
            let _ = fs::remove_file(pod.log(&id));
            fs::remove_dir_all(pod.root.join(&id)).unwrap();
            order =
                pod.order(&id, &["app", "flood", &bytes.to_string(), "120", &block.to_string()]);
        }
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

#[test]
#[ignore = "a measurement"]
fn latencies() {
    let pod = Pod::new();
    pod.run("c", &["sleep", "1000"]);
    let before = cpu(pod.pid);
    let mut times: Vec<Duration> = (0..300)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(pod.exec("c", &["true"]).unwrap().exit_code, 0);
            start.elapsed()
        })
        .collect();
    println!(
        "exec of true: p50 {:?}, p90 {:?}, shim CPU {:?} each",
        percentile(&mut times, 50),
        percentile(&mut times, 90),
        (cpu(pod.pid) - before) / 300
    );
    let mut stages = [const { Vec::new() }; 4];
    for number in 0..50 {
        let id = format!("l{number}");
        let order = pod.order(&id, &["true"]);
        let mut last = Instant::now();
        let mut lap = |stage: usize| {
            stages[stage].push(last.elapsed());
            last = Instant::now();
        };
        pod.task.create(context(), &order).unwrap();
        lap(0);
        pod.start(&id).unwrap();
        lap(1);
        pod.wait(&id);
        lap(2);
        pod.delete(&id).unwrap();
        lap(3);
    }
    for (name, times) in ["create", "start", "wait", "delete"].iter().zip(&mut stages) {
        println!("{name}: p50 {:?}, p90 {:?}", percentile(times, 50), percentile(times, 90));
    }
}

#[test]
#[ignore = "a measurement"]
fn memory() {
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    let sum = |what: &str| {
        let each: Vec<String> = pods.iter().map(|pod| rollup(pod.pid)).collect();
        println!("{what}: {}", each[10]);
    };
    sum("20 pods, no container");
    for pod in &pods {
        pod.run(
            "c",
            &[
                "sh",
                "-c",
                "busybox yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxx | busybox head -c 10000000; sleep 1000",
            ],
        );
    }
    for pod in &pods {
        until("the log is written", || {
            fs::metadata(pod.log("c")).is_ok_and(|m| m.len() > 10_000_000)
        });
        pod.exec("c", &["true"]).unwrap();
    }
    std::thread::sleep(Duration::from_secs(3));
    sum("one container each, 10 MB of log, one exec");
    for pod in &pods {
        pod.run("d", &["sleep", "1000"]);
    }
    std::thread::sleep(Duration::from_secs(3));
    sum("two containers each");
}
