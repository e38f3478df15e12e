//! Containers with a user namespace.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use berth_container::{
    ErrorKind, ExitStatus, IdMaps, IdRange, Overlay, PodOptions, Rootfs, Stdio, UserNamespace,
};
use serde_json::{Value, json};

use super::Case;
use super::filesystem::layers;
use super::setup::{Bench, LIMIT, Output, add_mount, end, exec, kill, process};

pub(crate) const CASES: &[Case] = &[
    ("a pod's user namespace owns what its containers see", owns),
    ("what is made inside is the range's on the host", owners),
    ("an idmapped volume keeps the owners on disk", idmapped_volume),
    ("an idmapped volume may have a map of its own", own_map),
    ("a volume whose file system can't map ids is named", unmappable),
    ("two ranges share one image, and its files keep their owner", two_ranges),
    ("fifty mapped layers cost one mount", many_layers),
    ("nothing of the host is in reach of root inside", host_out_of_reach),
    ("root inside rules its namespaces", rules_its_own),
    ("covers stay, whatever root inside may do", covers_stay),
    ("an exec enters the user namespace", execs),
    ("hard limits are raised before the namespace is entered", limits),
    ("a user namespace is made, or joined by path", made_or_joined),
    ("a pod's IPC sysctls are written from inside", sysctls),
    ("ids that aren't mapped are refused by field", refused),
    ("impossible maps are refused and leave nothing", impossible),
];

/// Cases that say something else where every pod has a user namespace.
pub(crate) const OTHERWISE: &[(&str, &str)] = &[
    (
        "volumes are bound, by file and by directory, and made read only",
        "root there owns no volume",
    ),
    ("private, slave and shared volumes propagate as they say", "shared is refused"),
    ("a shared volume on a mount that isn't is refused", "shared is refused"),
    ("a read-only root takes no write, its volumes do", "root there owns no volume"),
    ("tmpfs, mqueue and devpts are made with their options", "mount shows the host's ids"),
    ("default and own devices work", "the spec's devices stay the host's"),
    ("a capability the host lacks is left out and told", "every one is there"),
];

/// The first id of the range that these cases map.
pub(crate) const HOST: u32 = 200_000;

pub(crate) fn maps(host: u32) -> IdMaps {
    let ranges = vec![IdRange { container: 0, host, length: 65_536 }];
    IdMaps { uids: ranges.clone(), gids: ranges }
}

fn options(host: u32) -> PodOptions {
    PodOptions {
        net: true,
        ipc: true,
        uts: true,
        hostname: Some("bench".into()),
        shm_size: Some(1 << 20),
        user: Some(maps(host)),
        ..PodOptions::default()
    }
}

fn pod() -> Bench {
    Bench::with(options(HOST))
}

/// Runs on mapped layers.
fn run(bench: &Bench, script: &str, change: impl FnOnce(&mut Value)) -> (String, ExitStatus) {
    let mut spec = bench.spec(script);
    change(&mut spec);
    bench.run_on(&spec, Some(&Rootfs::Overlay(layers(bench, 1))))
}

/// The script's output on mapped layers; it must succeed.
fn sh(bench: &Bench, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let (text, status) = run(bench, &format!("set -e; {script}"), change);
    assert_eq!(status, ExitStatus::Code(0), "{script}: {text}");
    text
}

