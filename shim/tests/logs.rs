//! Logs: format, rotation, full disks, speed.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use berth_proto::shim as pb;
use common::{Pod, context, lines, status, until};
use ttrpc::Code;

fn reopen(pod: &Pod, id: &str) -> ttrpc::Result<pb::ReopenLogResponse> {
    pod.call("ReopenLog", &pb::ReopenLogRequest { container_id: id.into() })
}

/// A tmpfs of so many KiB, gone with the value.
struct Disk(PathBuf);

impl Disk {
    fn new(path: &Path, kib: u32) -> Self {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={kib}k");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path);
        assert!(mount.status().unwrap().success());
        Self(path.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&self.0).status().unwrap().success());
    }
}

#[test]
fn lines_are_whole_up_to_16_kib() {
    let pod = Pod::new();
    let script = "head -c 16384 /dev/zero | tr '\\0' x; echo; \
                  head -c 16385 /dev/zero | tr '\\0' y; echo; printf 'cr\\r\\n'; printf rest";
    pod.run("c", &["busybox", "sh", "-c", &with_busybox(script)]);
    assert_eq!(pod.wait("c"), 0);
    let lines = pod.lines("c");
    let shape: Vec<(char, usize)> = lines.iter().map(|(_, tag, text)| (*tag, text.len())).collect();
    assert_eq!(shape, [('F', 16384), ('P', 16384), ('F', 1), ('F', 2), ('P', 4)]);
    let file = fs::metadata(pod.log("c")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o640);
}

/// Spells out the applets that the rootfs has no links for.
fn with_busybox(script: &str) -> String {
    script.replace("head ", "busybox head ").replace("tr '", "busybox tr '")
}

#[test]
fn nothing_is_lost_over_a_rotation() {
    let pod = Pod::new();
    pod.run("c", &["sh", "-c", "i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done"]);
    let mut rotated = Vec::new();
    for number in 0..5 {
        let renamed = pod.log("c").with_extension(number.to_string());
        fs::rename(pod.log("c"), &renamed).unwrap();
        rotated.push(renamed);
        match reopen(&pod, "c") {
            Ok(_) => assert!(pod.log("c").exists()),
            // It was faster than we.
            Err(_) => break,
        }
    }
    assert_eq!(pod.wait("c"), 0);
    rotated.push(pod.log("c"));
    let all: Vec<String> = rotated
        .iter()
        .filter(|path| path.exists())
        .flat_map(|path| lines(path))
        .map(|(_, _, text)| text)
        .collect();
    let expected: Vec<String> = (0..30000).map(|number| number.to_string()).collect();
    assert_eq!(all.len(), expected.len());
    assert_eq!(all, expected);
    let (code, message) = status(reopen(&pod, "c"));
    assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
    assert_eq!(status(reopen(&pod, "x")).0, Code::NOT_FOUND);
}

#[test]
fn a_full_disk_blocks_nobody_and_the_loss_is_told() {
    let pod = Pod::new();
    let disk = Disk::new(&pod.root.join("disk"), 64);
    let log = disk.0.join("0.log");
    let mut order = pod.order(
        "c",
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do echo \"line $i 0123456789012345678901234567890\"; \
         i=$((i+1)); done; while [ ! -e /go ]; do sleep 0.01; done; echo after",
        ],
    );
    order.stdout = format!("crilog://{}", log.display());
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    let written: u64 = (0..3000)
        .map(|i: u32| format!("line {i} 0123456789012345678901234567890\n").len() as u64)
        .sum();
    let lost = || pod.inventory().containers[0].log_bytes_lost;
    // Every byte is either in the file or counted.
    until("all is written or lost", || kept(&log) + lost() == written);
    assert!(lost() > 50_000, "{}", lost());
    assert!(kept(&log) > 10_000, "{}", kept(&log));
    // A line that tells of a part of it may have found room already.
    let all_lost = lost();
    let untold = all_lost - told(&log);

    fs::remove_file(&log).unwrap();
    reopen(&pod, "c").unwrap();
    pod.exec("c", &["sh", "-c", "echo > /go"]).unwrap();
    assert_eq!(pod.wait("c"), 0);
    let after = lines(&log);
    assert_eq!(after[0].0, "stderr");
    assert_eq!(
        after[0].2,
        format!("berth: {untold} bytes of log were lost: No space left on device")
    );
    assert_eq!(after[1].2, "after");
    assert_eq!(pod.exit_record("c").log_bytes_lost, all_lost);
}

/// Bytes of output in a log, which may be written to meanwhile.
fn kept(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let output = whole.lines().filter(|line| line[31..].starts_with("stdout"));
    output.map(|line| line.len() as u64 - 40 + 1).sum()
}

/// Bytes that lines of a log tell to be lost.
fn told(log: &Path) -> u64 {
    let notices = lines(log).into_iter().filter(|(stream, ..)| stream == "stderr");
    notices.map(|(_, _, text)| text.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn an_exit_record_waits_for_room_on_a_full_disk() {
    let pod = Pod::new();
    let disk = Disk::new(&pod.dir.join("exits"), 16);
    let filler = disk.0.join("filler");
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    pod.run("c", &["sh", "-c", "exit 9"]);
    assert_eq!(pod.wait("c"), 9, "who waits is told all the same");
    assert_eq!(pod.inventory().containers[0].exit_code, 9);
    assert!(pod.shim_log().contains("write its exit record"));
    assert!(!disk.0.join("c.json").exists());
    fs::remove_file(&filler).unwrap();
    until("the record is written", || disk.0.join("c.json").exists());
    assert_eq!(pod.exit_record("c").exit_code, 9);

    // Nor does it keep a pod from being stopped and removed.
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    pod.run("d", &["sleep", "1000"]);
    pod.stop().unwrap();
    assert!(pod.cgroups().is_empty());
    assert_eq!(pod.inventory().containers[1].exit_code, 137);
    assert_eq!(pod.delete("d").unwrap(), 137);
}

#[test]
fn a_missing_log_directory_is_made_and_no_log_is_none() {
    let pod = Pod::new();
    let mut order = pod.order("c", &["sh", "-c", "seq 1 100000"]);
    order.stdout = String::new();
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    assert_eq!(pod.wait("c"), 0);
    assert!(!pod.root.join("logs").exists());
    pod.run("d", &["echo", "x"]);
    pod.wait("d");
    assert_eq!(pod.lines("d").len(), 1);
}

#[test]
fn a_flood_arrives_whole() {
    let pod = Pod::new();
    let line = format!("{}\n", "x".repeat(119));
    let block = line.repeat(300_000);
    fs::create_dir_all(pod.root.join("fast/upper")).unwrap();
    let order = pod.order("fast", &["cat", "/block"]);
    fs::write(pod.root.join("fast/upper/block"), &block).unwrap();
    pod.task.create(context(), &order).unwrap();
    let start = Instant::now();
    pod.start("fast").unwrap();
    assert_eq!(pod.wait("fast"), 0);
    let rate = block.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("cat of 120-byte lines: {rate:.0} MB/s");
    let lines = pod.lines("fast");
    assert_eq!(lines.len(), 300_000);
    assert!(lines.iter().all(|(_, tag, text)| *tag == 'F' && text.len() == 119));
}
