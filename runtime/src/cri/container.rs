//! The RPCs of a container.

use std::collections::HashMap;
use std::time::Duration;

use berth_proto::cri;
use berth_proto::paths::StatePaths;
use serde_json::{Value, json};

use super::code::Failure;
use super::{Front, filter, parse, render};
use crate::pod::ContainerSnapshot;

const ID: &str = "container_id";

/// What the log calls a container that has no id yet.
pub(super) fn name(request: &cri::CreateContainerRequest) -> String {
    let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
    let name = metadata.map(|m| m.name.as_str()).unwrap_or_default();
    format!("{}/{name}", request.pod_sandbox_id)
}

pub(super) async fn create(
    front: &Front,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Failure> {
    let pod = parse::id("pod_sandbox_id", &request.pod_sandbox_id)?;
    let spec = parse::container(&request)?;
    let id = front.roster.create_container(pod, spec).await?;
    Ok(cri::CreateContainerResponse { container_id: id.to_string() })
}

pub(super) async fn start(
    front: &Front,
    request: &cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Failure> {
    front.roster.start_container(parse::id(ID, &request.container_id)?).await?;
    Ok(cri::StartContainerResponse {})
}

pub(super) async fn stop(
    front: &Front,
    request: &cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Failure> {
    let id = parse::id(ID, &request.container_id)?;
    let grace = Duration::from_secs(parse::seconds("timeout", request.timeout)?);
    front.roster.stop_container(id, grace).await?;
    Ok(cri::StopContainerResponse {})
}

pub(super) async fn remove(
    front: &Front,
    request: &cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Failure> {
    front.roster.remove_container(parse::id(ID, &request.container_id)?).await?;
    Ok(cri::RemoveContainerResponse {})
}

pub(super) fn list(
    front: &Front,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Failure> {
    let filter = filter::Containers::parse(request.filter)?;
    let all = front.roster.list_containers();
    let containers = all.iter().filter(|one| filter.takes(one)).map(|one| render::container(one));
    Ok(cri::ListContainersResponse { containers: containers.collect() })
}

pub(super) async fn status(
    front: &Front,
    request: &cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Failure> {
    let container = front.roster.container_status(parse::id(ID, &request.container_id)?)?;
    Ok(cri::ContainerStatusResponse {
        status: Some(render::container_status(&container)),
        info: if request.verbose { info(front, &container).await } else { HashMap::new() },
    })
}

pub(super) async fn reopen_log(
    front: &Front,
    request: &cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Failure> {
    front.roster.reopen_log(parse::id(ID, &request.container_id)?).await?;
    Ok(cri::ReopenContainerLogResponse {})
}

/// What `crictl inspect` shows beside the status, under the names that containerd gave it.
async fn info(front: &Front, container: &ContainerSnapshot) -> HashMap<String, String> {
    let value = json!({
        "sandboxID": container.pod,
        "pid": container.pid.unwrap_or(0),
        "logBytesLost": container.log_bytes_lost,
        "runtimeSpec": runtime_spec(front, container).await,
    });
    HashMap::from([("info".to_owned(), value.to_string())])
}

/// The OCI spec from the container's bundle; null where it is gone (after a reboot).
async fn runtime_spec(front: &Front, container: &ContainerSnapshot) -> Value {
    let paths = StatePaths::new(&front.config.state);
    let file = paths.pod(&container.pod).bundle(&container.id).join("config.json");
    let text = tokio::fs::read(&file).await.unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or(Value::Null)
}
