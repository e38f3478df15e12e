//! What the runtime says of itself.

use std::collections::HashMap;

use berth_proto::cri;
use serde_json::{Value, json};

use super::Front;
use super::code::Failure;

const NAME: &str = "berth";
const READY: &str = "RuntimeReady";
const NETWORK: &str = "NetworkReady";

/// The version of the CRI that is spoken.
const API: &str = "v1";
/// What kubelet has always sent and expected as the version of its own side.
const KUBE_API: &str = "0.1.0";

pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: KUBE_API.to_owned(),
        runtime_name: NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: API.to_owned(),
    }
}

pub(super) async fn status(
    front: &Front,
    request: &cri::StatusRequest,
) -> Result<cri::StatusResponse, Failure> {
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![condition(READY, None), network(front).await],
        }),
        info: if request.verbose { info(front) } else { HashMap::new() },
        runtime_handlers: vec![cri::RuntimeHandler {
            name: String::new(),
            features: Some(cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: front.roster.user_namespaces(),
            }),
        }],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: front.roster.user_namespaces(),
        }),
    })
}

/// True with empty words, or false with a reason for machines and a message for people.
fn condition(kind: &str, fault: Option<(&str, &str)>) -> cri::RuntimeCondition {
    let (reason, message) = fault.unwrap_or_default();
    cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status: fault.is_none(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

async fn network(front: &Front) -> cri::RuntimeCondition {
    match front.networks.status().await {
        Ok(()) => condition(NETWORK, None),
        Err(fault) => condition(NETWORK, Some((fault.reason, &fault.message))),
    }
}

/// For people and for critest, which looks for `stateDir`.
fn info(front: &Front) -> HashMap<String, String> {
    let mut config = json!(*front.config);
    if let Value::Object(map) = &mut config {
        map.insert("stateDir".to_owned(), json!(front.config.state));
    }
    HashMap::from([("config".to_owned(), config.to_string())])
}

/// Never changes while the daemon runs.
pub(super) fn runtime_config() -> cri::RuntimeConfigResponse {
    cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration {
            cgroup_driver: cri::CgroupDriver::Cgroupfs.into(),
        }),
    }
}

/// Takes note of the node's pod CIDR, which no part of Berth needs: addresses are the CNI
/// plugins' business.
pub(super) fn update_runtime_config(
    request: cri::UpdateRuntimeConfigRequest,
) -> cri::UpdateRuntimeConfigResponse {
    let config = request.runtime_config.and_then(|config| config.network_config);
    let pod_cidr = config.map(|config| config.pod_cidr).unwrap_or_default();
    tracing::info!(pod_cidr, "told the node's pod CIDR; the CNI configuration stays as it is");
    cri::UpdateRuntimeConfigResponse {}
}
