//! Damage, kind by kind.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

use super::{Layer, all_kinds};

/// What is done to a layer, and how each damage that is then found begins.
type Case = (fn(&Path), &'static [&'static str]);

fn check(cases: &[Case]) {
    let whole = all_kinds();
    for (harm, wanted) in cases {
        let layer = Layer::unpack(&whole);
        let times = dir_times(&layer.fs());
        harm(&layer.fs());
        restore(times);
        let found = layer.damage();
        assert_eq!(found.len(), wanted.len(), "{wanted:?}: {found:?}");
        for (found, wanted) in found.iter().zip(*wanted) {
            assert!(found.starts_with(wanted), "{wanted}: {found}");
        }
    }
}

#[test]
fn of_content() {
    check(&[
        (|fs| rewrite(&fs.join("etc/a"), b"somE content"), &["/etc/a: content"]),
        (|fs| rewrite(&fs.join("etc/b"), &vec![0; 600_000]), &["/etc/b: content"]),
        (|fs| rewrite(&fs.join("etc/b"), b""), &["/etc/b: size"]),
        (|fs| rewrite(&fs.join("etc/empty"), b"x"), &["/etc/empty: size"]),
    ]);
}

#[test]
fn of_attributes() {
    check(&[
        (|fs| mode(&fs.join("etc/x"), 0o640), &["/etc/x: mode"]),
        (|fs| mode(&fs.join("etc"), 0o755), &["/etc: mode"]),
        (|fs| chown(fs.join("etc/x"), Some(1), None).unwrap(), &["/etc/x: owner"]),
        (|fs| chown(fs.join("etc"), None, Some(1)).unwrap(), &["/etc: owner"]),
        (|fs| time(&fs.join("etc/x"), SystemTime::UNIX_EPOCH), &["/etc/x: time"]),
        (|fs| set(&fs.join("etc/x"), "user.k", b"w"), &["/etc/x: extended"]),
        (|fs| set(&fs.join("etc/b"), "user.k", b"w"), &["/etc/b: extended"]),
        (|fs| unset(&fs.join("attr"), "trusted.d"), &["/attr: extended"]),
        (|fs| unset(&fs.join("opq"), "trusted.overlay.opaque"), &["/opq: extended"]),
        (|fs| unset(&fs.join("gone"), "trusted.overlay.origin"), &["/gone: extended"]),
        (|fs| set(&fs.join("etc"), "trusted.overlay.opaque", b"y"), &["/etc: extended"]),
    ]);
}

#[test]
fn of_the_tree() {
    check(&[
        (|fs| remove(&fs.join("etc/b")), &["/etc/b: missing"]),
        (|fs| std::fs::write(fs.join("etc/new"), "").unwrap(), &["/etc/new: surplus"]),
        (
            |fs| std::fs::remove_dir_all(fs.join("dev")).unwrap(),
            &["/dev: missing", "/dev/b: missing", "/dev/c: missing", "/dev/p: missing"],
        ),
        (|fs| rename(fs, "etc/a2", "etc/a3"), &["/etc/a2: missing", "/etc/a3: surplus"]),
    ]);
}

#[test]
fn of_the_kind_of_a_node() {
    check(&[
        (
            |fs| again(&fs.join("etc/l"), |path| symlink("../elsewhere", path).unwrap()),
            &["/etc/l: link target"],
        ),
        (
            |fs| again(&fs.join("etc/a2"), |path| std::fs::create_dir(path).unwrap()),
            &["/etc/a2: type"],
        ),
        (
            |fs| {
                std::fs::remove_dir(fs.join("attr")).unwrap();
                symlink("etc", fs.join("attr")).unwrap();
            },
            &["/attr: type"],
        ),
        (
            |fs| again(&fs.join("gone/file"), |path| std::fs::write(path, "").unwrap()),
            &["/gone/file: type"],
        ),
        (|fs| copy_apart(&fs.join("etc/a"), &fs.join("etc/a2")), &["/etc/a"]),
    ]);
}

/// Other content, the old time.
fn rewrite(path: &Path, bytes: &[u8]) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    time(path, before);
}

fn time(path: &Path, to: SystemTime) {
    File::options().write(true).open(path).unwrap().set_modified(to).unwrap();
}

fn mode(path: &Path, to: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(to)).unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn unset(path: &Path, name: &str) {
    rustix::fs::removexattr(path, name).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn rename(fs: &Path, from: &str, to: &str) {
    std::fs::rename(fs.join(from), fs.join(to)).unwrap();
}

/// A hard link becomes a file of its own.
fn copy_apart(first: &Path, second: &Path) {
    let before = std::fs::metadata(first).unwrap().modified().unwrap();
    remove(second);
    std::fs::copy(first, second).unwrap();
    time(second, before);
}

/// Another node of the same name and time.
fn again(path: &Path, make: fn(&Path)) {
    let before = std::fs::symlink_metadata(path).unwrap();
    remove(path);
    make(path);
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: Timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Directories change with what lies in them; the cases are about the latter.
fn dir_times(root: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = vec![(root.to_owned(), std::fs::metadata(root).unwrap().modified().unwrap())];
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(dir_times(&entry.path()));
        }
    }
    found
}

fn restore(times: Vec<(PathBuf, SystemTime)>) {
    for (path, before) in times {
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            File::open(path).unwrap().set_modified(before).unwrap();
        }
    }
}
