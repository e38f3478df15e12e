//! Mounts, the root file system, devices, and what is hidden or read only.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use berth_container::{ErrorKind, ExitStatus, Stdio};
use serde_json::json;

use super::Case;
use super::setup::{Bench, add_mount};

pub(crate) const CASES: &[Case] = &[
    ("volumes are bound, by file and by directory, and made read only", volumes),
    ("a symlinked source is resolved on the host", linked_source),
    ("a missing source fails the create and leaves nothing", missing_source),
    ("a mount point never leaves the root, whatever the image's links say", escapes),
    ("an image whose /proc is a link is refused", linked_proc),
    ("nothing may cover /proc but what only informs", covered_proc),
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
