//! The pod's namespaces, its init, its end.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use common::{Pod, alive, context, status, until};
use serde_json::json;
use ttrpc::Code;

fn net_namespace(spec: &mut serde_json::Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "network", "path": "pod:" }));
}

#[test]
fn a_network_namespace_is_pinned_and_unpinned() {
    let pod = Pod::bare();
    let path = pod.root.join("ns/x/net");
    let request = |request: &mut berth_proto::shim::CreatePodRequest| {
        request.netns_path = path.display().to_string();
        request.sysctls =
            HashMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "80".into())]);
    };
    let answer = pod.create_pod(request).unwrap();
    assert_eq!((answer.shim_pid, answer.init_pid), (pod.pid, 0));
    let output = Command::new("nsenter")
        .arg(format!("--net={}", path.display()))
        .args(["ip", "-o", "link", "show", "lo"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("UP"), "{text}");

    let order = pod.order_with(
        "c",
        &[
            "sh",
            "-c",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname; ls /sys/class/net",
        ],
        net_namespace,
    );
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    pod.wait("c");
    let lines: Vec<String> = pod.lines("c").into_iter().map(|line| line.2).collect();
    assert_eq!(lines[..2], ["80", "berth-test"]);

    // The same again answers the same, another is refused.
    assert_eq!(pod.create_pod(request).unwrap(), answer);
    assert_eq!(status(pod.create_pod(|_| {})).0, Code::ALREADY_EXISTS);
    pod.stop().unwrap();
    assert!(!path.exists());
    assert!(!path.parent().unwrap().exists());
}

#[test]
fn a_pod_that_cannot_be_made_leaves_nothing() {
    let pod = Pod::bare();
    let file = pod.root.join("file");
    fs::write(&file, "").unwrap();
    let failed = pod.create_pod(|request| {
        request.shared_pid = true;
        request.netns_path = file.join("x/net").display().to_string();
    });
    assert!(status(failed).1.contains(&file.display().to_string()));
    let failed = pod.create_pod(|request| {
        request.netns_path = pod.root.join("ns/y/net").display().to_string();
        request.sysctls = HashMap::from([("no.such.sysctl".into(), "1".into())]);
    });
    assert!(status(failed).1.contains("no.such.sysctl"));
    assert!(!pod.root.join("ns/y").exists());
    assert!(pod.cgroups().is_empty());
    // What another pinned there is left alone.
    let taken = pod.root.join("taken");
    fs::write(&taken, "").unwrap();
    let failed = pod.create_pod(|request| request.netns_path = taken.display().to_string());
    assert!(status(failed).1.contains(&taken.display().to_string()));
    assert!(taken.exists());
    assert!(!pod.dir.join("pod.json").exists());
    // It can be made then.
    pod.create_pod(|request| request.shared_pid = true).unwrap();
}

#[test]
fn malformed_pods_name_the_field() {
    let pod = Pod::bare();
    type Change = fn(&mut berth_proto::shim::CreatePodRequest);
    let cases: [(Change, &str); 3] = [
        (|request| request.pod_id = String::new(), "pod_id"),
        (|request| request.cgroup_parent = "relative".into(), "cgroup_parent \"relative\""),
        (|request| request.netns_path = "relative".into(), "netns_path \"relative\""),
    ];
    for (change, text) in cases {
        let (code, message) = status(pod.create_pod(change));
        assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        assert!(message.contains(text), "{message}");
    }
}

fn shared(spec: &mut serde_json::Value) {
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!("pod:");
        }
    }
}

#[test]
fn containers_share_a_pid_namespace_with_an_init_that_reaps() {
    let pod = Pod::bare();
    let init = pod.create_pod(|request| request.shared_pid = true).unwrap().init_pid;
    assert!(alive(init));
    let cgroup = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let place = format!("{}/{}", pod.cgroup, pod.id);
    assert!(cgroup.contains(&place), "the init is in {cgroup}");
    for id in ["a", "b"] {
        let order = pod.order_with(id, &["sh", "-c", "sleep 1000 & (true &); sleep 1000"], shared);
        pod.task.create(context(), &order).unwrap();
        pod.start(id).unwrap();
    }
    let seen = pod.exec("a", &["sh", "-c", "ps | busybox grep -c 'sleep 1000'"]).unwrap();
    assert!(String::from_utf8(seen.stdout).unwrap().trim().parse::<u32>().unwrap() >= 4);
    for signal in ["-INT", "-HUP", "-USR1"] {
        Command::new("kill").args([signal, &init.to_string()]).status().unwrap();
    }
    let rss = fs::read_to_string(format!("/proc/{init}/smaps_rollup")).unwrap();
    println!("init: {}", rss.lines().find(|line| line.starts_with("Pss:")).unwrap());
    let open = fs::read_dir(format!("/proc/{init}/fd")).unwrap().count();
    assert!(open <= 1, "the init has descriptors open beside the one it waits at");
    pod.kill("a", 9).unwrap();
    assert_eq!(pod.wait("a"), 137);
    // What it left in the shared namespace is dead, and reaped by the init.
    until("a is gone", || {
        let seen = pod.exec("b", &["ps"]).unwrap();
        let text = String::from_utf8(seen.stdout).unwrap();
        let sleeping = text.lines().filter(|line| line.contains("sleep 1000")).count();
        sleeping == 2 && !text.contains(" Z ")
    });
    assert!(alive(init));
    pod.stop().unwrap();
    assert!(!alive(init));
    assert_eq!(pod.exit_record("b").exit_code, 137);
}

#[test]
fn a_pod_without_containers_stops() {
    let pod = Pod::with(|request| request.shared_pid = true);
    pod.stop().unwrap();
    assert!(pod.cgroups().is_empty());
}

#[test]
fn memory_per_pod_is_printed() {
    let pod = Pod::new();
    pod.run("c", &["sleep", "1000"]);
    pod.exec("c", &["true"]).unwrap();
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.pid)).unwrap();
    for line in rollup.lines().filter(|l| l.starts_with("Pss:") || l.starts_with("Private")) {
        println!("{line}");
    }
}