/// All capabilities of the present kernel.
fn all_capabilities(spec: &mut Value) {
    let all = json!(berth_sys::creds::CAPABILITY_NAMES.to_vec());
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn owns() {
    let bench = pod();
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; echo $$; hostname";
    let text = sh(&bench, script, |_| {});
    let numbers: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(numbers, ["0", "200000", "65536", "0", "200000", "65536", "0", "1", "bench"]);
    let places = "/ /bin/busybox /dev /dev/null /dev/pts /dev/shm /dev/mqueue /new";
    let text = sh(&bench, &format!("mkdir /new; stat -c '%u:%g' {places} | sort -u"), |_| {});
    assert_eq!(text, "0:0\n");
    let spec = bench.spec("exec sleep 1000");
    let mut container = bench
        .create_on(&spec, Some(&Rootfs::Overlay(layers(&bench, 1))), Stdio::default())
        .unwrap();
    container.start_blocking(LIMIT).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    let root = format!("Uid:\t{HOST}\t{HOST}\t{HOST}\t{HOST}");
    assert!(status.contains(&root), "{status}");
    kill(&container);
}

fn owners() {
    let bench = pod();
    let volume = bench.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = "echo x > /made; chown 7:8 /made; echo x > /v/root; cat /bin/busybox | head -c 1";
    let mount =
        json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind"]});
    sh(&bench, script, |spec| add_mount(spec, mount));
    // Layers keep the image's own numbers, volumes show the host's.
    assert_eq!(owner(&bench.dir.join("image/rw/fs/made")), (7, 8));
    assert_eq!(owner(&volume.join("root")), (HOST, HOST));
    assert_eq!(owner(&bench.rootfs().join("bin/busybox")), (0, 0));
    assert_eq!(owner(&bench.dir.join("image/rw/fs")), (0, 0));
}

/// A tree with a mount below, so that it takes `ridmap` to map all.
fn idmapped_volume() {
    let bench = pod();
    let volume = bench.dir.join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    let context = berth_sys::mount::FsContext::open(c"tmpfs").unwrap();
    let below = context.mount(0).unwrap();
    let spot = fs::File::open(volume.join("below")).unwrap();
    berth_sys::mount::attach(below.as_fd(), spot.as_fd()).unwrap();
    drop((context, below, spot));
    chown(volume.join("below"), Some(5), Some(5)).unwrap();
    let script = "stat -c %u:%g /v /v/below; busybox rm -f /v/root; echo x > /v/root; chown 1000:1000 /v/root; \
        stat -c %u:%g /v/root";
    let with = |word: &'static str| {
        let volume = volume.clone();
        move |spec: &mut Value| {
            let options = json!(["rbind", word]);
            add_mount(
                spec,
                json!({
                    "destination": "/v", "type": "bind", "source": volume, "options": options,
                }),
            );
        }
    };
    assert_eq!(sh(&bench, script, with("ridmap")), "0:0\n5:5\n1000:1000\n");
    assert_eq!(owner(&volume.join("root")), (1000, 1000));
    assert_eq!(sh(&bench, script, with("idmap")), "0:0\n65534:65534\n1000:1000\n");
    berth_sys::mount::detach(&volume.join("below")).unwrap();
}

fn own_map() {
    let bench = pod();
    let volume = bench.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(40), Some(41)).unwrap();
    // 40 on disk is the host's HOST + 3, which is 3 inside.
    let line = |disk: u32| json!([{"containerID": disk, "hostID": HOST + 3, "size": 1}]);
    let text = sh(&bench, "stat -c %u:%g /v", |spec| {
        add_mount(
            spec,
            json!({
                "destination": "/v", "type": "bind", "source": volume, "options": ["rbind"],
                "uidMappings": line(40), "gidMappings": line(41),
            }),
        );
    });
    assert_eq!(text, "3:3\n");
    // A container without a user namespace may have mapped volumes, too.
    let bench = Bench::with(PodOptions {
        net: true,
        ipc: true,
        uts: true,
        shm_size: Some(4096),
        ..PodOptions::default()
    });
    if bench.pod.user().is_none() {
        let text = bench.sh_with("stat -c %u:%g /v", |spec| {
            add_mount(
                spec,
                json!({
                    "destination": "/v", "type": "bind", "source": volume, "options": ["bind"],
                    "uidMappings": line(40), "gidMappings": line(41),
                }),
            );
        });
        assert_eq!(text, format!("{0}:{0}\n", HOST + 3));
    }
}

fn unmappable() {
    let bench = pod();
    let mut spec = bench.spec("true");
    add_mount(
        &mut spec,
        json!({
            "destination": "/v", "type": "bind", "source": "/proc/sys", "options": ["rbind", "ridmap"],
        }),
    );
    let err = bench.create(&spec, Stdio::default()).unwrap_err().to_string();
    assert!(
        err.starts_with("mount /v (bind from /proc/sys): its file system (type 0x9fa0)"),
        "{err}"
    );
    // The same for layers.
    let mut overlay = layers(&bench, 1);
    overlay.lower = vec!["/proc/sys/net".into()];
    overlay.upper = None;
    let rootfs = Rootfs::Overlay(overlay);
    let err = bench.create_on(&bench.spec("true"), Some(&rootfs), Stdio::default()).unwrap_err();
    let err = err.to_string();
    assert!(err.starts_with("map the ids of the layers in /proc/sys: its file system"), "{err}");
}

