//! Mounts, the root file system, devices, and what is hidden or read only.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use berth_container::{ErrorKind, ExitStatus, Overlay, PodOptions, Rootfs, Stdio};
use berth_sys::mount::{self, Change, FsContext, Propagation};
use serde_json::{Value, json};

use super::Case;
use super::setup::{Bench, add_mount, exec, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("volumes are bound, by file and by directory, and made read only", volumes),
    ("a symlinked source is resolved on the host", linked_source),
    ("a missing source fails the create and leaves nothing", missing_source),
    ("a mount point never leaves the root, whatever the image's links say", escapes),
    ("an image whose /proc is a link is refused", linked_proc),
    ("nothing may cover /proc but what only informs", covered_proc),
    ("private, slave and shared volumes propagate as they say", propagation),
    ("a shared volume on a mount that isn't is refused", unshared),
    ("ro leaves mounts below writable, rro does not", recursive_read_only),
    ("a read-only root takes no write, its volumes do", read_only_root),
    ("masked and read-only paths are that, also behind links", protected),
    ("tmpfs, mqueue and devpts are made with their options", file_systems),
    ("sysfs shows the network namespace, the host's too", sysfs),
    ("default and own devices work", devices),
    ("cgroups are shown from the container's own down", cgroup_view),
    ("an overlay of 1 and of 120 layers is a root", overlay),
    ("an overlay is mounted by path on older kernels", overlay_by_path),
    ("a broken overlay tells why", broken_overlay),
    ("the host's root is out of reach", host_out_of_reach),
];

fn volumes() {
    let bench = Bench::new();
    let volume = bench.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content\n").unwrap();
    let text = bench.sh_with(
        "cat /a/b/file; echo x > /rw/new; cat /f; ! echo y > /a/b/no; ls -ld /a/b /f | cut -c1-10",
        |spec| {
            let dir = |to: &str, how: &str| {
                json!({"destination": to, "type": "bind", "source": volume,
                       "options": ["rbind", how, "nosuid"]})
            };
            add_mount(spec, dir("/a/b", "ro"));
            add_mount(spec, dir("/rw", "rw"));
            let file = volume.join("file");
            let file =
                json!({"destination": "/f", "type": "bind", "source": file, "options": ["bind"]});
            add_mount(spec, file);
        },
    );
    assert!(text.starts_with("content\ncontent\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "x\n");
    assert!(bench.rootfs().join("a/b").is_dir() && bench.rootfs().join("f").is_file());
}

fn linked_source() {
    let bench = Bench::new();
    fs::create_dir(bench.dir.join("real")).unwrap();
    fs::write(bench.dir.join("real/file"), "real\n").unwrap();
    symlink("real", bench.dir.join("link")).unwrap();
    let text = bench.sh_with("cat /v/file", |spec| {
        let source = bench.dir.join("link");
        add_mount(
            spec,
            json!({"destination": "/v", "type": "bind", "source": source, "options": ["rbind"]}),
        );
    });
    assert_eq!(text, "real\n");
}

fn missing_source() {
    let bench = Bench::new();
    let mut spec = bench.spec("true");
    let source = bench.dir.join("none");
    add_mount(
        &mut spec,
        json!({"destination": "/v", "type": "bind", "source": source, "options": ["rbind"]}),
    );
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    let want = format!("mount /v (bind from {}): no such file or directory", source.display());
    assert_eq!((err.to_string(), err.kind()), (want, ErrorKind::NotFound));
}

fn escapes() {
    let bench = Bench::new();
    let root = bench.rootfs();
    let outside = bench.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, root.join("abs")).unwrap();
    symlink("../../../../../../../../../../tmp", root.join("up")).unwrap();
    fs::create_dir(bench.dir.join("volume")).unwrap();
    fs::write(bench.dir.join("volume/file"), "v\n").unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let bind = |to: &str| {
        json!({"destination": to, "type": "bind", "source": bench.dir.join("volume"),
               "options": ["rbind"]})
    };
    let text = bench.sh_with("cat /abs/x/file /up/y/file", |spec| {
        add_mount(spec, bind("/abs/x"));
        add_mount(spec, bind("/up/y"));
    });
    assert_eq!(text, "v\nv\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/tmp/y").exists());
    let inside = root.join(outside.strip_prefix("/").unwrap()).join("x");
    assert!(inside.is_dir(), "{} stands in for the host's", inside.display());
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

fn linked_proc() {
    let bench = Bench::new();
    fs::create_dir(bench.rootfs().join("other")).unwrap();
    symlink("other", bench.rootfs().join("proc")).unwrap();
    let err = bench.create(&bench.spec("true"), Stdio::default()).unwrap_err();
    assert_eq!(err.to_string(), "mount /proc (proc): must be on an ordinary directory");
}

fn covered_proc() {
    let bench = Bench::new();
    symlink("/proc/sys", bench.rootfs().join("innocent")).unwrap();
    let file = bench.dir.join("file");
    fs::write(&file, "forged\n").unwrap();
    let with = |to: &str, source: &Path| {
        let mut spec = bench.spec("cat /proc/uptime");
        add_mount(
            &mut spec,
            json!({"destination": to, "type": "bind", "source": source, "options": ["bind"]}),
        );
        spec
    };
    for to in ["/proc/sys", "/innocent", "/proc/self/attr"] {
        let err = bench.create(&with(to, &bench.dir), Stdio::default()).unwrap_err();
        assert!(err.to_string().ends_with("would cover a part of /proc"), "{to}: {err}");
    }
    let (text, status) = bench.run(&with("/proc/uptime", &file));
    assert_eq!((text.as_str(), status), ("forged\n", ExitStatus::Code(0)));
}

/// A host mount with a propagation of its own, gone with this value.
struct HostMount {
    at: PathBuf,
    mount: OwnedFd,
}

impl HostMount {
    fn new(at: PathBuf, propagation: Propagation) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mount = tmpfs();
        put(&mount, &at);
        let change = Change { propagation: Some(propagation), ..Change::default() };
        mount::set_attr(mount.as_fd(), &change).unwrap();
        Self { at, mount }
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        mount::detach(&self.at).unwrap();
    }
}

