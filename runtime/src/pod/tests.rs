//! What the tests of several modules begin with.

use berth_proto::ids::{ContainerId, PodId};

use super::User;
use super::spec::{
    Capabilities, ContainerKey, ContainerSpec, Namespaces, PodKey, PodSpec, Resources, Scope,
    Security,
};
use crate::store::{ContainerPhase, ContainerRecord};

/// A plain pod with a network of its own.
pub(crate) fn pod_spec() -> PodSpec {
    PodSpec {
        key: PodKey {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u-1".into(),
            attempt: 0,
        },
        hostname: "web".into(),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        runtime_handler: String::new(),
        cgroup_parent: None,
        sysctls: Default::default(),
        namespaces: Namespaces { pid: Scope::Container, ..Namespaces::default() },
        privileged: false,
        security: Security::default(),
        resources: None,
        overhead: None,
    }
}

/// A plain container.
pub(crate) fn container_spec() -> ContainerSpec {
    ContainerSpec {
        key: ContainerKey { name: "app".into(), attempt: 0 },
        image: "busybox".into(),
        user_specified_image: String::new(),
        image_annotations: Default::default(),
        command: vec!["/bin/sleep".into()],
        args: vec!["60".into()],
        working_dir: None,
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: None,
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: Resources::default(),
        privileged: false,
        no_new_privs: false,
        capabilities: Capabilities::default(),
        namespaces: Namespaces { pid: Scope::Container, ..Namespaces::default() },
        masked_paths: None,
        readonly_paths: None,
        security: Security::default(),
    }
}

/// Its record, of a running one.
pub(crate) fn container_record() -> ContainerRecord {
    ContainerRecord {
        id: ContainerId::from_random([1; 32]),
        pod: PodId::from_random([2; 32]),
        spec: container_spec(),
        phase: ContainerPhase::Running,
        created_at: 1,
        started_at: 2,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image_id: "sha256:1".into(),
        image_ref: "busybox@sha256:2".into(),
        volume_images: Vec::new(),
        log_path: None,
        user: User::default(),
        stop_signal: 15,
        pid: 42,
        log_bytes_lost: 0,
    }
}