fn two_ranges() {
    let one = pod();
    let image = layers(&one, 3);
    let before: Vec<_> = walk(&one.rootfs());
    for host in [HOST, 300_000] {
        let bench = Bench::with(options(host));
        let upper = (bench.dir.join("fs"), bench.dir.join("work"));
        fs::create_dir(&upper.0).unwrap();
        fs::create_dir(&upper.1).unwrap();
        // The common parent of both benches' directories is mapped as a whole.
        let overlay =
            Overlay { upper: Some(upper.clone()), idmap: Some(maps(host)), ..image.clone() };
        let script = "stat -c %u:%g /bin/busybox; cat /proc/self/uid_map | tr -s ' '; \
            echo x > /bin/new; chown 3:3 /bin/new";
        let (text, status) = bench.run_on(&bench.spec(script), Some(&Rootfs::Overlay(overlay)));
        assert_eq!(status, ExitStatus::Code(0), "{text}");
        assert_eq!(text, format!("0:0\n 0 {host} 65536\n"));
        // Only what is written to is copied.
        let bytes: u64 = walk(&upper.0).iter().map(|(_, _, size)| size).sum();
        assert!(bytes < 4096, "{bytes} bytes written");
        assert_eq!(owner(&upper.0.join("bin/new")), (3, 3));
    }
    assert_eq!(walk(&one.rootfs()), before);
}

/// Every path below, with its owner, and its size where it is no directory.
fn walk(dir: &Path) -> Vec<(String, u32, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        all.push((
            path.display().to_string(),
            meta.uid(),
            if meta.is_dir() { 0 } else { meta.size() },
        ));
        if meta.is_dir() {
            all.extend(walk(&path));
        }
    }
    all.sort();
    all
}

fn many_layers() {
    let bench = pod();
    let mounts = |count: usize, by_path: bool| {
        let overlay = Overlay { by_path, ..layers(&bench, count) };
        let script = "wc -l < /proc/self/mountinfo; cat /layers/* 2>/dev/null; ls /layers | wc -l; \
            stat -c %u /top; grep -c ' / / .*overlay' /proc/self/mountinfo";
        bench.run_on(&bench.spec(script), Some(&Rootfs::Overlay(overlay)))
    };
    let few = mounts(2, false).0;
    for by_path in [false, true] {
        let (text, status) = mounts(50, by_path);
        assert_eq!(status, ExitStatus::Code(0), "{text}");
        assert_eq!(text.lines().next(), few.lines().next(), "as many mounts as with two layers");
        assert!(text.ends_with("\n49\n0\n1\n"), "{text}");
    }
}

fn host_out_of_reach() {
    let bench = pod();
    let secret = bench.dir.join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // A process of another range, which this container sees.
    let other = Bench::with(options(300_000));
    let victim = other.idle(|_| {});
    let pid = victim.pid();
    let script = format!(
        "cat /v 2>/dev/null && echo read; \
         kill -0 {pid} 2>/dev/null && echo killed; \
         ls /proc/{pid}/root/ 2>/dev/null && echo entered; \
         echo 1 2>/dev/null > /proc/sys/vm/swappiness && echo swappiness; \
         echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo core; \
         mknod /disk b 8 0 2>/dev/null && echo device; \
         mount -t ext4 /dev/vda /bin 2>/dev/null && echo disk; \
         echo 0 2>/dev/null > /sys/kernel/mm/ksm/run && echo sysfs; \
         nice -n -5 true 2>/dev/null && echo nice; \
         test -e /proc/{pid} && echo seen"
    );
    let (text, _) = run(&bench, &script, |spec| {
        all_capabilities(spec);
        add_mount(
            spec,
            json!({
                "destination": "/v", "type": "bind", "source": secret, "options": ["bind"],
            }),
        );
        // The host's own PID namespace: as much in sight as can be.
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "pid");
    });
    assert_eq!(text, "seen\n");
    kill(&victim);
}

fn rules_its_own() {
    let bench = pod();
    let script = "mkdir /m; mount -t tmpfs tmpfs /m; umount /m; hostname other; hostname; \
        ip link set lo down; ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
        cat /proc/sys/net/ipv4/ip_forward; unshare -p -f true; echo fine";
    let text = sh(&bench, script, |spec| {
        all_capabilities(spec);
        fs::hard_link(bench.rootfs().join("bin/busybox"), bench.rootfs().join("bin/unshare"))
            .unwrap();
        for tool in ["ip", "mkdir"] {
            std::os::unix::fs::symlink("busybox", bench.rootfs().join("bin").join(tool)).unwrap();
        }
    });
    assert_eq!(text, "other\n1\nfine\n");
    // A new /proc of its own PID namespace, where nothing covers the present one.
    let text = sh(&bench, "mkdir /p; mount -t proc proc /p; cat /p/1/comm; true", all_capabilities);
    assert_eq!(text, "sh\n");
}

