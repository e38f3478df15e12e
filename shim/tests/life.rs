//! A container's whole life, driven over the socket.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use berth_proto::shim::Phase;
use common::{Pod, alive, context, status, until};
use containerd_shim_protos::api;
use serde_json::json;
use ttrpc::Code;

#[test]
fn a_container_lives_from_create_to_delete() {
    let mut pod = Pod::new();
    let pid = pod.create("c", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert!(alive(pid));
    let state = |pod: &Pod| {
        let request = api::StateRequest { id: "c".into(), ..Default::default() };
        pod.task.state(context(), &request).unwrap()
    };
    assert_eq!(state(&pod).status.unwrap(), api::Status::CREATED);
    assert_eq!(state(&pod).pid, pid);
    assert_eq!(pod.inventory().containers[0].phase(), Phase::Created);
    assert_eq!(status(pod.delete("c")).0, Code::FAILED_PRECONDITION);

    assert_eq!(pod.start("c").unwrap(), pid);
    assert_eq!(pod.wait("c"), 7);
    let record = pod.exit_record("c");
    assert_eq!((record.exit_code, record.signal, record.oom_killed), (7, None, false));
    assert_eq!(state(&pod).status.unwrap(), api::Status::STOPPED);
    assert_eq!(state(&pod).exit_status, 7);
    let inventory = pod.inventory();
    assert_eq!(inventory.pod_id, pod.id);
    let container = &inventory.containers[0];
    assert_eq!((container.phase(), container.pid, container.exit_code), (Phase::Stopped, 0, 7));
    assert_eq!(container.exited_at, record.exited_at);

    let mut lines = pod.lines("c");
    lines.sort();
    assert_eq!(lines, [("stderr".into(), 'F', "err".into()), ("stdout".into(), 'F', "out".into())]);
    assert_eq!(pod.wait("c"), 7, "a wait after the end is answered at once");
    assert_eq!(status(pod.kill("c", 9)).0, Code::NOT_FOUND);
    assert_eq!(status(pod.start("c")).0, Code::FAILED_PRECONDITION);
    assert_eq!(pod.delete("c").unwrap(), 7);
    assert_eq!(status(pod.delete("c")).0, Code::NOT_FOUND);
    assert!(pod.inventory().containers.is_empty());

    pod.stop().unwrap();
    pod.stop().unwrap();
    pod.shutdown();
    assert!(!pod.dir.join("shim.sock").exists());
    assert_eq!(pod.exit_record("c").exit_code, 7);
}

#[test]
fn signals_end_a_container_as_shells_count() {
    let pod = Pod::new();
    for (id, signal) in [("a", 9_u32), ("b", 15)] {
        pod.run(id, &["sh", "-c", "trap - TERM; exec sleep 1000"]);
        if signal == 15 {
            // PID 1 of its namespace has no default action for SIGTERM: the shell's child does.
            continue;
        }
        pod.kill(id, signal).unwrap();
        assert_eq!(pod.wait(id), 128 + signal);
        assert_eq!(pod.exit_record(id).signal, Some(signal));
    }
    let request = api::KillRequest { id: "b".into(), signal: 9, all: true, ..Default::default() };
    pod.task.kill(context(), &request).unwrap();
    assert_eq!(pod.wait("b"), 137);
}

#[test]
fn an_id_is_taken_once() {
    let pod = Pod::new();
    pod.create("c", &["sleep", "1000"]);
    let again = pod.task.create(context(), &pod.order("c", &["true"]));
    assert_eq!(status(again).0, Code::ALREADY_EXISTS);
}

#[test]
fn a_program_that_cannot_be_executed_is_told_at_start() {
    let pod = Pod::new();
    pod.create("c", &["/no/such/program"]);
    let (code, message) = status(pod.start("c"));
    assert_eq!(code, Code::UNKNOWN);
    assert!(message.contains("/no/such/program"), "{message}");
    assert!(message.contains("no such file or directory"), "{message}");
    assert_eq!(pod.wait("c"), 128);
    assert_eq!(pod.exit_record("c").exit_code, 128);
    assert_eq!(pod.delete("c").unwrap(), 128);
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let pod = Pod::new();
    let order = pod.order_with("c", &["true"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": "/no/such/source",
            "options": ["rbind"]
        }));
    });
    let (_, message) = status(pod.task.create(context(), &order));
    assert!(message.contains("/no/such/source"), "{message}");
    assert!(pod.inventory().containers.is_empty());
    assert!(!pod.log("c").exists());
    assert!(pod.cgroups().is_empty(), "{:?}", pod.cgroups());
    // The id is free again.
    pod.run("c", &["true"]);
    assert_eq!(pod.wait("c"), 0);
}

