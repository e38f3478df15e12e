//! Snapshots of the image store in the words of the control service.

use berth_image::{Inspection, LayerInspection, LayerState, LayerStatus, PullState, PullStatus};
use berth_image::{LoadProgress, Loaded};
use berth_proto::control;

/// A pull as it stands.
pub(super) fn pull(status: &PullStatus) -> control::Transfer {
    let state = match status.state {
        PullState::Resolving => "resolving",
        PullState::Fetching => "receiving",
        _ => "finishing",
    };
    control::Transfer {
        reference: status.reference.clone(),
        state: state.to_owned(),
        layers: status.layers.iter().map(layer).collect(),
        received: 0,
    }
}

/// A load as it stands: first the archive comes, then one image after the other is unpacked.
pub(super) fn load(progress: &LoadProgress) -> control::Transfer {
    let received = progress.bytes_received();
    match progress.image() {
        Some(status) => {
            let state = "unpacking".to_owned();
            control::Transfer { state, received, ..pull(&status) }
        }
        None => {
            let state = if progress.is_received() { "reading" } else { "receiving" };
            control::Transfer { state: state.to_owned(), received, ..Default::default() }
        }
    }
}

fn layer(status: &LayerStatus) -> control::transfer::Layer {
    let state = match status.state {
        LayerState::Waiting => "waiting",
        LayerState::Receiving => "receiving",
        LayerState::Resumed => "resumed",
        LayerState::Unpacking => "unpacking",
        LayerState::Done => "done",
        LayerState::Shared => "shared",
        _ => "",
    };
    control::transfer::Layer {
        digest: status.digest.to_string(),
        size: status.size,
        transferred: status.received,
        unpacked: status.unpacked,
        state: state.to_owned(),
        host: status.host.clone().unwrap_or_default(),
    }
}

pub(super) fn loaded(image: &Loaded) -> control::loaded::Image {
    control::loaded::Image { id: image.id.to_string(), tags: image.tags.clone() }
}

/// All that is known of an image.
pub(super) fn inspection(found: Inspection, pinned: bool) -> control::ImageInspectResponse {
    let image = &found.image;
    let verified = image.verified().iter().map(|one| control::Verification {
        rule: one.rule.clone(),
        key: one.key.to_string(),
        subject: one.subject.to_string(),
        repository: one.repository.clone(),
    });
    let verifications = verified.collect();
    control::ImageInspectResponse {
        id: image.id.to_string(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        pinned,
        size: image.size,
        manifest_digest: found.manifest_digest.to_string(),
        manifest: found.manifest,
        config: found.config,
        layers: found.layers.iter().map(inspected).collect(),
        verifications,
    }
}

fn inspected(layer: &LayerInspection) -> control::ImageLayer {
    control::ImageLayer {
        digest: layer.digest.to_string(),
        media_type: layer.media_type.clone(),
        size: layer.size,
        diff_id: layer.diff_id.to_string(),
        chain_id: layer.chain_id.to_string(),
        key: layer.key.clone(),
        path: layer.path.display().to_string(),
        unpacked_bytes: layer.unpacked_bytes,
        unpacked_inodes: layer.unpacked_inodes,
        images: u32::try_from(layer.images).unwrap_or(u32::MAX),
        blob_kept: layer.blob_kept,
    }
}
