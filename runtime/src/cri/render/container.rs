//! A container in lists and status.

use berth_proto::cri;

use super::map;
use crate::cri::parse;
use crate::pod::spec::{ContainerKey, ContainerSpec, Mount, Propagation, Resources};
use crate::pod::{ContainerSnapshot, ContainerState, User};

/// The container in a list.
pub(in crate::cri) fn container(container: &ContainerSnapshot) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata(&container.spec.key)),
        image: Some(image(&container.spec)),
        image_ref: container.image_ref.clone(),
        state: container_state(container.state).into(),
        created_at: container.created_at,
        labels: map(&container.spec.labels),
        annotations: map(&container.spec.annotations),
        image_id: container.image_id.clone(),
    }
}

/// The container in its status.
pub(in crate::cri) fn container_status(container: &ContainerSnapshot) -> cri::ContainerStatus {
    let log_path = container.log_path.as_ref();
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(&container.spec.key)),
        state: container_state(container.state).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: Some(image(&container.spec)),
        image_ref: container.image_ref.clone(),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: map(&container.spec.labels),
        annotations: map(&container.spec.annotations),
        mounts: mounts(container),
        log_path: log_path.map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(resources(&container.spec.resources)),
            windows: None,
        }),
        image_id: container.image_id.clone(),
        user: Some(user(&container.user)),
        stop_signal: parse::signal_to_cri(container.stop_signal).into(),
    }
}

/// The word for a state.
pub(in crate::cri) fn container_state(state: ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running => cri::ContainerState::ContainerRunning,
        ContainerState::Exited => cri::ContainerState::ContainerExited,
    }
}

fn metadata(key: &ContainerKey) -> cri::ContainerMetadata {
    cri::ContainerMetadata { name: key.name.clone(), attempt: key.attempt }
}

fn image(spec: &ContainerSpec) -> cri::ImageSpec {
    cri::ImageSpec {
        image: spec.image.clone(),
        annotations: map(&spec.image_annotations),
        user_specified_image: spec.user_specified_image.clone(),
        ..Default::default()
    }
}

fn mounts(container: &ContainerSnapshot) -> Vec<cri::Mount> {
    let mut ids = container.volume_images.iter();
    let one = |asked: &Mount| cri::Mount {
        image: asked.image.as_ref().map(|volume| cri::ImageSpec {
            image: volume.image.clone(),
            user_specified_image: volume.user_specified_image.clone(),
            // KEP-5365: what a pull of the image returned.
            image_ref: ids.next().cloned().unwrap_or_default(),
            ..Default::default()
        }),
        image_sub_path: asked.image.as_ref().map(|v| v.sub_path.clone()).unwrap_or_default(),
        ..mount(asked)
    };
    container.spec.mounts.iter().map(one).collect()
}

fn mount(mount: &Mount) -> cri::Mount {
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        }
        .into(),
        recursive_read_only: mount.recursive_read_only,
        ..Default::default()
    }
}

fn resources(resources: &Resources) -> cri::LinuxContainerResources {
    let hugepages = resources.hugepages.iter();
    cri::LinuxContainerResources {
        // What came from the wire as i64 goes back as such.
        cpu_period: i64::try_from(resources.cpu_period).unwrap_or(i64::MAX),
        cpu_quota: resources.cpu_quota,
        cpu_shares: i64::try_from(resources.cpu_shares).unwrap_or(i64::MAX),
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj.into(),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|(size, &limit)| cri::HugepageLimit { page_size: size.clone(), limit })
            .collect(),
        unified: map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
    }
}

fn user(user: &User) -> cri::ContainerUser {
    cri::ContainerUser {
        linux: Some(cri::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|&group| group.into()).collect(),
        }),
    }
}