#[test]
fn malformed_orders_name_the_field() {
    let pod = Pod::new();
    let refused = |change: &dyn Fn(&mut api::CreateTaskRequest)| {
        let mut order = pod.order("c", &["true"]);
        change(&mut order);
        status(pod.task.create(context(), &order))
    };
    type Change = fn(&mut api::CreateTaskRequest);
    let cases: [(Change, &str); 6] = [
        (|order| order.id = "../x".into(), "id \"../x\""),
        (|order| order.stdout = "fifo:///x".into(), "fifo:///x"),
        (|order| order.stdout = "crilog://relative".into(), "crilog://relative"),
        (|order| order.checkpoint = "/x".into(), "checkpoint"),
        (|order| order.bundle = "/no/such/bundle".into(), "/no/such/bundle/config.json"),
        (|order| order.rootfs[0].type_ = "zfs".into(), "zfs"),
    ];
    for (change, text) in cases {
        let (code, message) = refused(&change);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        assert!(message.contains(text), "{message}");
    }
    let file = pod.root.join("file");
    fs::write(&file, "").unwrap();
    let (_, message) =
        refused(&|order| order.stdout = format!("crilog://{}/x/0.log", file.display()));
    assert!(message.contains(&format!("{}/x/0.log", file.display())), "{message}");
    let link = pod.root.join("link");
    std::os::unix::fs::symlink("/etc/no-such-file", &link).unwrap();
    // Another id: a volatile overlay that was mounted once is not mounted again.
    let mut order = pod.order("d", &["true"]);
    order.stdout = format!("crilog://{}", link.display());
    let (_, message) = status(pod.task.create(context(), &order));
    assert!(message.contains(&link.display().to_string()), "{message}");
    assert!(pod.inventory().containers.is_empty());
    assert!(pod.cgroups().is_empty(), "{:?}", pod.cgroups());
}

#[test]
fn a_client_that_goes_away_changes_nothing() {
    use containerd_shim_protos::protobuf::Message;
    use std::io::Write;
    let pod = Pod::new();
    let mut request = ttrpc::Request::new();
    request.service = "containerd.task.v3.Task".into();
    request.method = "Create".into();
    request.payload = pod.order("c", &["sleep", "1000"]).write_to_bytes().unwrap();
    let payload = request.write_to_bytes().unwrap();
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(payload);
    let mut socket = std::os::unix::net::UnixStream::connect(pod.dir.join("shim.sock")).unwrap();
    socket.write_all(&frame).unwrap();
    drop(socket);
    until("the container is created", || {
        pod.inventory().containers.first().is_some_and(|found| found.phase() == Phase::Created)
    });
    pod.start("c").unwrap();
    pod.kill("c", 9).unwrap();
    assert_eq!(pod.wait("c"), 137);
}

#[test]
fn a_stop_ends_what_is_being_created() {
    let pod = Pod::new();
    let task = containerd_shim_protos::shim_sync::TaskClient::new(pod.connect());
    let order = pod.order("c", &["sleep", "1000"]);
    let create = std::thread::spawn(move || task.create(context(), &order));
    pod.stop().unwrap();
    // Whichever came first: it was refused, undone, or created and killed.
    let created = create.join().unwrap();
    let inventory = pod.inventory().containers;
    assert!(inventory.iter().all(|container| container.phase() == Phase::Stopped), "{inventory:?}");
    assert!(created.is_ok() || inventory.is_empty());
}

#[test]
fn many_waits_are_pending_at_once_and_all_answered() {
    let pod = Pod::new();
    pod.run("c", &["sleep", "1000"]);
    let clients: Vec<_> = (0..4).map(|_| pod.connect()).collect();
    let waiting: Vec<_> = (0..40)
        .map(|number| {
            let client = clients[number % clients.len()].clone();
            let task = containerd_shim_protos::shim_sync::TaskClient::new(client);
            std::thread::spawn(move || common::wait(&task, "c"))
        })
        .collect();
    // One of them goes away without its answer.
    let gone = pod.connect();
    let task = containerd_shim_protos::shim_sync::TaskClient::new(gone);
    let request = api::WaitRequest { id: "c".into(), ..Default::default() };
    let short = ttrpc::context::with_duration(Duration::from_millis(50));
    assert!(task.wait(short, &request).is_err());
    drop(task);
    pod.kill("c", 9).unwrap();
    for wait in waiting {
        assert_eq!(wait.join().unwrap(), 137);
    }
}

#[test]
fn what_a_container_leaves_dies_with_it() {
    // In the host's PID namespace nobody else would kill the rest.
    let pod = Pod::new();
    let order =
        pod.order_with("c", &["sh", "-c", "sleep 1000 & echo $!; sleep 1000 & exit 3"], |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    let start = Instant::now();
    assert_eq!(pod.wait("c"), 3);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let child: u32 = pod.lines("c")[0].2.parse().unwrap();
    until("the rest is dead", || !alive(child));
    // Orphans come to the shim, which reaps them.
    until("no zombie is left", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).unwrap();
        children.trim().is_empty()
    });
}

#[test]
fn a_container_that_wants_too_much_memory_is_oom_killed() {
    let pod = Pod::new();
    let argv = ["busybox", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"];
    let order = pod.order_with("c", &argv, |spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 20 << 20 } });
    });
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    assert_eq!(pod.wait("c"), 137);
    assert!(pod.exit_record("c").oom_killed);
    assert!(pod.inventory().containers[0].oom_killed);
}

