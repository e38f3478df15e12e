//! The RPCs of images.

use std::sync::Arc;

use berth_image::{Credentials, Reference};
use berth_proto::control::{self, image_pull_response};
use tonic::Status;

use super::answer::{Parts, with_progress};
use super::{fault, render};
use crate::cri::Front;

/// A reference that names an image of a registry, or a new name.
pub(super) fn reference(field: &str, text: &str) -> Result<Reference, Status> {
    Reference::parse(text).map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

/// None where all are empty: then the node's own count.
pub(super) fn credentials(given: Option<control::Credentials>) -> Option<Credentials> {
    let given = given?;
    let credentials = Credentials {
        username: given.username,
        password: given.password,
        identity_token: given.identity_token,
        registry_token: given.registry_token,
        ..Credentials::default()
    };
    (credentials != Credentials::default()).then_some(credentials)
}

pub(super) async fn pull(
    front: Arc<Front>,
    request: control::ImagePullRequest,
    parts: Parts<control::ImagePullResponse>,
) -> Result<control::ImagePullResponse, Status> {
    use image_pull_response::Event;
    let reference = reference("reference", &request.reference)?;
    let name = reference.to_string();
    let look = || {
        let status = front.images.pulls().into_iter().find(|pull| pull.reference == name)?;
        let event = Some(Event::Progress(render::pull(&status)));
        Some(control::ImagePullResponse { event })
    };
    let pull = front.images.pull(&reference, credentials(request.credentials), &front.registry);
    let result = with_progress(&parts, look, pull).await;
    front.metrics.pull_ended(result.is_ok());
    let id = result.map_err(|error| fault::of("ImagePull", &error))?.to_string();
    let done = control::Pulled { id, reference: name };
    Ok(control::ImagePullResponse { event: Some(Event::Done(done)) })
}

pub(super) async fn tag(
    front: &Front,
    request: control::ImageTagRequest,
) -> Result<control::ImageTagResponse, Status> {
    let tag = reference("tag", &request.tag)?;
    let id = front.images.tag(&request.image, &tag).await;
    let id = id.map_err(|error| fault::of("ImageTag", &error))?.to_string();
    Ok(control::ImageTagResponse { id, tag: tag.to_string() })
}

pub(super) async fn inspect(
    front: &Front,
    request: control::ImageInspectRequest,
) -> Result<control::ImageInspectResponse, Status> {
    let found = front.images.inspect(&request.image).await;
    let found = found.map_err(|error| fault::of("ImageInspect", &error))?;
    let missing = || Status::not_found(format!("no image {:?}", request.image));
    let found = found.ok_or_else(missing)?;
    let pinned = front.images.pinned(&found.image);
    Ok(render::inspection(found, pinned))
}
