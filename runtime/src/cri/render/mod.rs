//! Snapshots -> CRI answers. Pure.

mod container;
mod image;
mod pod;
mod stats;

pub(super) use container::{container, container_state, container_status};
pub(super) use image::{fs_usage, image};
pub(super) use pod::{pod, pod_status};
pub(super) use stats::{container_stats, pod_stats};

use std::collections::{BTreeMap, HashMap};

fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use berth_proto::cri;

    use super::super::samples;
    use super::*;

    #[test]
    fn a_pod_is_rendered_as_kubelet_checks_it() {
        let mut snapshot = samples::pod(0xab, &[("app", "web")]);
        let status = pod_status(&snapshot);
        assert_eq!(status.id, "ab".repeat(32));
        let metadata = status.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.attempt), ("web", 3));
        assert_eq!((metadata.namespace.as_str(), metadata.uid.as_str()), ("default", "u"));
        assert_eq!((status.created_at, status.state), (17, 0));
        let network = status.network.unwrap();
        assert_eq!(network.ip, "10.1.2.3");
        assert_eq!(network.additional_ips, [cri::PodIp { ip: "fd00::1".into() }]);
        let namespaces = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(namespaces, cri::NamespaceOption::default());
        assert_eq!(status.labels.get("app").unwrap(), "web");
        snapshot.ready = false;
        snapshot.ips.clear();
        let status = pod_status(&snapshot);
        assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap().ip, "");
        assert_eq!(pod(&snapshot).state(), cri::PodSandboxState::SandboxNotready);
    }

    #[test]
    fn a_container_is_rendered_as_kubelet_checks_it() {
        let snapshot = samples::container(0xc1, 0xab, &[("app", "web")]);
        let status = container_status(&snapshot);
        assert_eq!(status.id, "c1".repeat(32));
        assert_eq!(status.image.as_ref().unwrap().image, "busybox");
        assert_eq!(status.image.as_ref().unwrap().user_specified_image, "busybox:latest");
        assert_eq!(status.image_id, "sha256:1");
        assert_eq!(status.image_ref, "docker.io/library/busybox@sha256:2");
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
        assert_eq!((status.created_at, status.started_at, status.finished_at), (17, 18, 0));
        assert_eq!(status.log_path, "/var/log/pods/x/main/0.log");
        assert_eq!(status.stop_signal(), cri::Signal::Sigterm);
        assert_eq!(status.mounts[0].propagation(), cri::MountPropagation::PropagationBidirectional);
        let user = status.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 7, vec![7, 8]));
        assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 512);
        let listed = container(&snapshot);
        assert_eq!(listed.pod_sandbox_id, "ab".repeat(32));
        assert_eq!(listed.image_id, "sha256:1");
    }
}