#[test]
fn a_pod_stops_with_all_that_runs_in_it() {
    let pod = Pod::new();
    let first = pod.run("a", &["sleep", "1000"]);
    let second = pod.create("b", &["sleep", "1000"]);
    let exec = std::thread::spawn({
        let client = pod.connect();
        move || {
            let request = berth_proto::shim::ExecSyncRequest {
                container_id: "a".into(),
                argv: ["sh", "-c", "echo > /running; sleep 1000"].map(str::to_owned).to_vec(),
                ..Default::default()
            };
            common::call::<_, berth_proto::shim::ExecSyncResponse>(&client, "ExecSync", &request)
        }
    });
    until("the exec runs", || pod.exec("a", &["cat", "/running"]).unwrap().exit_code == 0);
    pod.stop().unwrap();
    assert!(!alive(first) && !alive(second));
    assert_eq!(pod.exit_record("a").exit_code, 137);
    assert_eq!(pod.exit_record("b").exit_code, 137);
    assert_eq!(exec.join().unwrap().unwrap().exit_code, 137);
    assert!(pod.cgroups().is_empty());
    let order = pod.order("c", &["true"]);
    assert_eq!(status(pod.task.create(context(), &order)).0, Code::FAILED_PRECONDITION);
    assert_eq!(status(pod.create_pod(|_| {})).0, Code::FAILED_PRECONDITION);
    assert_eq!(pod.delete("a").unwrap(), 137);
    assert_eq!(pod.delete("b").unwrap(), 137);
}

#[test]
fn a_terminal_logs_as_stdout_and_can_be_resized() {
    let pod = Pod::new();
    let order = pod.order_with(
        "c",
        &["sh", "-c", "sleep 0.2; test -t 0 && echo tty; echo err >&2"],
        |spec| {
            spec["process"]["terminal"] = json!(true);
        },
    );
    pod.task.create(context(), &order).unwrap();
    pod.start("c").unwrap();
    let request =
        api::ResizePtyRequest { id: "c".into(), width: 90, height: 30, ..Default::default() };
    pod.task.resize_pty(context(), &request).unwrap();
    assert_eq!(pod.wait("c"), 0);
    assert_eq!(
        pod.lines("c"),
        [("stdout".into(), 'F', "tty".into()), ("stdout".into(), 'F', "err".into())]
    );
}

#[test]
fn a_killed_shim_leaves_what_the_delete_verb_ends() {
    let mut pod = Pod::with(|request| request.shared_pid = true);
    let first = pod.run("a", &["sleep", "1000"]);
    let second = pod.create("b", &["sleep", "1000"]);
    std::process::Command::new("kill").args(["-9", &pod.pid.to_string()]).status().unwrap();
    until("the shim is dead", || !alive(pod.pid));
    pod.gone = true;
    assert!(alive(first), "a container outlives its shim until it is killed");
    let delete = |bundle: &std::path::Path| {
        let output = std::process::Command::new(common::shim())
            .args(["-namespace", "k8s.io", "-id", "x", "-bundle"])
            .arg(bundle)
            .arg("delete")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        use containerd_shim_protos::protobuf::Message;
        api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    };
    let answer = delete(&pod.bundle("a"));
    assert_eq!(answer.exit_status, 137);
    assert!(answer.exited_at.seconds > 1_700_000_000);
    until("the container is dead", || !alive(first));
    delete(&pod.dir);
    until("the other is dead", || !alive(second));
    delete(&pod.dir);
}

#[test]
fn nothing_piles_up() {
    let pod = Pod::new();
    let cycle = |id: &str| {
        pod.run(id, &["sh", "-c", "echo x; sleep 1000"]);
        assert_eq!(pod.exec(id, &["true"]).unwrap().exit_code, 0);
        assert!(pod.exec_for(id, &["sleep", "1000"], 20).unwrap().timed_out);
        pod.kill(id, 9).unwrap();
        assert_eq!(pod.wait(id), 137);
        assert_eq!(pod.delete(id).unwrap(), 137);
        let failed = pod.order_with(&format!("{id}f"), &["true"], |spec| {
            spec["process"]["cwd"] = json!("relative");
        });
        assert!(pod.task.create(context(), &failed).is_err());
    };
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", pod.pid)).unwrap().count();
    cycle("first");
    let before = descriptors();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cycle = &cycle;
            scope.spawn(move || (0..8).for_each(|round| cycle(&format!("c{thread}-{round}"))));
        }
    });
    assert_eq!(descriptors(), before);
    let task = format!("/proc/{}/task", pod.pid);
    assert_eq!(fs::read_dir(&task).unwrap().count(), 1, "the shim has one thread");
    let children = fs::read_to_string(format!("{task}/{}/children", pod.pid)).unwrap();
    assert_eq!(children, "");
    assert!(pod.cgroups().is_empty());
}
