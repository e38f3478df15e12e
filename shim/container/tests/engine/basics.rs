//! A container's life, its process, its failures.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use berth_container::{Container, CreateRequest, ErrorKind, ExitStatus, Progress, Stdio};
use serde_json::json;

use super::Case;
use super::setup::{Bench, LIMIT, end, exec, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("a script runs in the pod's namespaces", script),
    ("exit codes and signals come back", exit_codes),
    ("a created container waits at its gate", gate),
    ("create and start don't block their caller", polled),
    ("the working directory is made, also below links", working_directory),
    ("HOME comes from the image's passwd file", home),
    ("a user gets its ids, groups and umask", user),
    ("a user can open its own stdout anew", reopen_stdout),
    ("a missing program fails the start in runc's words", missing_program),
    ("a bad interpreter fails the start", bad_interpreter),
    ("an exec runs in a running container", exec_code),
    ("an exec of a missing program fails and leaves nothing", exec_missing),
    ("an abort before the start leaves nothing", abort),
    ("a kill at the gate is an end like any other", kill_at_gate),
    ("states out of order are refused", out_of_order),
];

fn script() {
    let bench = Bench::new();
    let text = bench.sh("echo hello $A; hostname; echo $$; ls -1 /dev | tr '\\n' ' '");
    let want = "hello b\nbench\n1\n\
        core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(text, want);
    // Nothing of the maker: standard descriptors, and the directory being listed.
    assert_eq!(bench.sh("ls -1 /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
}

fn exit_codes() {
    let bench = Bench::new();
    assert_eq!(bench.run(&bench.spec("exit 3")).1, ExitStatus::Code(3));
    assert_eq!(bench.run(&bench.spec("exit 255")).1, ExitStatus::Code(255));
    let container = bench.idle(|_| {});
    container.kill(9).unwrap();
    assert_eq!(end(&container), ExitStatus::Signal(9));
    let err = container.kill(9).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
}

fn gate() {
    let bench = Bench::new();
    let spec = bench.spec("echo ran > /ran");
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    assert!(state.contains("NSpid:\t") && state.contains("\t1\n"), "prepared, as pid 1: {state}");
    assert!(!bench.rootfs().join("ran").exists());
    container.start_blocking(LIMIT).unwrap();
    assert_eq!(end(&container), ExitStatus::Code(0));
    assert_eq!(fs::read_to_string(bench.rootfs().join("ran")).unwrap(), "ran\n");
}

fn polled() {
    let bench = Bench::new();
    let spec = serde_json::from_value(bench.spec("exit 4")).unwrap();
    let request = CreateRequest {
        id: "c",
        bundle: &bench.dir,
        spec: &spec,
        rootfs: None,
        pod: &bench.pod,
        layout: &bench.layout,
        stdio: Stdio::default(),
    };
    let mut container = Container::create(&request).unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&Progress::Started) {
        let fds: Vec<_> = container.sync_fd().into_iter().chain([container.pidfd()]).collect();
        assert!(berth_sys::process::wait_readable(&fds, Some(LIMIT)).unwrap());
        match container.advance().unwrap() {
            Progress::Pending => {}
            Progress::Ready => {
                seen.push(Progress::Ready);
                container.start().unwrap();
            }
            Progress::Started => seen.push(Progress::Started),
        }
    }
    assert_eq!(seen, [Progress::Ready, Progress::Started]);
    assert!(container.sync_fd().is_none());
    assert_eq!(end(&container), ExitStatus::Code(4));
}

fn working_directory() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("/late", bench.rootfs().join("early")).unwrap();
    let text = bench.sh_with("pwd; stat -c %a .", |spec| {
        spec["process"]["cwd"] = json!("/early/deep");
    });
    assert_eq!(text, "/late/deep\n755\n");
}

fn home() {
    let bench = Bench::new();
    assert_eq!(bench.sh("echo $HOME"), "/root\n");
    let of = |uid: u32, env: &str| {
        bench.sh_with("echo $HOME", |spec| {
            spec["process"]["user"] = json!({"uid": uid, "gid": 0});
            spec["process"]["env"] = json!(["PATH=/bin", env]);
        })
    };
    assert_eq!(of(1000, "X=y"), "/home/u\n");
    assert_eq!(of(4711, "X=y"), "/\n");
    assert_eq!(of(1000, "HOME=/own"), "/own\n");
}

