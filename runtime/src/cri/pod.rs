//! The RPCs of a pod sandbox.

use std::collections::HashMap;

use berth_proto::cri;
use serde_json::json;

use super::code::Failure;
use super::{Front, filter, parse, render};
use crate::pod::PodSnapshot;

const ID: &str = "pod_sandbox_id";

/// What the log calls a sandbox that has no id yet.
pub(super) fn name(request: &cri::RunPodSandboxRequest) -> String {
    let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
    metadata.map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default()
}

pub(super) async fn run(
    front: &Front,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Failure> {
    let spec = parse::pod(&request)?;
    drop(request);
    let id = front.roster.run_pod(spec).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

pub(super) async fn stop(
    front: &Front,
    request: &cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Failure> {
    front.roster.stop_pod(parse::id(ID, &request.pod_sandbox_id)?).await?;
    Ok(cri::StopPodSandboxResponse {})
}

pub(super) async fn remove(
    front: &Front,
    request: &cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Failure> {
    front.roster.remove_pod(parse::id(ID, &request.pod_sandbox_id)?).await?;
    Ok(cri::RemovePodSandboxResponse {})
}

/// `containers_statuses` and `timestamp` stay unset: kubelet takes a timestamp as the promise
/// that they are filled (kubernetes#129818).
pub(super) fn status(
    front: &Front,
    request: &cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Failure> {
    let pod = front.roster.pod_status(parse::id(ID, &request.pod_sandbox_id)?)?;
    Ok(cri::PodSandboxStatusResponse {
        status: Some(render::pod_status(&pod)),
        info: if request.verbose { info(&pod) } else { HashMap::new() },
        ..Default::default()
    })
}

pub(super) fn list(
    front: &Front,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Failure> {
    let filter = filter::Pods::parse(request.filter)?;
    let pods = front.roster.list_pods();
    let items = pods.iter().filter(|pod| filter.takes(pod)).map(|pod| render::pod(pod)).collect();
    Ok(cri::ListPodSandboxResponse { items })
}

/// For people. There is no `pid`: no process of the pod's own need exist.
fn info(pod: &PodSnapshot) -> HashMap<String, String> {
    let value = json!({
        "sandboxID": pod.id,
        "shimPid": pod.shim_pid,
        "netns": pod.netns,
        "runtimeHandler": pod.spec.runtime_handler,
        "leftovers": pod.leftovers,
        "spec": *pod.spec,
    });
    HashMap::from([("info".to_owned(), value.to_string())])
}
