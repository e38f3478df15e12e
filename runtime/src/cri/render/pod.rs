//! A pod in lists and status.

use berth_proto::cri;

use super::map;
use crate::pod::PodSnapshot;
use crate::pod::spec::{IdRange, Namespaces, PodKey, Scope};

/// The pod in a list.
pub(in crate::cri) fn pod(pod: &PodSnapshot) -> cri::PodSandbox {
    cri::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(metadata(&pod.spec.key)),
        state: state(pod.ready).into(),
        created_at: pod.created_at,
        labels: map(&pod.spec.labels),
        annotations: map(&pod.spec.annotations),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}

/// The pod in its status.
pub(in crate::cri) fn pod_status(pod: &PodSnapshot) -> cri::PodSandboxStatus {
    cri::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(metadata(&pod.spec.key)),
        state: state(pod.ready).into(),
        created_at: pod.created_at,
        network: Some(network(pod)),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options(&pod.spec.namespaces)) }),
        }),
        labels: map(&pod.spec.labels),
        annotations: map(&pod.spec.annotations),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}

fn metadata(key: &PodKey) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: key.name.clone(),
        uid: key.uid.clone(),
        namespace: key.namespace.clone(),
        attempt: key.attempt,
    }
}

fn state(ready: bool) -> cri::PodSandboxState {
    if ready { cri::PodSandboxState::SandboxReady } else { cri::PodSandboxState::SandboxNotready }
}

/// No address for the host's network: kubelet takes the node's.
fn network(pod: &PodSnapshot) -> cri::PodSandboxNetworkStatus {
    let mut ips = pod.ips.iter().map(ToString::to_string);
    cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    }
}

fn options(namespaces: &Namespaces) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: mode(&namespaces.network).into(),
        pid: mode(&namespaces.pid).into(),
        ipc: mode(&namespaces.ipc).into(),
        target_id: String::new(),
        userns_options: namespaces.user.then(|| cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: namespaces.ids.uids.iter().map(mapping).collect(),
            gids: namespaces.ids.gids.iter().map(mapping).collect(),
        }),
    }
}

fn mapping(range: &IdRange) -> cri::IdMapping {
    cri::IdMapping { host_id: range.host, container_id: range.container, length: range.length }
}

fn mode(scope: &Scope) -> cri::NamespaceMode {
    match scope {
        Scope::Pod => cri::NamespaceMode::Pod,
        Scope::Container => cri::NamespaceMode::Container,
        Scope::Node => cri::NamespaceMode::Node,
        Scope::Target(_) => cri::NamespaceMode::Target,
    }
}