fn tmpfs() -> OwnedFd {
    FsContext::open(c"tmpfs").unwrap().mount(0).unwrap()
}

fn put(mount: &OwnedFd, at: &Path) {
    let spot = fs::File::open(at).unwrap();
    mount::attach(mount.as_fd(), spot.as_fd()).unwrap();
}

fn bind(to: &str, source: &Path, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": source, "options": options})
}

fn propagation() {
    let bench = Bench::new();
    let host = HostMount::new(bench.dir.join("volume"), Propagation::Shared);
    for name in ["from-host", "from-container"] {
        fs::create_dir(host.at.join(name)).unwrap();
    }
    for (word, to_container, to_host) in
        [("rprivate", false, false), ("rslave", true, false), ("rshared", true, true)]
    {
        let container = bench.idle(|spec| {
            add_mount(spec, bind("/v", &host.at, &["rbind", word]));
            let caps = json!(["CAP_SYS_ADMIN"]);
            spec["process"]["capabilities"] =
                json!({"bounding": caps, "effective": caps, "permitted": caps});
        });
        put(&tmpfs(), &host.at.join("from-host"));
        fs::write(host.at.join("from-host/new"), "").unwrap();
        let mut process = process(&["ls", "/v/from-host"]);
        process["capabilities"] = json!({"bounding": ["CAP_SYS_ADMIN"],
            "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]});
        let (text, _) = exec(&container, &process).unwrap();
        assert_eq!(text == "new\n", to_container, "{word}: {text:?}");
        let script = "mount -t tmpfs none /v/from-container && touch /v/from-container/new";
        process["args"] = json!(["sh", "-c", script]);
        let (text, status) = exec(&container, &process).unwrap();
        assert_eq!(status, ExitStatus::Code(0), "{word}: {text}");
        let seen = host.at.join("from-container/new").exists();
        assert_eq!(seen, to_host, "{word}");
        kill(&container);
        for (name, mounted) in [("from-host", true), ("from-container", to_host)] {
            assert_eq!(mount::detach(&host.at.join(name)).is_ok(), mounted, "{word} {name}");
        }
    }
}

fn unshared() {
    let bench = Bench::new();
    let host = HostMount::new(bench.dir.join("volume"), Propagation::Private);
    let mut spec = bench.spec("true");
    add_mount(&mut spec, bind("/v", &host.at, &["rbind", "rshared"]));
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    assert!(err.to_string().ends_with("its source lies on a mount that is not shared"), "{err}");
}

fn recursive_read_only() {
    let bench = Bench::new();
    let host = HostMount::new(bench.dir.join("volume"), Propagation::Private);
    rustix::fs::mkdirat(&host.mount, "below", 0o755.into()).unwrap();
    let below = HostMount::new(host.at.join("below"), Propagation::Private);
    let text = bench.sh_with(
        "! touch /ro/x; touch /ro/below/x; ! touch /rro/y; ! touch /rro/below/y; ls /ro/below",
        |spec| {
            add_mount(spec, bind("/ro", &host.at, &["rbind", "ro"]));
            add_mount(spec, bind("/rro", &host.at, &["rbind", "rro"]));
        },
    );
    assert!(text.ends_with("x\n"), "{text}");
    drop(below);
}

fn read_only_root() {
    let bench = Bench::new();
    fs::create_dir(bench.dir.join("volume")).unwrap();
    let text = bench.sh_with("! touch /new; touch /v/new; touch /dev/new; ls /v", |spec| {
        spec["root"]["readonly"] = json!(true);
        add_mount(spec, bind("/v", &bench.dir.join("volume"), &["rbind"]));
    });
    assert!(text.ends_with("Read-only file system\nnew\n"), "{text}");
}

fn protected() {
    let bench = Bench::new();
    let root = bench.rootfs();
    fs::create_dir_all(root.join("secret/dir")).unwrap();
    fs::write(root.join("secret/dir/file"), "s").unwrap();
    fs::write(root.join("secret/file"), "s").unwrap();
    fs::create_dir(root.join("fixed")).unwrap();
    symlink("/secret/dir", root.join("alias")).unwrap();
    let text = bench.sh_with(
        "cat /secret/file; ls -A /secret/dir; ! touch /secret/dir/x; ! touch /fixed/x; \
         ! echo 1 > /proc/sys/kernel/domainname; ls -A /proc/acpi; cat /proc/keys",
        |spec| {
            spec["linux"]["maskedPaths"] = json!([
                "/secret/file",
                "/alias",
                "/nowhere",
                "/proc/keys",
                "/proc/acpi",
                "/bin/sh/x"
            ]);
            spec["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/nowhere/x"]);
        },
    );
    let lines: Vec<&str> = text.lines().filter(|l| !l.contains("Read-only file system")).collect();
    assert!(lines.iter().all(|l| l.contains("/proc/acpi")), "{lines:?}");
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
}

fn file_systems() {
    let bench = Bench::new();
    let text = bench.sh_with("mount; ls -ld /t | cut -c1-10; touch /dev/mqueue/q", |spec| {
        add_mount(
            spec,
            json!({"destination": "/t", "type": "tmpfs", "source": "named",
                   "options": ["noexec", "nosuid", "size=64k", "mode=1777", "rro"]}),
        );
    });
    let line = |at: &str| {
        let line = text.lines().find(|l| l.contains(&format!(" on {at} type ")));
        line.unwrap_or_else(|| panic!("{at} in {text}")).to_owned()
    };
    assert!(line("/t").starts_with("named on /t type tmpfs (ro,nosuid,noexec,"), "{}", line("/t"));
    assert!(line("/t").contains("size=64k"));
    assert!(line("/dev/pts").contains("gid=5,mode=620,ptmxmode=666"), "{}", line("/dev/pts"));
    assert!(line("/dev/mqueue").contains("(rw,nosuid,nodev,noexec,"), "{}", line("/dev/mqueue"));
    assert!(line("/dev").contains("(rw,nosuid,"), "{}", line("/dev"));
    assert!(text.contains("drwxrwxrwt"), "{text}");
}

fn sysfs() {
    let host: Vec<String> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(host.len() > 1, "the host has more than lo: {host:?}");
    let own = Bench::new();
    assert_eq!(own.sh("ls /sys/class/net"), "lo\n");
    let shared = Bench::with(PodOptions { shm_size: Some(4096), ..PodOptions::default() });
    let text = shared.sh_with("ls -1 /sys/class/net; cat /sys/class/net/lo/operstate", |spec| {
        spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    });
    assert!(host.iter().all(|name| text.lines().any(|l| l == name)), "{host:?} in {text}");
}

fn devices() {
    let bench = Bench::new();
    let text = bench.sh_with(
        "echo x > /dev/null; dd if=/dev/zero bs=1 count=4 2>/dev/null | wc -c; \
         dd if=/dev/urandom bs=8 count=1 2>/dev/null | wc -c; ! echo x > /dev/full; \
         stat -c '%a %u %g %t:%T' /dev/own /dev/null /dev/deep/fifo; ls -l /dev/ptmx /dev/fd | sed 's/.*[0-9] //'",
        |spec| {
            spec["linux"]["devices"] = json!([
                {"path": "/dev/own", "type": "c", "major": 1, "minor": 5,
                 "fileMode": 0o640, "uid": 7, "gid": 8},
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                {"path": "/dev/deep/fifo", "type": "p", "major": 0, "minor": 0},
            ]);
        },
    );
    let want = "4\n8\nsh: write error: No space left on device\n\
        640 7 8 1:5\n600 0 0 1:3\n666 0 0 0:0\n/dev/fd -> /proc/self/fd\n/dev/ptmx -> pts/ptmx\n";
    assert_eq!(text, want);
}

fn cgroup_view() {
    let bench = Bench::new();
    let limited = |spec: &mut Value| {
        spec["linux"]["resources"] =
            json!({"memory": {"limit": 50_000_000}, "pids": {"limit": 77}});
    };
    let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null || true; \
        ! mkdir /sys/fs/cgroup/pids/x /sys/fs/cgroup/x 2>/dev/null; cat /proc/self/cgroup";
    let text = bench.sh_with(script, limited);
    assert!(text.starts_with("77\n"), "{text}");
    assert!(text.lines().skip(1).all(|line| line.ends_with(":/")), "{text}");
    // In the host's cgroup namespace v1 shows its own directories all the same. That the options
    // of the host's mount stay (nsdelegate on v2) is seen by the comparison after each case.
    let text = bench.sh_with(script, |spec| {
        limited(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "cgroup");
    });
    assert!(text.starts_with("77\n") || bench.layout.is_unified(), "{text}");
    assert!(text.lines().skip(1).all(|line| line.ends_with(&bench.cgroup())), "{text}");
}

/// `count` layers, the root's files in the lowest, each with a file of its own.
pub(crate) fn layers(bench: &Bench, count: usize) -> Overlay {
    let dir = bench.dir.join("image/l");
    let mut lower = vec![bench.rootfs()];
    for n in 1..count {
        let layer = dir.join(format!("0123456789abcdef{n:04}"));
        fs::create_dir_all(layer.join("layers")).unwrap();
        fs::write(layer.join(format!("layers/{n}")), "").unwrap();
        fs::write(layer.join("top"), n.to_string()).unwrap();
        lower.insert(0, layer);
    }
    let (upper, work) = (bench.dir.join("image/rw/fs"), bench.dir.join("image/rw/work"));
    for dir in [&upper, &work] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).unwrap();
    }
    let options = ["volatile", "index=off", "metacopy=off"].map(str::to_owned).to_vec();
    let mut overlay = Overlay { lower, upper: Some((upper, work)), options, ..Overlay::default() };
    if bench.pod.user().is_some() {
        // What lies there is the root's own.
        super::setup::give(&bench.rootfs(), 0);
        overlay.idmap = bench.pod.user().map(|user| user.maps().clone());
    }
    overlay
}

