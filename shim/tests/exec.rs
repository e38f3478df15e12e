//! ExecSync: output, time limits, what commands leave behind.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use berth_proto::shim as pb;
use common::{Pod, context, status, until};
use containerd_shim_protos::api;
use ttrpc::Code;

fn pod() -> Pod {
    let pod = Pod::new();
    pod.run("c", &["sleep", "1000"]);
    pod
}

fn processes(pod: &Pod) -> usize {
    let request = api::PidsRequest { id: "c".into(), ..Default::default() };
    pod.task.pids(context(), &request).unwrap().processes.len()
}

#[test]
fn output_and_exit_code_come_back() {
    let pod = pod();
    let answer = pod.exec("c", &["sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap();
    assert_eq!(answer.stdout, b"out\n");
    assert_eq!(answer.stderr, b"err\n");
    assert_eq!((answer.exit_code, answer.timed_out), (3, false));
    assert_eq!(pod.exec("c", &["sh", "-c", "kill -9 $$"]).unwrap().exit_code, 137);
    assert_eq!(pod.exec("c", &["hostname"]).unwrap().stdout, b"berth-test\n");
    assert_eq!(processes(&pod), 1);
    assert!(!pod.log("c").exists() || pod.lines("c").is_empty(), "an exec is no log");
}

#[test]
fn a_time_limit_kills_the_whole_tree() {
    let pod = pod();
    let start = Instant::now();
    let answer = pod
        .exec_for("c", &["sh", "-c", "echo begun; sleep 1000 & (sleep 1000 &) ; sleep 1000"], 300)
        .unwrap();
    assert!(answer.timed_out);
    assert_eq!(answer.stdout, b"begun\n");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    until("the tree is dead", || processes(&pod) == 1);
}

#[test]
fn a_child_that_keeps_the_pipe_does_not_hold_the_answer() {
    let pod = pod();
    let start = Instant::now();
    let answer = pod.exec("c", &["sh", "-c", "sleep 1000 & echo done"]).unwrap();
    assert_eq!((answer.exit_code, &answer.stdout[..]), (0, &b"done\n"[..]));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(processes(&pod), 2, "what a command leaves behind is the container's");
}

#[test]
fn surplus_output_is_dropped_while_the_command_goes_on() {
    let pod = pod();
    let request = pb::ExecSyncRequest {
        container_id: "c".into(),
        argv: [
            "sh",
            "-c",
            "yes | busybox head -c 3000000; yes e | busybox head -c 3000000 >&2; exit 4",
        ]
        .map(str::to_owned)
        .to_vec(),
        timeout_ms: 10_000,
        max_output: 1000,
        key: 0,
    };
    let answer: pb::ExecSyncResponse = pod.call("ExecSync", &request).unwrap();
    assert_eq!((answer.stdout.len(), answer.stderr.len(), answer.exit_code), (1000, 1000, 4));
}

#[test]
fn output_longer_than_a_message_comes_in_parts() {
    let pod = pod();
    let argv = ["sh", "-c", "yes | busybox head -c 7000000; yes e | busybox head -c 5000000 >&2"];
    let mut answer = pod.exec("c", &argv).unwrap();
    assert_ne!(answer.rest_id, 0);
    loop {
        let request = pb::ReadOutputRequest { rest_id: answer.rest_id };
        let part: pb::ReadOutputResponse = pod.call("ReadOutput", &request).unwrap();
        answer.stdout.extend(part.stdout);
        answer.stderr.extend(part.stderr);
        if part.last {
            break;
        }
    }
    assert!(answer.stdout == b"y\n".repeat(3_500_000));
    assert!(answer.stderr == b"e\n".repeat(2_500_000));
    let request = pb::ReadOutputRequest { rest_id: answer.rest_id };
    let again: ttrpc::Result<pb::ReadOutputResponse> = pod.call("ReadOutput", &request);
    assert_eq!(status(again).0, Code::NOT_FOUND);
}

#[test]
fn a_command_that_is_not_there_is_an_error() {
    let pod = pod();
    let (code, message) = status(pod.exec("c", &["/no/such/program"]));
    assert_eq!(code, Code::UNKNOWN);
    assert!(message.starts_with("exec failed"), "{message}");
    assert!(message.contains("/no/such/program"), "{message}");
    assert!(message.contains("no such file or directory"), "{message}");
    let (_, message) = status(pod.exec("c", &["nosuchprogram"]));
    assert!(message.contains("nosuchprogram"), "{message}");
    assert_eq!(status(pod.exec("c", &[])).0, Code::INVALID_ARGUMENT);
    assert_eq!(processes(&pod), 1);
}

#[test]
fn only_a_running_container_executes() {
    let pod = Pod::new();
    pod.create("c", &["true"]);
    assert_eq!(status(pod.exec("c", &["true"])).0, Code::FAILED_PRECONDITION);
    pod.start("c").unwrap();
    pod.wait("c");
    assert_eq!(status(pod.exec("c", &["true"])).0, Code::FAILED_PRECONDITION);
}

#[test]
fn an_exec_ends_with_its_container() {
    let pod = pod();
    let exec = std::thread::spawn({
        let client = pod.connect();
        move || {
            let request = pb::ExecSyncRequest {
                container_id: "c".into(),
                argv: ["sh", "-c", "echo > /running; sleep 1000"].map(str::to_owned).to_vec(),
                ..Default::default()
            };
            common::call::<_, pb::ExecSyncResponse>(&client, "ExecSync", &request).unwrap()
        }
    });
    until("the exec runs", || pod.exec("c", &["cat", "/running"]).unwrap().exit_code == 0);
    pod.kill("c", 9).unwrap();
    assert_eq!(exec.join().unwrap().exit_code, 137);
    assert_eq!(pod.wait("c"), 137);
}

#[test]
fn many_execs_at_once_leave_no_zombie() {
    let pod = pod();
    let threads: Vec<_> = (0..16)
        .map(|number| {
            let client = pod.connect();
            std::thread::spawn(move || {
                for round in 0..5 {
                    let request = pb::ExecSyncRequest {
                        container_id: "c".into(),
                        argv: ["sh", "-c", &format!("echo {number}.{round}; exit {number}")]
                            .map(str::to_owned)
                            .to_vec(),
                        timeout_ms: 10_000,
                        max_output: 0,
                        key: 0,
                    };
                    let answer: pb::ExecSyncResponse =
                        common::call(&client, "ExecSync", &request).unwrap();
                    assert_eq!(answer.stdout, format!("{number}.{round}\n").into_bytes());
                    assert_eq!(answer.exit_code, number);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "only the container is left: {children}");
}
