//! Our own service: what containerd's Task service lacks.

use std::path::PathBuf;
use std::time::Duration;

use berth_container::{IdMaps, IdRange};
use berth_proto::shim as proto;
use prost::Message;

use super::{Answer, Reply, unimplemented};
use crate::container::{Container, Phase};
use crate::exec::ExecOrder;
use crate::leash::{Ending, StreamKind, Wanted};
use crate::pod::PodOrder;
use crate::shim::Shim;
use crate::ttrpc::{ReplyTo, Status};

pub(super) fn dispatch(shim: &mut Shim, to: ReplyTo, method: &str, payload: &[u8]) -> Answer {
    match method {
        "CreatePod" => create_pod(shim, payload),
        "StopPod" => Ok(shim.stop_pod(to)),
        "Inventory" => Ok(Some(inventory(shim))),
        "ExecSync" => exec_sync(shim, to, payload),
        "CancelExec" => cancel_exec(shim, to, payload),
        "Exec" => exec(shim, to, payload),
        "Attach" => attach(shim, to, payload),
        "WaitStreams" => shim.wait_streams(to).map(|ended| ended.map(Reply::StreamsEnded)),
        "ReadOutput" => read_output(shim, payload),
        "ReopenLog" => reopen_log(shim, payload),
        _ => Err(unimplemented(proto::SERVICE, method)),
    }
}

pub(super) fn encode(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::PodCreated { shim_pid, init_pid } => {
            proto::CreatePodResponse { shim_pid, init_pid }.encode_to_vec()
        }
        Reply::Executed(outcome) => proto::ExecSyncResponse {
            stdout: outcome.stdout,
            stderr: outcome.stderr,
            exit_code: i32::try_from(outcome.exit_code).unwrap_or(255),
            timed_out: outcome.timed_out,
            rest_id: outcome.rest_id,
        }
        .encode_to_vec(),
        Reply::Output { stdout, stderr, last } => {
            proto::ReadOutputResponse { stdout, stderr, last }.encode_to_vec()
        }
        Reply::Opened(streams) => {
            let streams = streams.into_iter().map(|kind| stream_kind(kind).into()).collect();
            // AttachResponse is the same.
            proto::ExecResponse { streams }.encode_to_vec()
        }
        Reply::StreamsEnded(Ending { exit_code, dropped }) => {
            proto::WaitStreamsResponse { exit_code, dropped }.encode_to_vec()
        }
        // StopPod's answer is empty.
        _ => Vec::new(),
    }
}

fn create_pod(shim: &mut Shim, payload: &[u8]) -> Answer {
    let request: proto::CreatePodRequest = parse(payload)?;
    if request.pod_id.is_empty() {
        return Err(Status::invalid("pod_id: empty"));
    }
    let cgroup_parent = PathBuf::from(request.cgroup_parent);
    if !cgroup_parent.is_absolute() {
        return Err(Status::invalid(format!("cgroup_parent {cgroup_parent:?}: not absolute")));
    }
    let netns_path = (!request.netns_path.is_empty()).then(|| PathBuf::from(request.netns_path));
    if let Some(path) = netns_path.as_ref().filter(|path| !path.is_absolute()) {
        return Err(Status::invalid(format!("netns_path {path:?}: not absolute")));
    }
    shim.create_pod(PodOrder {
        pod_id: request.pod_id,
        netns_path,
        hostname: request.hostname,
        host_ipc: request.host_ipc,
        host_uts: request.host_uts,
        shared_pid: request.shared_pid,
        sysctls: request.sysctls.into_iter().collect(),
        shm_size: request.shm_size,
        cgroup_parent,
        user: id_maps(&request.uid_mappings, &request.gid_mappings),
    })
    .map(Some)
}

/// What the pod's user namespace maps; the engine judges it.
fn id_maps(uids: &[proto::IdRange], gids: &[proto::IdRange]) -> Option<IdMaps> {
    if uids.is_empty() && gids.is_empty() {
        return None;
    }
    let range = |range: &proto::IdRange| IdRange {
        container: range.container_id,
        host: range.host_id,
        length: range.length,
    };
    Some(IdMaps { uids: uids.iter().map(range).collect(), gids: gids.iter().map(range).collect() })
}

fn inventory(shim: &Shim) -> Reply {
    let containers = shim.containers.values().map(container_state).collect();
    let pod_id = shim.pod.id().to_owned();
    Reply::Encoded(proto::InventoryResponse { pod_id, containers }.encode_to_vec())
}

fn container_state(container: &Container) -> proto::ContainerState {
    let phase = match container.phase {
        Phase::Creating => proto::Phase::Unknown,
        Phase::Created | Phase::Starting => proto::Phase::Created,
        Phase::Running => proto::Phase::Running,
        Phase::Ended | Phase::Stopped => proto::Phase::Stopped,
    };
    let exit = container.exit;
    proto::ContainerState {
        id: container.id.clone(),
        phase: phase.into(),
        pid: container.pid(),
        exit_code: exit.map_or(0, |exit| exit.code),
        exited_at: exit.map_or(0, |exit| exit.at),
        oom_killed: exit.is_some_and(|exit| exit.oom_killed),
        log_bytes_lost: container.log_bytes_lost(),
    }
}

fn exec_sync(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: proto::ExecSyncRequest = parse(payload)?;
    shim.exec_sync(
        to,
        ExecOrder {
            container_id: request.container_id,
            argv: request.argv,
            timeout: (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms)),
            max_output: usize::try_from(request.max_output).unwrap_or(usize::MAX),
            key: request.key,
        },
    )?;
    Ok(None)
}

fn cancel_exec(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: proto::CancelExecRequest = parse(payload)?;
    shim.cancel_exec(to, request.key);
    Ok(Some(Reply::Encoded(Vec::new())))
}

fn exec(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: proto::ExecRequest = parse(payload)?;
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    shim.exec_open(to, &request.container_id, request.argv, wanted)?;
    Ok(None)
}

fn attach(shim: &mut Shim, to: ReplyTo, payload: &[u8]) -> Answer {
    let request: proto::AttachRequest = parse(payload)?;
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: false,
    };
    shim.attach(to, &request.container_id, wanted)?;
    Ok(None)
}

fn stream_kind(kind: StreamKind) -> proto::StreamKind {
    match kind {
        StreamKind::Stdin => proto::StreamKind::Stdin,
        StreamKind::Stdout => proto::StreamKind::Stdout,
        StreamKind::Stderr => proto::StreamKind::Stderr,
        StreamKind::Terminal => proto::StreamKind::Terminal,
    }
}

fn read_output(shim: &mut Shim, payload: &[u8]) -> Answer {
    let request: proto::ReadOutputRequest = parse(payload)?;
    shim.read_output(request.rest_id).map(Some)
}

fn reopen_log(shim: &mut Shim, payload: &[u8]) -> Answer {
    let request: proto::ReopenLogRequest = parse(payload)?;
    shim.reopen_log(&request.container_id)?;
    Ok(Some(Reply::Encoded(Vec::new())))
}

fn parse<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| Status::invalid(format!("malformed request: {error}")))
}