fn check_overlay(bench: &Bench, count: usize, by_path: bool) {
    let overlay = Overlay { by_path, ..layers(bench, count) };
    let script = "set -e; echo written > /file; cat /top 2>/dev/null || true; \
        ls /layers 2>/dev/null | wc -l; mount | sed -n '/ on . type/s/ (.*//p'";
    let (text, status) = bench.run_on(&bench.spec(script), Some(&Rootfs::Overlay(overlay)));
    let top = if count > 1 { (count - 1).to_string() } else { String::new() };
    assert_eq!(text, format!("{top}{}\noverlay on / type overlay\n", count - 1));
    assert_eq!(status, ExitStatus::Code(0));
    let written = bench.dir.join("image/rw/fs/file");
    assert_eq!(fs::read_to_string(written).unwrap(), "written\n");
    assert!(!bench.rootfs().join("file").exists());
}

fn overlay() {
    for count in [1, 2, 120] {
        check_overlay(&Bench::new(), count, false);
    }
}

fn overlay_by_path() {
    for count in [1, 2, 100] {
        check_overlay(&Bench::new(), count, true);
    }
}

fn broken_overlay() {
    let bench = Bench::new();
    let good = layers(&bench, 2);
    let missing = Overlay { lower: vec![bench.dir.join("none")], ..good.clone() };
    let option = Overlay { options: vec!["nonsense=on".into()], ..good };
    for (overlay, what) in [(missing, "no such file or directory"), (option, "nonsense")] {
        let rootfs = Rootfs::Overlay(overlay);
        let err =
            bench.create_on(&bench.spec("true"), Some(&rootfs), Stdio::default()).unwrap_err();
        let text = err.to_string();
        assert!(text.starts_with("mount the overlay root file system"), "{text}");
        assert!(text.contains(what), "{text}");
    }
}

fn host_out_of_reach() {
    let bench = Bench::new();
    let text = bench.sh("cat /proc/self/mountinfo | cut -d' ' -f5");
    assert!(text.starts_with("/\n/proc\n"), "{text}");
    assert!(!text.contains("/rootfs") && !text.contains("/layers"), "{text}");
    // pid 1's root and working directory are the container's.
    let text = bench.sh("ls -d /proc/1/root/bin /proc/1/cwd/bin; ls /../../bin/busybox");
    assert_eq!(text, "/proc/1/cwd/bin\n/proc/1/root/bin\n/../../bin/busybox\n");
}
