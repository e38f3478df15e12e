//! Mounts and devices of a container.

use berth_proto::cri;

use super::field;
use crate::pod::Result;
use crate::pod::spec::{Device, Mount, Propagation};

pub(super) fn mounts(mounts: &[cri::Mount]) -> Result<Vec<Mount>> {
    let path = |n: usize| format!("config.mounts[{n}]");
    mounts.iter().enumerate().map(|(n, mount)| parse(&path(n), mount)).collect()
}

fn parse(path: &str, mount: &cri::Mount) -> Result<Mount> {
    let container_path =
        field::clean_absolute(&format!("{path}.container_path"), &mount.container_path)?;
    if container_path.split('/').all(|part| matches!(part, "" | ".")) {
        let why = "is the root of the container";
        return field::refuse(format!("{path}.container_path"), &mount.container_path, why);
    }
    let propagation = propagation(&format!("{path}.propagation"), mount.propagation)?;
    let image = image(path, mount)?;
    if mount.recursive_read_only {
        recursive(path, mount.readonly, propagation)?;
    }
    Ok(Mount {
        container_path,
        host_path: match image {
            Some(_) => String::new(),
            None => field::absolute(&format!("{path}.host_path"), &mount.host_path)?,
        },
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        image,
        id_mapped: !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty(),
    })
}

/// Recursively read-only makes sense only where nothing can be mounted below later.
fn recursive(path: &str, readonly: bool, propagation: Propagation) -> Result<()> {
    let field = format!("{path}.recursive_read_only");
    if !readonly {
        return field::refuse(field, true, "needs readonly");
    }
    if propagation != Propagation::Private {
        return field::refuse(field, true, "needs PROPAGATION_PRIVATE");
    }
    Ok(())
}

/// The image of an image volume.
fn image(path: &str, mount: &cri::Mount) -> Result<Option<String>> {
    let image = mount.image.as_ref().map(|image| image.image.as_str()).filter(|i| !i.is_empty());
    match image {
        None if mount.image_sub_path.is_empty() => Ok(None),
        None => {
            field::refuse(format!("{path}.image_sub_path"), &mount.image_sub_path, "needs an image")
        }
        Some(_) if !mount.host_path.is_empty() => {
            field::refuse(format!("{path}.host_path"), &mount.host_path, "is set beside an image")
        }
        Some(image) if !mount.readonly => {
            field::refuse(format!("{path}.readonly"), image, "must be true for an image volume")
        }
        Some(image) => field::word(&format!("{path}.image.image"), image).map(Some),
    }
}

fn propagation(field: &str, value: i32) -> Result<Propagation> {
    Ok(match field::choice(field, value)? {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

pub(super) fn devices(devices: &[cri::Device]) -> Result<Vec<Device>> {
    let one = |(n, device): (usize, &cri::Device)| {
        let path = |name: &str| format!("config.devices[{n}].{name}");
        Ok(Device {
            container_path: field::clean_absolute(&path("container_path"), &device.container_path)?,
            host_path: field::absolute(&path("host_path"), &device.host_path)?,
            permissions: permissions(&path("permissions"), &device.permissions)?,
        })
    };
    devices.iter().enumerate().map(one).collect()
}

fn permissions(field: &str, value: &str) -> Result<String> {
    if value.is_empty() || !value.chars().all(|c| "rwm".contains(c)) {
        return field::refuse(field, value, "is not made of r, w and m");
    }
    Ok(value.to_owned())
}