fn covers_stay() {
    let bench = pod();
    let volume = bench.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    let script = "umount /proc/keys 2>/dev/null && echo mask; \
        umount -l /proc/sys 2>/dev/null && echo read-only; \
        mount -o remount,bind,rw /proc/sys 2>/dev/null && echo remount; \
        mount -o remount,bind,rw /v 2>/dev/null && echo volume; \
        mkdir /p; mount -t proc proc /p 2>/dev/null && echo fresh; \
        cat /proc/keys | wc -c";
    let (text, _) = run(&bench, script, |spec| {
        all_capabilities(spec);
        spec["linux"]["maskedPaths"] = json!(["/proc/keys"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        add_mount(
            spec,
            json!({
                "destination": "/v", "type": "bind", "source": volume, "options": ["bind", "ro", "idmap"],
            }),
        );
    });
    assert_eq!(text, "0\n");
}

fn execs() {
    let bench = pod();
    let spec = bench.spec("exec sleep 1000");
    let rootfs = Rootfs::Overlay(layers(&bench, 1));
    let mut container = bench.create_on(&spec, Some(&rootfs), Stdio::default()).unwrap();
    container.start_blocking(LIMIT).unwrap();
    let script = "id; tr -s ' ' < /proc/self/uid_map; for n in user mnt pid net ipc uts cgroup; do \
        test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n differs; done; \
        echo out > /proc/self/fd/1; grep CapEff /proc/self/status";
    std::os::unix::fs::symlink("busybox", bench.rootfs().join("bin/readlink")).unwrap();
    let mut json = process(&["sh", "-c", script]);
    // CAP_SYS_PTRACE, to read the links of another.
    json["capabilities"] = json!({"bounding": ["CAP_SYS_PTRACE"], "effective": ["CAP_SYS_PTRACE"],
        "permitted": ["CAP_SYS_PTRACE"]});
    let (text, status) = exec(&container, &json).unwrap();
    assert_eq!(status, ExitStatus::Code(0), "{text}");
    let map = format!("0 {HOST} 65536");
    assert!(text.starts_with("uid=0(root) gid=0"), "{text}");
    assert!(text.contains(&map) && !text.contains("differs") && text.contains("\nout\n"), "{text}");
    json["user"] = json!({"uid": 1000, "gid": 5, "additionalGids": [6, 7]});
    let (text, _) = exec(&container, &json).unwrap();
    assert!(text.starts_with("uid=1000(u) gid=5 groups=6,7\n"), "{text}");
    json["user"] = json!({"uid": 70_000, "gid": 5});
    let err = exec(&container, &json).unwrap_err();
    assert_eq!(err.to_string(), "process.user.uid: 70000 is not mapped in the user namespace");
    kill(&container);
}

fn limits() {
    let bench = pod();
    let now = berth_sys::creds::rlimit(7).unwrap();
    let lower = berth_sys::creds::Rlimit { soft: 256, hard: 256 };
    let text = sh(&bench, "ulimit -n; ulimit -Hn", |spec| {
        spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": lower.soft, "hard": now.hard}]);
    });
    assert_eq!(text, format!("256\n{}\n", now.hard));
}

fn made_or_joined() {
    let bench = Bench::with(PodOptions { shm_size: Some(4096), ..PodOptions::default() });
    let rootfs = || {
        super::setup::give(&bench.rootfs(), 0);
        Rootfs::Overlay(Overlay { idmap: Some(maps(HOST)), ..layers(&bench, 1) })
    };
    let line = json!([{"containerID": 0, "hostID": HOST, "size": 65_536}]);
    let mut spec = bench.spec("tr -s ' ' < /proc/self/uid_map; ip link set lo down; hostname");
    std::os::unix::fs::symlink("busybox", bench.rootfs().join("bin/ip")).unwrap();
    spec["hostname"] = json!("mine");
    all_capabilities(&mut spec);
    spec["linux"]["uidMappings"] = line.clone();
    spec["linux"]["gidMappings"] = line.clone();
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "ipc"}, {"type": "uts"},
        {"type": "network"}, {"type": "user"},
    ]);
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/shm");
    let want = format!(" 0 {HOST} 65536\nmine\n");
    let (text, status) = bench.run_on(&spec, Some(&rootfs()));
    assert_eq!((text.as_str(), status), (want.as_str(), ExitStatus::Code(0)));

    let user = UserNamespace::create(&maps(HOST)).unwrap();
    let path = {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), user.as_fd().as_raw_fd())
    };
    spec["linux"]["namespaces"][6] = json!({"type": "user", "path": path});
    let err = bench.create_on(&spec, Some(&rootfs()), Stdio::default()).unwrap_err();
    assert!(err.to_string().starts_with("linux.uidMappings: set, but"), "{err}");
    for field in ["uidMappings", "gidMappings"] {
        spec["linux"].as_object_mut().unwrap().remove(field);
    }
    let (text, status) = bench.run_on(&spec, Some(&rootfs()));
    assert_eq!((text.as_str(), status), (want.as_str(), ExitStatus::Code(0)));
}

