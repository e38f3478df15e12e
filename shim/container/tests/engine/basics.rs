//! A container's life, its process, its failures.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use berth_container::{Container, CreateRequest, ErrorKind, ExitStatus, Progress, Stdio};
use serde_json::{Value, json};

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
    ("whatever step fails, nothing is left", failing_steps),
    ("a volume that hangs holds up its own create only", hanging_volume),
    ("a cgroup in the way in one hierarchy is left alone", half_there),
    ("the host's own devices keep their owner", null_owner),
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
    // Nothing of the host is open in it, and it stands inside its root.
    let proc = Path::new("/proc").join(container.pid().to_string());
    let mut open: Vec<String> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    open.sort();
    assert_eq!(open[..3], ["/dev/null", "/dev/null", "/dev/null"]);
    assert!(open.len() == 4 && open[3].starts_with("socket:"), "{open:?}");
    let entries = |dir: &Path| dir.read_dir().unwrap().count();
    assert_eq!(entries(&proc.join("cwd")), entries(&bench.rootfs()));
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

/// One spec for each step of the child that can be made to fail from outside. What is left is
/// looked at by the runner.
#[expect(clippy::too_many_lines, reason = "a table")]
fn failing_steps() {
    let bench = Bench::new();
    fs::write(bench.rootfs().join("file"), "").unwrap();
    let mount = |mount: Value| move |spec: &mut Value| super::setup::add_mount(spec, mount);
    let set = |at: &'static str, value: Value| {
        move |spec: &mut Value| match spec.pointer_mut(at) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = at.rsplit_once('/').unwrap();
                let parent = spec.pointer_mut(parent).unwrap().as_object_mut().unwrap();
                parent.insert(key.to_owned(), value);
            }
        }
    };
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(set("/root/path", json!("none"))), "open root directory"),
        (
            Box::new(mount(json!({"destination": "/t", "type": "nofs"}))),
            "mount /t (nofs): no such device",
        ),
        (
            Box::new(mount(json!({"destination": "/t", "type": "tmpfs", "options": ["size=x"]}))),
            "mount /t (tmpfs): ",
        ),
        (
            Box::new(mount(json!({"destination": "/file/x", "type": "tmpfs"}))),
            "make /file/x in the root file system: not a directory",
        ),
        (
            Box::new(mount(json!({"destination": "/", "type": "tmpfs"}))),
            "mount / (tmpfs): a mount on /",
        ),
        (
            Box::new(set(
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "network", "path": "/no/net"}]),
            )),
            "join the net namespace /no/net: no such file or directory",
        ),
        (
            Box::new(set(
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "pid", "path": "/no/pid"}]),
            )),
            "join the pid namespace /no/pid: no such file or directory",
        ),
        (
            Box::new(set(
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "ipc", "path": "/proc/self/ns/uts"}]),
            )),
            "join the ipc namespace: invalid argument",
        ),
        (
            Box::new(set("/linux/sysctl", json!({"kernel.msgmax": "lots"}))),
            "write \"lots\" to /proc/sys/kernel/msgmax: invalid argument",
        ),
        (
            Box::new(set(
                "/linux/devices",
                json!([{"path": "/file", "type": "c", "major": 1, "minor": 3}]),
            )),
            "make device /file: file exists",
        ),
        (
            Box::new(set("/process/cwd", json!("/file"))),
            "enter working directory /file: not a directory",
        ),
        (Box::new(set("/mounts", json!([]))), "open a terminal at /dev/pts/ptmx"),
        (
            Box::new(set(
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1u64 << 62}]),
            )),
            "set RLIMIT_NOFILE",
        ),
    ];
    for (change, want) in cases {
        let mut spec = bench.spec("true");
        spec["process"]["terminal"] = json!(want.contains("terminal"));
        change(&mut spec);
        match bench.create(&spec, Stdio::default()) {
            Err(err) => assert!(err.to_string().starts_with(want), "{want}: {err}"),
            // Above what this host allows: the nearest is set and told.
            Ok(mut container) => {
                let warnings = container.take_warnings();
                assert!(
                    warnings.iter().any(|w| w.contains("RLIMIT_NOFILE")),
                    "{want}: {warnings:?}"
                );
                container.abort(LIMIT).unwrap();
            }
        }
        let left = Path::new("/sys/fs/cgroup/pids").join(&bench.name).exists();
        assert!(!left, "{want}");
    }
}

/// A FUSE mount whose server never answers.
fn hanging_volume() {
    let bench = Bench::new();
    let volume = bench.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    let Ok(server) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") else {
        return; // A kernel without FUSE.
    };
    let context = berth_sys::mount::FsContext::open(c"fuse").unwrap();
    let fd = server.as_raw_fd().to_string();
    for (key, value) in
        [("fd", fd.as_str()), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
    {
        context.string(key, value).unwrap();
    }
    let mount = context.mount(0).unwrap();
    berth_sys::mount::attach(mount.as_fd(), fs::File::open(&volume).unwrap().as_fd()).unwrap();
    drop((mount, context));
    let mut spec = bench.spec("true");
    let source = volume.join("inside");
    super::setup::add_mount(
        &mut spec,
        json!({"destination": "/v", "type": "bind", "source": source, "options": ["rbind"]}),
    );
    let spec = serde_json::from_value(spec).unwrap();
    let request = CreateRequest {
        id: "c",
        bundle: &bench.dir,
        spec: &spec,
        rootfs: None,
        pod: &bench.pod,
        layout: &bench.layout,
        stdio: Stdio::default(),
    };
    let mut stuck = Container::create(&request).unwrap();
    assert_eq!(stuck.advance().unwrap(), Progress::Pending);
    // Another container of the pod comes and goes meanwhile.
    let text = bench.sh_with("echo fine", |spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/other", bench.name));
    });
    assert_eq!(text, "fine\n");
    assert_eq!(stuck.advance().unwrap(), Progress::Pending);
    stuck.abort(LIMIT).unwrap();
    drop(server);
    berth_sys::mount::detach(&volume).unwrap();
}

fn half_there() {
    let bench = Bench::new();
    if bench.layout.is_unified() {
        return; // There is one hierarchy only.
    }
    let inside = bench.cgroup();
    let foreign = Path::new("/sys/fs/cgroup/memory").join(inside.trim_start_matches('/'));
    fs::create_dir_all(&foreign).unwrap();
    let err = bench.create(&bench.spec("true"), Stdio::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Exists, "{err}");
    assert!(foreign.exists(), "not ours");
    assert!(!Path::new("/sys/fs/cgroup/blkio").join(&bench.name).exists(), "ours, undone");
    fs::remove_dir(&foreign).unwrap();
    fs::remove_dir(foreign.parent().unwrap()).unwrap();
}

fn null_owner() {
    let bench = Bench::new();
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let file = fs::File::create(bench.dir.join("log")).unwrap();
    let mut spec = bench.spec("true");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let stdio =
        Stdio { stdin: Some(null.as_fd()), stdout: Some(file.as_fd()), stderr: Some(null.as_fd()) };
    let mut container = bench.create(&spec, stdio).unwrap();
    container.start_blocking(LIMIT).unwrap();
    assert_eq!(end(&container), ExitStatus::Code(0));
    assert_eq!(null.metadata().unwrap().uid(), 0);
    assert_eq!(file.metadata().unwrap().uid(), 0);
}
