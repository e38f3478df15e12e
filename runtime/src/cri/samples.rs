//! Snapshots for tests.

use std::path::PathBuf;
use std::sync::Arc;

use berth_proto::cri;
use berth_proto::ids::{ContainerId, PodId};

use super::parse;
use crate::pod::{ContainerSnapshot, ContainerState, PodSnapshot, User};

/// A ready pod whose id is made of this digit's byte.
pub(super) fn pod(byte: u8, labels: &[(&str, &str)]) -> PodSnapshot {
    let request = cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "default".into(),
                attempt: 3,
            }),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    };
    PodSnapshot {
        id: PodId::from_random([byte; 32]),
        spec: Arc::new(parse::pod(&request).unwrap()),
        ready: true,
        created_at: 17,
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()],
        cgroup: "/kubepods/pod1".into(),
        netns: None,
        shim_pid: Some(1),
        leftovers: vec![],
        containers: vec![],
    }
}

/// A running container of the pod of `pod_byte`.
pub(super) fn container(byte: u8, pod_byte: u8, labels: &[(&str, &str)]) -> ContainerSnapshot {
    let request = cri::CreateContainerRequest {
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 1 }),
            image: Some(cri::ImageSpec {
                image: "busybox".into(),
                user_specified_image: "busybox:latest".into(),
                ..Default::default()
            }),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            mounts: vec![cri::Mount {
                container_path: "/data".into(),
                host_path: "/srv".into(),
                propagation: cri::MountPropagation::PropagationBidirectional.into(),
                ..Default::default()
            }],
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    cpu_shares: 512,
                    ..Default::default()
                }),
                security_context: None,
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    ContainerSnapshot {
        id: ContainerId::from_random([byte; 32]),
        pod: PodId::from_random([pod_byte; 32]),
        spec: Arc::new(parse::container(&request).unwrap()),
        state: ContainerState::Running,
        created_at: 17,
        started_at: 18,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image_id: "sha256:1".into(),
        image_ref: "docker.io/library/busybox@sha256:2".into(),
        volume_images: Vec::new(),
        log_path: Some(PathBuf::from("/var/log/pods/x/main/0.log")),
        user: User { uid: 1000, gid: 7, groups: vec![7, 8] },
        stop_signal: 15,
        pid: Some(99),
        log_bytes_lost: 0,
    }
}
