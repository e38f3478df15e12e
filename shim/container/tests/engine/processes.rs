//! Who a process is and what it may do; terminals; fields that are refused.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use berth_container::{Exec, ExecRequest, ExitStatus, Progress, Stdio};
use berth_sys::pty;
use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::Case;
use super::setup::{Bench, LIMIT, end, exec, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("all five capability sets are as asked", capabilities),
    ("a capability the host lacks is left out and told", lacking_capability),
    ("no_new_privs is set", no_new_privs),
    ("rlimits are set, or the nearest allowed and told", rlimits),
    ("oom_score_adj is set, or kept and told", oom_score),
    ("a container has its terminal", terminal),
    ("an exec has a terminal of its own", exec_terminal),
    ("namespaces of its own have name, sysctls and lo", own_namespaces),
    ("an exec has its own user and rights", exec_user),
    ("fields not built yet are refused by name", refused),
    ("malformed fields are refused by name", malformed),
];

/// Bits of a set in /proc/PID/status.
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t")));
    u64::from_str_radix(line.unwrap_or_else(|| panic!("{name} in {status}")), 16).unwrap()
}

fn capabilities() {
    let bench = Bench::new();
    let (chown, kill, bind) = (1 << 0, 1 << 5, 1 << 10);
    let status = bench.sh_with("cat /proc/self/status", |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "permitted": ["CAP_NET_BIND_SERVICE", "CAP_KILL"],
            "effective": ["CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        });
    });
    assert_eq!(set(&status, "CapBnd"), chown | kill | bind);
    for name in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(set(&status, name), bind, "only the ambient ones outlive execve: {name}");
    }
    let status = bench.sh("cat /proc/self/status");
    let asked = chown | 1 << 6 | 1 << 7 | bind;
    for (name, want) in [("CapBnd", asked), ("CapEff", asked), ("CapInh", 0), ("CapAmb", 0)] {
        assert_eq!(set(&status, name), want, "root: {name}");
    }
}

fn lacking_capability() {
    let have = berth_sys::creds::capabilities().unwrap().permitted;
    let resource = 1 << 24;
    let bench = Bench::new();
    let mut spec = bench.spec("exec sleep 1000");
    let caps = json!(["CAP_SYS_RESOURCE", "CAP_KILL"]);
    spec["process"]["capabilities"] =
        json!({"bounding": caps, "permitted": caps, "effective": caps});
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let warnings = container.take_warnings();
    if have & resource == 0 {
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with(": CAP_SYS_RESOURCE"), "{warnings:?}");
    } else {
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    container.start_blocking(LIMIT).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    assert_eq!(set(&status, "CapEff"), (1 << 5) | (have & resource));
    kill(&container);
}

fn no_new_privs() {
    let bench = Bench::new();
    let status = bench.sh_with("cat /proc/self/status", |spec| {
        spec["process"]["noNewPrivileges"] = json!(true);
    });
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

fn rlimits() {
    let bench = Bench::new();
    let text = bench.sh_with("ulimit -Sn; ulimit -Hn; ulimit -c", |spec| {
        spec["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]);
    });
    assert_eq!(text, "100\n200\n0\n");
    let host = berth_sys::creds::rlimit(6).unwrap();
    let may_raise = berth_sys::creds::capabilities().unwrap().effective & (1 << 24) != 0;
    if may_raise || host.hard == u64::MAX {
        return; // Nothing is above what this host allows.
    }
    let mut spec = bench.spec("exec sleep 1000");
    spec["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NPROC", "soft": host.hard + 1, "hard": host.hard + 2}]);
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let warnings = container.take_warnings();
    assert!(warnings[0].starts_with("RLIMIT_NPROC="), "{warnings:?}");
    container.start_blocking(LIMIT).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", container.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max processes")).unwrap();
    assert_eq!(line.matches(&host.hard.to_string()).count(), 2, "{line}");
    kill(&container);
}

fn oom_score() {
    let bench = Bench::new();
    let text = bench.sh_with("cat /proc/self/oom_score_adj", |spec| {
        spec["process"]["oomScoreAdj"] = json!(777);
    });
    assert_eq!(text, "777\n");
    let mut spec = bench.spec("true");
    spec["process"]["oomScoreAdj"] = json!(-998);
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let may_lower = berth_sys::creds::capabilities().unwrap().effective & (1 << 24) != 0;
    let warnings = container.take_warnings();
    assert_eq!(warnings.is_empty(), may_lower, "{warnings:?}");
    container.abort(LIMIT).unwrap();
}

/// Reads a terminal to its end (EIO, when the last program on it is gone).
fn drain(master: &mut std::fs::File) -> String {
    let mut bytes = Vec::new();
    let _ = master.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
}

