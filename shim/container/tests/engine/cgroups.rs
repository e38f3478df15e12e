//! Limits, the end of whole trees, and whose directories are removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_container::{Cgroup, Error, ErrorKind, Exec, ExecRequest, ExitStatus, Layout, Stdio};
use oci_spec::runtime::{LinuxResources, Process};
use serde_json::{Value, json};

use super::Case;
use super::setup::{Bench, LIMIT, end, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("limits are written before the process enters", limits),
    ("limits are changed under a running container", update),
    ("an impossible limit fails the create and leaves nothing", impossible_limit),
    ("devices not allowed can't be opened", denied_devices),
    ("an OOM kill is counted", oom),
    ("a fork bomb is killed whole", fork_bomb),
    ("an exec's whole tree is killed, the container isn't", exec_tree),
    ("orphans of an exec stay with the container", exec_orphans),
    ("only what we made is removed, with its last child", parents),
    ("a process in a cgroup keeps it busy until its end", busy),
];

/// A file of the container's cgroup, by its v1 or its v2 name.
fn read(path: &Path, v1: &str, v2: &str) -> String {
    let root = Path::new("/sys/fs/cgroup");
    let (controller, _) = v1.split_once('.').unwrap();
    let v1 = root.join(controller).join(path).join(v1);
    let file = if v1.exists() { v1 } else { root.join(path).join(v2) };
    fs::read_to_string(&file)
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        .trim()
        .to_owned()
}

fn limits() {
    let bench = Bench::new();
    let container = bench.idle(|spec| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864, "swap": 67_108_864},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
            "pids": {"limit": 123},
        });
    });
    let path = container.cgroup().path().to_owned();
    assert_eq!(read(&path, "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(read(&path, "pids.max", "pids.max"), "123");
    assert_eq!(read(&path, "cpuset.cpus", "cpuset.cpus"), "0");
    if !bench.layout.is_unified() {
        assert_eq!(read(&path, "memory.memsw.limit_in_bytes", ""), "67108864");
        assert_eq!(read(&path, "cpu.shares", ""), "512");
        assert_eq!(read(&path, "cpu.cfs_quota_us", ""), "50000");
    }
    assert_eq!(container.cgroup().pids().unwrap(), [container.pid()]);
    let status = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let all_in = status.lines().all(|line| line.ends_with(&bench.cgroup()));
    assert!(all_in, "in every hierarchy: {status}");
    kill(&container);
}

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

fn update() {
    let bench = Bench::new();
    let container = bench.idle(|spec| {
        spec["linux"]["resources"] =
            json!({"memory": {"limit": 20_971_520, "swap": 20_971_520}, "pids": {"limit": 10}});
    });
    let path = container.cgroup().path().to_owned();
    // Both grow: memory+swap has to go first on v1.
    let change =
        json!({"memory": {"limit": 41_943_040, "swap": 41_943_040}, "cpu": {"shares": 2048}});
    assert_eq!(container.cgroup().update(&resources(change)).unwrap(), Vec::<String>::new());
    assert_eq!(read(&path, "memory.limit_in_bytes", "memory.max"), "41943040");
    assert_eq!(read(&path, "pids.max", "pids.max"), "10", "left out, left alone");
    let err = container.cgroup().update(&resources(json!({"cpu": {"cpus": "4095"}}))).unwrap_err();
    assert!(err.to_string().contains("cpuset.cpus"), "{err}");
    kill(&container);
}

fn impossible_limit() {
    let bench = Bench::new();
    let mut spec = bench.spec("true");
    spec["linux"]["resources"] = json!({"cpu": {"cpus": "4095"}});
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    assert!(err.to_string().starts_with("write \"4095\" to /sys/fs/cgroup/"), "{err}");
}

fn denied_devices() {
    let bench = Bench::new();
    let script = "cat /dev/kmsg-like >/dev/null; echo; dd if=/dev/zero of=/dev/null count=1; \
        dd if=/dev/allowed bs=1 count=1 >/dev/null; (: >/dev/allowed)";
    let mut spec = bench.spec(script);
    spec["linux"]["devices"] = json!([
        {"path": "/dev/kmsg-like", "type": "c", "major": 1, "minor": 11},
        // tun: opening it asks for no capability.
        {"path": "/dev/allowed", "type": "c", "major": 10, "minor": 200},
    ]);
    spec["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"},
    ]});
    let (text, _) = bench.run(&spec);
    assert!(text.contains("/dev/kmsg-like': Operation not permitted"), "{text}");
    assert!(text.contains("/dev/allowed: Operation not permitted"), "to write: {text}");
    assert_eq!(text.matches("not permitted").count(), 2, "{text}");
}

