//! The RPCs of images.

use std::collections::HashMap;
use std::sync::Arc;

use berth_image::Image;
use berth_proto::cri;
use serde_json::json;

use super::code::Failure;
use super::{Front, parse, render};

const FIELD: &str = "image.image";

/// What the request calls the image; empty where it says nothing.
pub(super) fn name(spec: Option<&cri::ImageSpec>) -> &str {
    spec.map_or("", |spec| &spec.image)
}

/// Dropped when the caller goes away: the pull ends with its last waiter.
pub(super) async fn pull(
    front: &Front,
    request: &cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Failure> {
    let reference = parse::reference(FIELD, name(request.image.as_ref()))?;
    let credentials = request.auth.as_ref().map(parse::credentials).transpose()?;
    let result = front.images.pull(&reference, credentials, &front.registry).await;
    front.metrics.pull_ended(result.is_ok());
    Ok(cri::PullImageResponse { image_ref: result?.to_string() })
}

/// With a filter: the one image that it names, or none.
pub(super) fn list(
    front: &Front,
    request: &cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Failure> {
    let spec = request.filter.as_ref().and_then(|filter| filter.image.as_ref());
    let images = match name(spec) {
        "" => front.images.list(),
        name => front.images.find(name).into_iter().collect(),
    };
    Ok(cri::ListImagesResponse { images: images.iter().map(|one| row(front, one)).collect() })
}

fn row(front: &Front, image: &Image) -> cri::Image {
    render::image(image, front.images.pinned(image))
}

/// An image that is not there is an empty answer, not an error.
pub(super) fn status(
    front: &Front,
    request: &cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Failure> {
    let name = parse::image_name(FIELD, name(request.image.as_ref()))?;
    let Some(image) = front.images.find(name) else {
        return Ok(cri::ImageStatusResponse::default());
    };
    Ok(cri::ImageStatusResponse {
        image: Some(row(front, &image)),
        info: if request.verbose { info(&image) } else { HashMap::new() },
    })
}

/// Removes the image with all its names. One that is not there is removed already.
pub(super) async fn remove(
    front: &Front,
    request: &cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Failure> {
    let name = parse::image_name(FIELD, name(request.image.as_ref()))?;
    front.images.remove(name).await?;
    Ok(cri::RemoveImageResponse {})
}

/// Where layers and writable layers lie on one file system, both lists name it and all that is
/// used there.
pub(super) async fn fs_info(front: &Front) -> cri::ImageFsInfoResponse {
    let mut images = front.images.image_usage().await;
    let mut containers = front.images.writable_usage().await;
    if !front.images.has_writable_fs() {
        images.bytes = images.bytes.saturating_add(containers.bytes);
        images.inodes = images.inodes.saturating_add(containers.inodes);
        containers = images.clone();
    }
    cri::ImageFsInfoResponse {
        image_filesystems: vec![render::fs_usage(&images)],
        container_filesystems: vec![render::fs_usage(&containers)],
    }
}

fn info(image: &Arc<Image>) -> HashMap<String, String> {
    let value = json!({ "imageSpec": image.config, "verified": image.verified() });
    HashMap::from([("info".to_owned(), value.to_string())])
}
