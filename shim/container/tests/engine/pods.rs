//! What the containers of a pod share.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use berth_container::{ExitStatus, PodNamespaces, PodOptions, Stdio, pod};
use berth_sys::ns::{self, Kind};
use berth_sys::process as sys_process;
use serde_json::json;

use super::Case;
use super::setup::{Bench, LIMIT, end, exec, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("containers of a pod share name, IPC and /dev/shm", shared),
    ("a pod's sysctls hold in its namespaces only", sysctls),
    ("a pod that shares the host's namespaces has none", host_pod),
    ("the network namespace is pinned, and unpinned twice", pin),
    ("a bad sysctl value fails the pod and leaves nothing", bad_sysctl),
    ("containers share a PID namespace under our init", shared_pid),
    ("nothing of the host is found through the init", init_is_empty),
];

fn shared() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let (text, _) =
        exec(&container, &process(&["sh", "-c", "echo shared > /dev/shm/x; hostname"])).unwrap();
    assert_eq!(text, "bench\n");
    let other = bench.sh_with("cat /dev/shm/x; stat -f -c %b /dev/shm; ls -ld /dev/shm", |spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/other", bench.name));
    });
    assert!(other.starts_with("shared\n256\ndrwxrwxrwt"), "1 MiB, for all: {other}");
    kill(&container);
}

fn sysctls() {
    let sysctls = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "42".to_owned()),
    ]);
    let files = "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced \
        /proc/sys/fs/mqueue/msg_max";
    let bench = Bench::with(PodOptions {
        net: true,
        ipc: true,
        uts: true,
        sysctls,
        shm_size: Some(4096),
        ..PodOptions::default()
    });
    assert_eq!(bench.sh(&format!("cat {files}")), "0\n1\n42\n");
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_ne!(host, "0\n");
}

fn host_pod() {
    let pod = PodNamespaces::create(&PodOptions::default()).unwrap();
    assert!(pod.net().is_none() && pod.ipc().is_none() && pod.uts().is_none());
    assert!(pod.pin_net("/tmp/berth-test-nowhere".as_ref()).is_err());
}

fn pin() {
    let bench = Bench::new();
    let path = bench.dir.join("net");
    bench.pod.pin_net(&path).unwrap();
    let inode = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
    let pinned = ns::open(&path).unwrap();
    assert_eq!(inode(&pinned), inode(&bench.pod.net().unwrap()));
    let err = bench.pod.pin_net(&path).unwrap_err();
    assert_eq!(err.kind(), berth_container::ErrorKind::Exists);
    drop(pinned);
    // By its path, as a container of another runtime would join it.
    let text = bench.sh_with("ip addr show lo | grep -c 'LOOPBACK,UP'", |spec| {
        spec["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": path}]);
    });
    assert_eq!(text, "1\n");
    pod::unpin(&path).unwrap();
    assert!(!path.exists());
    pod::unpin(&path).unwrap();
}

fn bad_sysctl() {
    let sysctls = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "many".to_owned())]);
    let options = PodOptions { net: true, sysctls, ..PodOptions::default() };
    let err = PodNamespaces::create(&options).unwrap_err();
    let want = "write \"many\" to /proc/sys/net/ipv4/ip_forward: invalid argument";
    assert_eq!(err.to_string(), want);
}

/// A pod with a shared PID namespace, and its init's end.
fn with_init(case: impl FnOnce(&Bench, u32)) {
    let mut bench = Bench::new();
    let (pid, pidfd) = bench.pod.start_init().unwrap();
    case(&bench, pid);
    sys_process::signal(pidfd.as_fd(), 9).unwrap();
    assert_eq!(sys_process::wait(pidfd.as_fd()).unwrap(), sys_process::Exit::Signal(9));
}

fn join_pod_pid(spec: &mut serde_json::Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "pid");
    namespaces.push(json!({"type": "pid", "path": "pod:"}));
}

fn shared_pid() {
    with_init(|bench, _| {
        // The orphan's parent ends at once; only init can reap it.
        let script = "(sh -c 'exit 3' &) ; exec sleep 1000";
        let mut spec = bench.spec(script);
        join_pod_pid(&mut spec);
        let mut container = bench.create(&spec, Stdio::default()).unwrap();
        container.start_blocking(LIMIT).unwrap();
        let look = process(&["sh", "-c", "cat /proc/1/comm; ps -o pid,ppid,stat,comm"]);
        // The script runs by now; it gets to its last command in its own time.
        let deadline = Instant::now() + LIMIT;
        let text = loop {
            let (text, _) = exec(&container, &look).unwrap();
            if text.contains(" sleep\n") || Instant::now() > deadline {
                break text;
            }
        };
        assert!(text.starts_with("berth-init\n"), "{text}");
        assert!(text.contains(" sleep\n"), "{text}");
        let other = bench.sh_with("cat /proc/*/comm", |spec| {
            join_pod_pid(spec);
            spec["linux"]["cgroupsPath"] = json!(format!("/{}/other", bench.name));
        });
        assert!(other.contains("sleep\n") && other.starts_with("berth-init\n"), "{other}");
        // Not the namespace's first: its end takes nobody along, the cgroup does.
        container.kill(9).unwrap();
        assert_eq!(end(&container), ExitStatus::Signal(9));
    });
}

fn init_is_empty() {
    with_init(|bench, pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let nobody = bench.pod.user().map_or(65534, |user| user.maps().host_uid(65534).unwrap());
        let ids = format!("Uid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}");
        for line in [ids.as_str(), "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{line} in {status}");
        }
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
        // Its signals, and for a moment the socket on which it said that it is ready.
        let begun = Instant::now();
        while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() != 1 {
            assert!(begun.elapsed() < LIMIT, "more descriptors than its signals'");
        }
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts] {
            let host = ns::current(kind).unwrap();
            let own = ns::open(format!("/proc/{pid}/ns/{}", kind.name()).as_ref()).unwrap();
            let inode = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
            assert_ne!(inode(&own), inode(&host), "{}", kind.name());
        }
        let text = bench.sh_with("ls /proc/1/root/ 2>&1 || true", join_pod_pid);
        assert!(text.is_empty() || text.contains("Permission denied"), "{text}");
    });
}
