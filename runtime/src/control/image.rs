//! The RPCs of images.

use std::sync::Arc;

use berth_image::{Credentials, PushOptions, Reference};
use berth_proto::control::{self, image_pull_response, image_push_response};
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

pub(super) async fn push(
    front: Arc<Front>,
    request: control::ImagePushRequest,
    parts: Parts<control::ImagePushResponse>,
) -> Result<control::ImagePushResponse, Status> {
    use image_push_response::Event;
    let to = match request.to.as_str() {
        "" => reference("image", &request.image)?,
        text => reference("to", text)?,
    };
    let missing = || Status::not_found(format!("no image {:?}", request.image));
    let image = front.images.find(&request.image).ok_or_else(missing)?;
    let name = to.to_string();
    let look = || {
        let status = front.images.pulls().into_iter().find(|push| push.reference == name)?;
        let transfer = control::Transfer { state: "sending".to_owned(), ..render::pull(&status) };
        Some(control::ImagePushResponse { event: Some(Event::Progress(transfer)) })
    };
    let (credentials, options) = (credentials(request.credentials), PushOptions::default());
    let push = front.images.push(&image, &to, credentials, &front.registry, &options);
    let done = with_progress(&parts, look, Box::pin(push)).await;
    let done = done.map_err(|error| fault::of("ImagePush", &error))?;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let done = control::Pushed {
        reference: name,
        digest: done.digest,
        sent: count(done.sent),
        mounted: count(done.mounted),
        present: count(done.present),
    };
    Ok(control::ImagePushResponse { event: Some(Event::Done(done)) })
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