fn user() {
    let bench = Bench::new();
    let text = bench.sh_with("id; umask; cat /proc/self/status", |spec| {
        spec["process"]["user"] =
            json!({"uid": 1000, "gid": 2000, "additionalGids": [5, 3000], "umask": 0o27});
    });
    assert!(text.starts_with("uid=1000(u) gid=2000 groups=5,3000\n0027\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "root's rights don't follow: {text}");
    assert!(text.contains("NoNewPrivs:\t0"), "{text}");
}

fn reopen_stdout() {
    let bench = Bench::new();
    let text = bench.sh_with("echo again > /dev/stdout; echo err > /dev/stderr", |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    assert_eq!(text, "again\nerr\n");
}

fn missing_program() {
    let bench = Bench::new();
    fs::write(bench.rootfs().join("plain"), "").unwrap();
    let cases = [
        (json!(["/no/such"]), "exec: \"/no/such\": stat /no/such: no such file or directory"),
        (json!(["nosuch"]), "exec: \"nosuch\": executable file not found in $PATH"),
        (json!(["/plain"]), "exec: \"/plain\": permission denied"),
        (json!(["/bin"]), "exec: \"/bin\": is a directory"),
    ];
    for (args, message) in cases {
        let mut spec = bench.spec("");
        spec["process"]["args"] = args;
        let mut container = bench.create(&spec, Stdio::default()).unwrap();
        let err = container.start_blocking(LIMIT).unwrap_err();
        assert_eq!(err.to_string(), message);
        assert_eq!(end(&container), ExitStatus::Code(1));
    }
}

fn bad_interpreter() {
    let bench = Bench::new();
    let script = bench.rootfs().join("script");
    fs::write(&script, "#!/no/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = bench.spec("");
    spec["process"]["args"] = json!(["/script"]);
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let err = container.start_blocking(LIMIT).unwrap_err();
    assert_eq!(err.to_string(), "exec /script: no such file or directory");
    end(&container);
}

fn exec_code() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let script = "id -u; hostname; cat /proc/1/comm; ls -1 /proc/self/fd | tr '\\n' ' '; exit 7";
    let (text, status) = exec(&container, &process(&["sh", "-c", script])).unwrap();
    assert_eq!((text.as_str(), status), ("0\nbench\nsleep\n0 1 2 3 ", ExitStatus::Code(7)));
    assert_eq!(kill(&container), ExitStatus::Signal(9));
}

fn exec_missing() {
    let bench = Bench::new();
    let container = bench.idle(|_| {});
    let before = container.cgroup().pids().unwrap();
    for _ in 0..3 {
        let err = exec(&container, &process(&["/nope"])).unwrap_err();
        assert_eq!(err.to_string(), "exec: \"/nope\": stat /nope: no such file or directory");
    }
    assert_eq!(container.cgroup().pids().unwrap(), before);
    kill(&container);
    let err = exec(&container, &process(&["true"])).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotReady, "reaped: {err}");
}

fn abort() {
    let bench = Bench::new();
    let spec = bench.spec("true");
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    container.abort(LIMIT).unwrap();
    container.abort(LIMIT).unwrap();
    assert!(container.start().is_err());
}

fn kill_at_gate() {
    let bench = Bench::new();
    let spec = bench.spec("true");
    let container = bench.create(&spec, Stdio::default()).unwrap();
    container.kill(15).unwrap();
    container.kill(9).unwrap();
    assert_eq!(end(&container), ExitStatus::Signal(9));
}

fn out_of_order() {
    let bench = Bench::new();
    let spec = bench.spec("exec sleep 1000");
    let mut container = bench.create(&spec, Stdio::default()).unwrap();
    let err = exec(&container, &process(&["true"])).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotReady, "{err}");
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists, "the same cgroup: {err}");
    container.start_blocking(LIMIT).unwrap();
    let err = container.start().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotReady, "{err}");
    kill(&container);
}
