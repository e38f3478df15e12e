//! containerd's Task service, as far as a pod needs it.

use std::path::PathBuf;

use berth_container::Rootfs;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};

use super::{Answer, Reply, bytes, parse, unimplemented};
use crate::container::{CreateOrder, Phase, Streams};
use crate::shim::{Shim, status_of};
use crate::ttrpc::{ReplyTo, Status};

pub(super) fn dispatch(shim: &mut Shim, to: ReplyTo, method: &str, payload: &[u8]) -> Answer {
    match method {
        "Create" => create(shim, to, payload),
        "Start" => start(shim, to, payload),
        "State" => state(shim, payload),
        "Kill" => kill(shim, payload),
        "Wait" => wait(shim, to, payload),
        "Delete" => delete(shim, to, payload),
        "Pids" => pids(shim, payload),
        "Connect" => connect(shim, payload),
        "Update" => update(shim, payload),
        "ResizePty" => resize_pty(shim, payload),
        "CloseIO" => close_io(shim, payload),
        "Shutdown" => shutdown(shim),
        // Exec comes with streaming, Pause, Resume, Checkpoint and Stats later.
        _ => Err(unimplemented("containerd.task.v3.Task", method)),
    }
}

pub(super) fn encode(reply: Reply) -> Result<Vec<u8>, Status> {
    match reply {
        Reply::Created { pid } => bytes(&api::CreateTaskResponse { pid, ..Default::default() }),
        Reply::Started { pid } => bytes(&api::StartResponse { pid, ..Default::default() }),
        Reply::Waited(exit) => bytes(&api::WaitResponse {
            exit_status: exit.code,
            exited_at: timestamp(exit.at),
            ..Default::default()
        }),
        Reply::Deleted { pid, exit } => bytes(&api::DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: timestamp(exit.at),
            ..Default::default()
        }),
        _ => Err(Status::internal("an answer of another service")),
    }
}

fn create(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: api::CreateTaskRequest = parse(payload)?;
    check_id("id", &request.id)?;
    if !request.checkpoint.is_empty() {
        return Err(Status::invalid("checkpoint: restore is not supported"));
    }
    let rootfs = match request.rootfs.as_slice() {
        [] => None,
        [mount] => Some(
            Rootfs::from_mount(&mount.type_, &mount.source, &mount.options)
                .map_err(|error| status_of("create", &error))?,
        ),
        more => {
            return Err(Status::invalid(format!("rootfs: {} mounts, not one", more.len())));
        }
    };
    let streams = Streams {
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let bundle = PathBuf::from(request.bundle);
    shim.create(to, CreateOrder { id: request.id, bundle, rootfs, streams })?;
    Ok(None)
}

fn start(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: api::StartRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    shim.start(to, &request.id)?;
    Ok(None)
}

fn state(shim: &Shim, payload: &[u8]) -> Answer {
    let request: api::StateRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    let container = shim.container(&request.id)?;
    let status = match container.phase {
        Phase::Creating => api::Status::UNKNOWN,
        Phase::Created | Phase::Starting => api::Status::CREATED,
        Phase::Running => api::Status::RUNNING,
        Phase::Ended | Phase::Stopped => api::Status::STOPPED,
    };
    let streams = &container.streams;
    encoded(&api::StateResponse {
        id: container.id.clone(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid: container.engine.pid(),
        status: EnumOrUnknown::new(status),
        stdin: streams.stdin.clone(),
        stdout: streams.stdout.clone(),
        stderr: streams.stderr.clone(),
        terminal: streams.terminal,
        exit_status: container.exit.map_or(0, |exit| exit.code),
        exited_at: container.exit.map_or_else(MessageField::none, |exit| timestamp(exit.at)),
        ..Default::default()
    })
}

fn kill(shim: &mut Shim, payload: &[u8]) -> Answer {
    let request: api::KillRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    let signal = i32::try_from(request.signal)
        .ok()
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| Status::invalid(format!("signal {}: not 1 to 64", request.signal)))?;
    shim.kill(&request.id, signal, request.all)?;
    empty()
}

fn wait(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: api::WaitRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    Ok(shim.wait(to, &request.id)?.map(Reply::Waited))
}

fn delete(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: api::DeleteRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    shim.delete(to, &request.id)?;
    Ok(None)
}

fn pids(shim: &Shim, payload: &[u8]) -> Answer {
    let request: api::PidsRequest = parse(payload)?;
    let container = shim.container(&request.id)?;
    let pids = container.engine.cgroup().pids().map_err(|error| status_of("pids", &error))?;
    let process = |pid| api::ProcessInfo { pid, ..Default::default() };
    let processes = pids.into_iter().map(process).collect();
    encoded(&api::PidsResponse { processes, ..Default::default() })
}

fn connect(shim: &Shim, payload: &[u8]) -> Answer {
    let request: api::ConnectRequest = parse(payload)?;
    let task_pid = shim.container(&request.id).map_or(0, |container| container.engine.pid());
    encoded(&api::ConnectResponse {
        shim_pid: std::process::id(),
        task_pid,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    })
}

fn update(shim: &Shim, payload: &[u8]) -> Answer {
    let request: api::UpdateTaskRequest = parse(payload)?;
    let container = shim.container(&request.id)?;
    if container.exit.is_some() {
        return Err(Status::precondition(format!("update: container {:?} is stopped", request.id)));
    }
    // containerd packs the OCI resources as JSON.
    let resources = serde_json::from_slice(&request.resources.value)
        .map_err(|error| Status::invalid(format!("resources: {error}")))?;
    let updated = container.engine.cgroup().update(&resources);
    for warning in updated.map_err(|error| status_of("update", &error))? {
        crate::log::say(format_args!("container {}: {warning}", container.id));
    }
    empty()
}

fn resize_pty(shim: &Shim, payload: &[u8]) -> Answer {
    let request: api::ResizePtyRequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    let size = |value: u32| {
        u16::try_from(value).map_err(|_| Status::invalid(format!("size {value}: too large")))
    };
    shim.resize_terminal(&request.id, size(request.width)?, size(request.height)?)?;
    empty()
}

fn close_io(shim: &mut Shim, payload: &[u8]) -> Answer {
    let request: api::CloseIORequest = parse(payload)?;
    refuse_exec(&request.exec_id)?;
    if request.stdin {
        shim.close_stdin(&request.id)?;
    }
    empty()
}

/// Ends the shim if nothing is left to serve. Otherwise it stays, as containerd's shims do.
fn shutdown(shim: &mut Shim) -> Answer {
    let busy = shim.containers.values().any(|container| !container.is_settled());
    shim.ending = shim.pod.is_gone() && !busy;
    empty()
}

fn check_id(field: &str, id: &str) -> Result<(), Status> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(Status::invalid(format!("{field} {id:?}: 1 to 128 letters, digits, - _ .")));
    }
    Ok(())
}

/// Execs of this service come with streaming.
fn refuse_exec(exec_id: &str) -> Result<(), Status> {
    if exec_id.is_empty() {
        return Ok(());
    }
    Err(Status::not_found(format!("exec {exec_id:?} not found")))
}

fn timestamp(nanos: i64) -> MessageField<Timestamp> {
    let mut time = Timestamp::new();
    time.seconds = nanos.div_euclid(1_000_000_000);
    time.nanos = i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default();
    MessageField::some(time)
}

fn empty() -> Answer {
    Ok(Some(Reply::Encoded(Vec::new())))
}

fn encoded<M: containerd_shim_protos::protobuf::Message>(message: &M) -> Answer {
    Ok(Some(Reply::Encoded(bytes(message)?)))
}
