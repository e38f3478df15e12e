//! Mounts and devices of a container.

use std::path::{Component, Path};

use berth_proto::cri;

use super::{field, namespaces};
use crate::pod::Result;
use crate::pod::spec::{Device, IdMaps, Mount, Propagation, VolumeImage};

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
        ids: ids(path, mount)?,
    })
}

/// Users without groups, or groups without users, are nobody's wish.
fn ids(path: &str, mount: &cri::Mount) -> Result<IdMaps> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    for (name, this, other) in [("uidMappings", uids, gids), ("gidMappings", gids, uids)] {
        if this.is_empty() && !other.is_empty() {
            return field::refuse(format!("{path}.{name}"), "", "is missing beside the other's");
        }
    }
    Ok(IdMaps {
        uids: namespaces::ranges(&format!("{path}.uidMappings"), uids)?,
        gids: namespaces::ranges(&format!("{path}.gidMappings"), gids)?,
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
fn image(path: &str, mount: &cri::Mount) -> Result<Option<VolumeImage>> {
    let sub_path = &mount.image_sub_path;
    let image = mount.image.as_ref().filter(|image| !image.image.is_empty());
    let Some(image) = image else {
        if sub_path.is_empty() {
            return Ok(None);
        }
        return field::refuse(format!("{path}.image_sub_path"), sub_path, "needs an image");
    };
    if !mount.host_path.is_empty() {
        let why = "is set beside an image";
        return field::refuse(format!("{path}.host_path"), &mount.host_path, why);
    }
    if !mount.readonly {
        let why = "must be true for an image volume";
        return field::refuse(format!("{path}.readonly"), &image.image, why);
    }
    let climbs = Path::new(sub_path).components().any(|part| !matches!(part, Component::Normal(_)));
    if climbs || sub_path.contains('\0') {
        let why = "is not a relative path without \"..\"";
        return field::refuse(format!("{path}.image_sub_path"), sub_path, why);
    }
    Ok(Some(VolumeImage {
        image: field::word(&format!("{path}.image.image"), &image.image)?,
        user_specified_image: image.user_specified_image.clone(),
        sub_path: sub_path.clone(),
    }))
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