fn oom() {
    let bench = Bench::new();
    let limited = |spec: &mut Value| {
        spec["linux"]["resources"] = json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    };
    // dd with a block larger than the limit.
    let eater = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let mut spec = bench.spec(eater);
    limited(&mut spec);
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    assert_eq!(container.cgroup().oom_kills().unwrap(), 0);
    container.start_blocking(LIMIT).unwrap();
    assert!(berth_sys::process::wait_readable(&[container.pidfd()], Some(LIMIT)).unwrap());
    assert_eq!(container.cgroup().oom_kills().unwrap(), 1);
    assert_eq!(end(&container), ExitStatus::Signal(9));
    assert_eq!(container.cgroup().oom_kills().unwrap(), 0, "gone");
    // Only a child of the first process: counted as well.
    let mut spec = bench.spec("(exec dd if=/dev/zero of=/dev/null bs=64M count=1) || true; exit 5");
    limited(&mut spec);
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    container.start_blocking(LIMIT).unwrap();
    assert!(berth_sys::process::wait_readable(&[container.pidfd()], Some(LIMIT)).unwrap());
    assert_eq!(container.cgroup().oom_kills().unwrap(), 1);
    assert_eq!(end(&container), ExitStatus::Code(5));
}

fn fork_bomb() {
    let bench = Bench::new();
    // In the host's PID namespace, where the first process's end takes nobody along. Two thirds
    // last long enough to pile up on a slow machine, the rest never cease to fork.
    let bomb = "for i in 20 20 0.2; do yes $i | xargs -n 1 -P 40 sleep & done; exec sleep 1000";
    let mut spec = bench.spec(bomb);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "pid");
    spec["linux"]["resources"] = json!({"pids": {"limit": 150}});
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    container.start_blocking(LIMIT).unwrap();
    until("the bomb to spread", || container.cgroup().pids().unwrap().len() > 85);
    assert_eq!(kill(&container), ExitStatus::Signal(9));
    assert_eq!(container.cgroup().pids().unwrap(), Vec::<u32>::new());
}

fn start_exec(bench: &Bench, container: &berth_container::Container, script: &str) -> Exec {
    let _ = bench;
    let process: Process = serde_json::from_value(process(&["sh", "-c", script])).unwrap();
    let request = ExecRequest { id: "tree", process: &process, stdio: Stdio::default() };
    Exec::spawn_blocking(container, &request, LIMIT).unwrap()
}

fn exec_tree() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let script = "for i in 1 2 3; do (setsid sleep 1000 & ) ; done; exec sleep 1000";
    let exec = start_exec(&bench, &container, script);
    until("the tree to grow", || container.cgroup().pids().unwrap().len() == 5);
    exec.kill_tree().unwrap();
    assert!(berth_sys::process::wait_readable(&[exec.pidfd()], Some(LIMIT)).unwrap());
    assert_eq!(exec.reap().unwrap(), Some(ExitStatus::Signal(9)));
    until("the tree to end", || container.cgroup().pids().unwrap() == [container.pid()]);
    assert_eq!(container.exit_status().unwrap(), None);
    kill(&container);
}

fn exec_orphans() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let exec = start_exec(&bench, &container, "(setsid sleep 1000 &); exit 0");
    assert!(berth_sys::process::wait_readable(&[exec.pidfd()], Some(LIMIT)).unwrap());
    assert_eq!(exec.reap().unwrap(), Some(ExitStatus::Code(0)));
    assert_eq!(container.cgroup().pids().unwrap().len(), 2);
    kill(&container);
}

fn parents() {
    let layout = Layout::detect().unwrap();
    let top = format!("berth-test-{}-parents", std::process::id());
    let hierarchies: Vec<PathBuf> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir() && p.join("cgroup.procs").exists())
        .collect();
    let roots =
        if layout.is_unified() { vec![PathBuf::from("/sys/fs/cgroup")] } else { hierarchies };
    let here = |path: &str| roots.iter().filter(|root| root.join(path).exists()).count();
    let at = |path: &str| Path::new("/").join(&top).join(path);
    let make = |path: &str| Cgroup::create(&layout, &at(path), None, &mut Vec::new()).unwrap();
    // Kubelet's: in one hierarchy, before us.
    fs::create_dir(roots[0].join(&top)).unwrap();
    let one = make("pod/one");
    let two = make("pod/two");
    let ensured = Cgroup::ensure(&layout, &at("pod")).unwrap();
    assert_eq!(here(&format!("{top}/pod/one")), roots.len());
    one.remove(LIMIT).unwrap();
    one.remove(LIMIT).unwrap();
    assert_eq!(here(&format!("{top}/pod")), roots.len(), "another child is inside");
    two.remove(LIMIT).unwrap();
    assert_eq!(here(&format!("{top}/pod")), 0);
    assert_eq!(here(&top), 1, "kubelet's stays");
    ensured.remove(LIMIT).unwrap();
    let foreign = Cgroup::at(&layout, &at("")).unwrap();
    foreign.remove(LIMIT).unwrap();
    assert_eq!(here(&top), 1, "not ours to remove");
    fs::remove_dir(roots[0].join(&top)).unwrap();
}

fn busy() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let err = container.cgroup().remove(Duration::from_millis(5)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Busy, "{err}");
    assert!(matches!(err, Error::Step { .. }));
    kill(&container);
}

/// Waits for a condition, to a deadline.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}