fn terminal() {
    let bench = Bench::new();
    let mut spec = bench.spec("tty; stty size; ls /dev/console; read x; echo got $x; kill -INT 0");
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let master = container.take_terminal().expect("a terminal's master");
    assert_eq!(pty::size(master.as_fd()).unwrap(), (101, 33));
    container.start_blocking(LIMIT).unwrap();
    let mut master = std::fs::File::from(master);
    master.write_all(b"line\n").unwrap();
    let text = drain(&mut master);
    // The echo of our own line comes in between, wherever it likes.
    for part in ["/dev/pts/0\n", "33 101\n", "/dev/console\n", "got line\n"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    assert_eq!(end(&container), ExitStatus::Code(130));
}

fn exec_terminal() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let mut json = process(&["sh", "-c", "tty; ps -o tty,comm | grep -c '^136'; exit 9"]);
    json["terminal"] = json!(true);
    let process: Process = serde_json::from_value(json).unwrap();
    let request = ExecRequest { id: "t", process: &process, stdio: Stdio::default() };
    let mut exec = Exec::spawn(&container, &request).unwrap();
    while exec.advance().unwrap() != Progress::Started {
        let fds: Vec<_> = exec.sync_fd().into_iter().chain([exec.pidfd()]).collect();
        assert!(berth_sys::process::wait_readable(&fds, Some(LIMIT)).unwrap());
    }
    let mut master = std::fs::File::from(exec.take_terminal().expect("a terminal's master"));
    let text = drain(&mut master);
    assert!(text.starts_with("/dev/pts/0\n"), "{text:?}");
    assert!(berth_sys::process::wait_readable(&[exec.pidfd()], Some(LIMIT)).unwrap());
    assert_eq!(exec.reap().unwrap(), Some(ExitStatus::Code(9)));
    kill(&container);
}

fn own_namespaces() {
    let bench = Bench::new();
    let script = "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward \
        /proc/sys/kernel/shm_rmid_forced; ip addr show lo | grep -c '127.0.0.1'";
    let text = bench.sh_with(script, |spec| {
        spec["hostname"] = json!("mine");
        spec["domainname"] = json!("dom");
        spec["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
        ]);
        spec["linux"]["sysctl"] =
            json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    });
    assert_eq!(text, "mine\ndom\n1\n1\n1\n");
    assert_eq!(bench.sh("hostname"), "bench\n", "the pod's own is another");
}

fn exec_user() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let mut json = process(&["sh", "-c", "id; pwd; env; umask; cat /proc/self/status"]);
    json["user"] = json!({"uid": 1000, "gid": 5, "additionalGids": [6]});
    json["cwd"] = json!("/bin");
    json["env"] = json!(["PATH=/bin", "E=x"]);
    json["capabilities"] = json!({"bounding": ["CAP_KILL"]});
    let (text, status) = exec(&container, &json).unwrap();
    assert_eq!(status, ExitStatus::Code(0), "{text}");
    assert!(text.starts_with("uid=1000(u) gid=5 groups=6\n/bin\n"), "{text}");
    for part in ["HOME=/home/u\n", "E=x\n", "\n0022\n"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(set(&text, "CapBnd"), 1 << 5);
    kill(&container);
}

/// Puts `value` at a path like `linux.seccomp`, and expects a refusal that begins with `field`.
fn refuses(at: &str, value: Value, field: &str) {
    let bench = Bench::new();
    let mut spec = bench.spec("true");
    let pointer = format!("/{}", at.replace('.', "/"));
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() { &mut spec } else { spec.pointer_mut(parent).unwrap() };
    parent.as_object_mut().unwrap().insert(key.to_owned(), value);
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    assert!(err.to_string().starts_with(&format!("{field}: ")), "{at}: {err}");
    assert_eq!(err.kind(), berth_container::ErrorKind::Invalid, "{at}");
}

fn refused() {
    refuses("linux.seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}), "linux.seccomp");
    refuses("process.apparmorProfile", json!("p"), "process.apparmorProfile");
    refuses("process.selinuxLabel", json!("l"), "process.selinuxLabel");
    refuses("linux.mountLabel", json!("l"), "linux.mountLabel");
    refuses("hooks", json!({"createRuntime": [{"path": "/bin/true"}]}), "hooks");
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    refuses("linux.uidMappings", mapping, "linux.uidMappings");
    let namespaces = json!([{"type": "mount"}, {"type": "time"}]);
    refuses("linux.namespaces", namespaces, "linux.namespaces[1]");
}

fn malformed() {
    refuses("process.args", json!([]), "process.args");
    refuses("process.cwd", json!("x"), "process.cwd");
    refuses("linux.cgroupsPath", json!("/../x"), "linux.cgroupsPath");
    refuses("linux.namespaces", json!([{"type": "pid"}]), "linux.namespaces");
    let twice = json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]);
    refuses("linux.namespaces", twice, "linux.namespaces[2]");
    let foreign = json!([{"type": "mount"}, {"type": "pid", "path": "pod:"}]);
    refuses("linux.namespaces", foreign, "linux.namespaces[1]");
    let sysctl = json!({"kernel.core_pattern": "|/x"});
    refuses("linux.sysctl", sysctl, "linux.sysctl.kernel.core_pattern");
    refuses("linux.rootfsPropagation", json!("upward"), "linux.rootfsPropagation");
    let device = json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 1}]);
    refuses("linux.devices", device, "linux.devices[0].path");
    let network = json!({"network": {"classID": 1}});
    refuses("linux.resources", network, "linux.resources.network");
}