fn sysctls() {
    let sysctls = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "42".to_owned()),
    ]);
    let bench = Bench::with(PodOptions { sysctls, ..options(HOST) });
    let files = "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced \
        /proc/sys/fs/mqueue/msg_max";
    assert_eq!(sh(&bench, &format!("cat {files}"), |_| {}), "0\n1\n42\n");
}

fn refused() {
    let bench = pod();
    let refuse = |want: &str, change: &dyn Fn(&mut Value)| {
        let mut spec = bench.spec("true");
        change(&mut spec);
        let err = bench.create(&spec, Stdio::default()).unwrap_err();
        assert!(err.to_string().starts_with(want), "{want}: {err}");
        assert_eq!(err.kind(), ErrorKind::Invalid, "{err}");
    };
    let user = |value: Value| move |spec: &mut Value| spec["process"]["user"] = value.clone();
    refuse("process.user.uid: 65536", &user(json!({"uid": 65_536, "gid": 0})));
    refuse("process.user.gid: 65536", &user(json!({"uid": 0, "gid": 65_536})));
    let groups = json!({"uid": 0, "gid": 0, "additionalGids": [1, 99_999]});
    refuse("process.user.additionalGids: 99999", &user(groups));
    refuse("linux.rootfsPropagation: shared", &|spec| {
        spec["linux"]["rootfsPropagation"] = json!("rshared");
    });
    refuse("mounts[7].options: shared", &|spec| {
        let options = json!(["rbind", "rshared"]);
        add_mount(
            spec,
            json!({"destination": "/v", "type": "bind", "source": "/tmp", "options": options}),
        );
    });
    refuse("linux.namespaces[7]: type user twice", &|spec| {
        let all = spec["linux"]["namespaces"].as_array_mut().unwrap();
        all.push(json!({"type": "user"}));
    });
    let mut spec = bench.spec("true");
    spec["mounts"][2]["options"] = json!(["gid=70000"]);
    let err = bench.create(&spec, Stdio::default()).unwrap_err();
    let want = "mount /dev/pts (devpts): gid=70000 is not mapped in the user namespace";
    assert_eq!(err.to_string(), want);
}

fn impossible() {
    let of = |ranges: &[(u32, u32, u32)]| {
        let range = |&(container, host, length): &_| IdRange { container, host, length };
        let ranges: Vec<IdRange> = ranges.iter().map(range).collect();
        IdMaps { uids: ranges.clone(), gids: ranges }
    };
    for (maps, want) in [
        (of(&[]), "uidMappings: missing"),
        (of(&[(1, 1000, 10)]), "map the pod's ids: root is not mapped"),
        // Overlapping: the kernel's own rule.
        (of(&[(0, 1000, 10), (5, 3000, 10)]), "write \"0 1000 10\\n5 3000 10\" to gid_map"),
    ] {
        let options = PodOptions { user: Some(maps), net: true, ..PodOptions::default() };
        let err = berth_container::PodNamespaces::create(&options).unwrap_err().to_string();
        assert!(err.starts_with(want), "{want}: {err}");
    }
    let out = Output::new();
    let bench = pod();
    let mut container = bench.create(&bench.spec("echo fine"), out.stdio()).unwrap();
    container.start_blocking(LIMIT).unwrap();
    assert_eq!(out.read(), "fine\n");
    assert_eq!(end(&container), ExitStatus::Code(0));
}
