//! The RPCs that look after the store.

use std::sync::Arc;

use berth_image::{
    DiskUsage, FsUsage, FsckOptions, FsckProgress, FsckReport, GcOptions, LayerCheck, LayerHealth,
    Reason,
};
use berth_proto::control::{self, fsck_response::Event};
use tonic::Status;

use super::answer::{Parts, with_progress};
use super::fault;
use crate::cri::Front;

pub(super) async fn fsck(
    front: Arc<Front>,
    request: control::FsckRequest,
    parts: Parts<control::FsckResponse>,
) -> Result<control::FsckResponse, Status> {
    let progress = Arc::new(FsckProgress::default());
    let only = Some(request.only).filter(|name| !name.is_empty());
    let options = FsckOptions { only, progress: progress.clone() };
    let look = || {
        let event = Some(Event::Progress(self::progress(&progress)));
        Some(control::FsckResponse { event })
    };
    let done = if request.repair {
        let repaired = with_progress(&parts, look, front.images.repair(options)).await;
        let done = repaired.map_err(|error| fault::of("Fsck", &error))?;
        let mut report = report(&done.found);
        report.repaired = done.repaired.iter().map(ToString::to_string).collect();
        let failed = done.failed.into_iter();
        let failed = failed.map(|(id, reason)| control::Unrepaired { id: id.to_string(), reason });
        report.failed = failed.collect();
        report.without_image = done.without_image;
        report.clean = report.failed.is_empty() && report.without_image.is_empty();
        report
    } else {
        let found = with_progress(&parts, look, front.images.fsck(options)).await;
        report(&found.map_err(|error| fault::of("Fsck", &error))?)
    };
    Ok(control::FsckResponse { event: Some(Event::Done(done)) })
}

fn progress(progress: &FsckProgress) -> control::FsckProgress {
    let [layers, checked, bytes, bytes_checked] = progress.counts();
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    control::FsckProgress { layers: count(layers), checked: count(checked), bytes, bytes_checked }
}

fn report(found: &FsckReport) -> control::FsckReport {
    control::FsckReport {
        layers: found.layers.iter().map(check).collect(),
        orphans: found.orphans.iter().map(|path| path.display().to_string()).collect(),
        incomplete: found.incomplete.iter().map(ToString::to_string).collect(),
        clean: found.is_clean(),
        ..control::FsckReport::default()
    }
}

fn check(check: &LayerCheck) -> control::LayerCheck {
    let (health, damage, reason) = match &check.health {
        LayerHealth::Sound => ("sound", &[][..], ""),
        LayerHealth::Damaged(paths) => ("damaged", paths.as_slice(), ""),
        LayerHealth::Unreadable(reason) => ("unreadable", &[][..], reason.as_str()),
        _ => ("unlisted", &[][..], ""),
    };
    let damage = damage
        .iter()
        .map(|one| control::PathDamage { path: one.path.clone(), what: one.what.clone() });
    control::LayerCheck {
        key: check.key.clone(),
        path: check.path.display().to_string(),
        images: check.images.iter().map(ToString::to_string).collect(),
        health: health.to_owned(),
        damage: damage.collect(),
        reason: reason.to_owned(),
    }
}

pub(super) async fn disk_usage(front: &Front) -> Result<control::DiskUsageResponse, Status> {
    let found = front.images.du().await.map_err(|error| fault::of("DiskUsage", &error))?;
    let DiskUsage { images, layers, containers, blobs, retired, trash, .. } = found;
    let images = images.into_iter().map(|image| control::ImageDisk {
        id: image.id.to_string(),
        tags: image.tags,
        bytes: image.bytes,
        unique_bytes: image.unique_bytes,
    });
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let layers = layers.into_iter().map(|layer| control::LayerDisk {
        key: layer.key,
        path: layer.path.display().to_string(),
        usage: Some(control::Usage { bytes: layer.bytes, inodes: layer.inodes }),
        images: count(layer.images),
        containers: count(layer.containers),
    });
    let containers = containers.into_iter();
    let containers =
        containers.map(|(id, used)| control::ContainerDisk { id, usage: usage(&used) });
    Ok(control::DiskUsageResponse {
        images: images.collect(),
        layers: layers.collect(),
        containers: containers.collect(),
        blobs: usage(&blobs),
        retired: usage(&retired),
        trash: usage(&trash),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a message's field is optional on the wire")]
fn usage(used: &FsUsage) -> Option<control::Usage> {
    Some(control::Usage { bytes: used.bytes, inodes: used.inodes })
}

pub(super) async fn gc(
    front: &Front,
    request: control::GcRequest,
) -> Result<control::GcResponse, Status> {
    let options = GcOptions { dry_run: request.dry_run };
    let done = front.images.gc(options).await.map_err(|error| fault::of("Gc", &error))?;
    let removed = done.removed.into_iter().map(|one| control::Removed {
        path: one.path.display().to_string(),
        reason: one.reason.to_owned(),
        usage: Some(control::Usage { bytes: one.bytes, inodes: one.inodes }),
    });
    Ok(control::GcResponse { removed: removed.collect() })
}

pub(super) fn explain(
    front: &Front,
    request: &control::ExplainRequest,
) -> Result<control::ExplainResponse, Status> {
    let reasons = front.images.explain(&request.name);
    let reasons = reasons.map_err(|error| fault::of("Explain", &error))?;
    Ok(control::ExplainResponse { reasons: reasons.iter().map(reason).collect() })
}

fn reason(reason: &Reason) -> control::Reason {
    let (kind, text) = match reason {
        Reason::Image { id, names } if names.is_empty() => {
            ("image", format!("it is a layer of image {id}"))
        }
        Reason::Image { id, names } => {
            ("image", format!("it is a layer of image {id} ({})", names.join(", ")))
        }
        Reason::Name(name) => ("name", format!("the image has the name {name}")),
        Reason::Pinned => ("pinned", "the configuration pins the image".to_owned()),
        Reason::Container { id } => ("container", format!("container {id} stands on it")),
        Reason::UnknownLease { container } => {
            let text = format!("the lease of container {container} cannot be read");
            ("unknown lease", text)
        }
        Reason::Pulls { claims } => ("pulls", format!("work under way has {claims} claims on it")),
        Reason::UnreadableRecords => {
            ("unreadable records", "not all records could be read at the start".to_owned())
        }
        Reason::Retired { containers } => {
            let containers = containers.join(", ");
            ("retired", format!("it was replaced, and containers still run on it: {containers}"))
        }
        other => ("other", format!("{other:?}")),
    };
    control::Reason { kind: kind.to_owned(), text }
}
