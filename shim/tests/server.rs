//! The ttrpc server against an independent client, and against hostile bytes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::{Pod, context, status, until};
use containerd_shim_protos::api;
use ttrpc::Code;

fn raw(pod: &Pod) -> UnixStream {
    UnixStream::connect(pod.dir.join("shim.sock")).unwrap()
}

/// Code of the next response on a raw connection, and its stream.
fn answer(socket: &mut UnixStream) -> (u32, i32) {
    use prost::Message;
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Response {
        #[prost(message, optional, tag = "1")]
        status: Option<Status>,
    }
    let mut head = [0; 10];
    socket.read_exact(&mut head).unwrap();
    assert_eq!(head[8], 2, "not a response");
    let length = u32::from_be_bytes(head[..4].try_into().unwrap());
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body).unwrap();
    let stream = u32::from_be_bytes(head[4..8].try_into().unwrap());
    (stream, Response::decode(&body[..]).unwrap().status.unwrap().code)
}

#[test]
fn the_socket_is_private_and_start_is_idempotent() {
    let pod = Pod::bare();
    let mode = std::fs::metadata(pod.dir.join("shim.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = common::start(&pod.dir, &pod.id);
    assert_eq!(again, format!("unix://{}", pod.dir.join("shim.sock").display()));
    let pid: u32 = std::fs::read_to_string(pod.dir.join("shim.pid")).unwrap().parse().unwrap();
    assert_eq!(pid, pod.pid);
}

#[test]
fn a_dead_shims_socket_is_replaced() {
    let mut pod = Pod::bare();
    Command::new("kill").args(["-9", &pod.pid.to_string()]).status().unwrap();
    until("the shim is dead", || !common::alive(pod.pid));
    let address = common::start(&pod.dir, &pod.id);
    pod.pid = std::fs::read_to_string(pod.dir.join("shim.pid")).unwrap().parse().unwrap();
    pod.client = ttrpc::Client::connect(&address).unwrap();
    pod.task = containerd_shim_protos::shim_sync::TaskClient::new(pod.client.clone());
    assert_eq!(pod.inventory().pod_id, "");
}

#[test]
fn a_shim_outlives_the_signals_that_end_others() {
    let pod = Pod::bare();
    for signal in ["-TERM", "-INT", "-HUP", "-QUIT", "-PIPE"] {
        Command::new("kill").args([signal, &pod.pid.to_string()]).status().unwrap();
    }
    assert_eq!(pod.inventory().pod_id, "");
    until("the signal is said", || pod.shim_log().contains("signal 15 is ignored"));
}

#[test]
fn what_is_unknown_is_unimplemented() {
    let pod = Pod::bare();
    let call = |service: &str, method: &str| {
        let mut request = ttrpc::Request::new();
        request.service = service.into();
        request.method = method.into();
        status(pod.client.request(request)).0
    };
    assert_eq!(call("no.such.Service", "Create"), Code::UNIMPLEMENTED);
    assert_eq!(call("containerd.task.v3.Task", "NoSuchMethod"), Code::UNIMPLEMENTED);
    assert_eq!(call("berth.shim.v1.Pod", "NoSuchMethod"), Code::UNIMPLEMENTED);
    assert_eq!(call("containerd.task.v2.Task", "State"), Code::NOT_FOUND);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let pod = Pod::new();
    assert_eq!(status(pod.start("x")).0, Code::NOT_FOUND);
    assert_eq!(status(pod.kill("x", 9)).0, Code::NOT_FOUND);
    assert_eq!(status(pod.delete("x")).0, Code::NOT_FOUND);
    assert_eq!(status(pod.exec("x", &["true"])).0, Code::NOT_FOUND);
    let request = api::WaitRequest { id: "x".into(), ..Default::default() };
    assert_eq!(status(pod.task.wait(context(), &request)).0, Code::NOT_FOUND);
}

#[test]
fn hostile_bytes_harm_nobody() {
    let pod = Pod::bare();
    // Noise, with the length field small so that it is taken for frames.
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..50 {
        let mut noise = Vec::new();
        for _ in 0..200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.push(state.to_le_bytes()[0]);
        }
        noise[..2].fill(0);
        raw(&pod).write_all(&noise).unwrap();
    }
    // A request that says it is longer than allowed, sent in full, then a good one.
    let mut socket = raw(&pod);
    let length = (4 << 20) + 1_u32;
    let mut head = length.to_be_bytes().to_vec();
    head.extend([0, 0, 0, 1, 1, 0]);
    socket.write_all(&head).unwrap();
    socket.write_all(&vec![0; length as usize]).unwrap();
    assert_eq!(answer(&mut socket), (1, 8));
    // An empty request names no service; a broken one is no message.
    socket.write_all(&[0, 0, 0, 0, 0, 0, 0, 3, 1, 0]).unwrap();
    assert_eq!(answer(&mut socket), (3, 12));
    socket.write_all(&[0, 0, 0, 2, 0, 0, 0, 5, 1, 0, 0xff, 0xff]).unwrap();
    assert_eq!(answer(&mut socket), (5, 3));
    // A stream frame.
    socket.write_all(&[0, 0, 0, 0, 0, 0, 0, 7, 3, 0]).unwrap();
    assert_eq!(answer(&mut socket), (7, 12));
    assert_eq!(pod.inventory().pod_id, "");
}

#[test]
fn a_client_that_reads_nothing_blocks_nobody() {
    let pod = Pod::bare();
    let mut socket = raw(&pod);
    socket.set_nonblocking(true).unwrap();
    // Requests whose answers are never read, until neither side takes more.
    let request = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0].repeat(400);
    let mut sent = 0;
    for _ in 0..200 {
        sent += socket.write(&request).unwrap_or(0);
    }
    assert!(sent > 0);
    assert_eq!(pod.inventory().pod_id, "");
    drop(socket);
    assert_eq!(pod.inventory().pod_id, "");
}

#[test]
fn pipelined_requests_are_all_answered() {
    let pod = Pod::bare();
    let mut socket = raw(&pod);
    let mut bytes = Vec::new();
    for stream in 0..1000_u32 {
        bytes.extend([0, 0, 0, 0]);
        bytes.extend((2 * stream + 1).to_be_bytes());
        bytes.extend([1, 0]);
    }
    let mut writer = socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for stream in 0..1000 {
        assert_eq!(answer(&mut socket), (2 * stream + 1, 12));
    }
    sender.join().unwrap();
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let run =
        |args: &[&str]| Command::new(common::shim()).args(args).current_dir("/").output().unwrap();
    let output = run(&["-v"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("containerd-shim-berth-v1 0."));
    let output = run(&["-id", "x", "stop"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("unknown verb \"stop\""));
}
