//! The RPCs of images.

use std::sync::Arc;

use berth_image::{Credentials, LoadOptions, LoadProgress, Piece, Reference};
use berth_proto::control::{self, image_load_request, image_load_response, image_pull_response};
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::answer::{Parts, with_progress};
use super::{fault, render};
use crate::cri::Front;

/// Messages of an archive that wait to be put aside.
const PIECES: usize = 4;

/// A reference that names an image of a registry, or a new name.
fn reference(field: &str, text: &str) -> Result<Reference, Status> {
    Reference::parse(text).map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

/// None where all are empty: then the node's own count.
fn credentials(given: Option<control::Credentials>) -> Option<Credentials> {
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

pub(super) async fn load(
    front: Arc<Front>,
    mut requests: Streaming<control::ImageLoadRequest>,
    parts: Parts<control::ImageLoadResponse>,
) -> Result<control::ImageLoadResponse, Status> {
    use image_load_request::Part;
    use image_load_response::Event;
    let Some(Part::Options(options)) = requests.message().await?.and_then(|first| first.part)
    else {
        return Err(fault::invalid("part", "data", "comes before the options"));
    };
    if !options.repository.is_empty() {
        reference("repository", &options.repository)?;
    }
    let options = LoadOptions { repository: Some(options.repository) };
    let next = async move || match requests.message().await?.map(|request| request.part) {
        None => Ok(None),
        Some(Some(Part::Data(data))) => Ok(Some(data)),
        Some(_) => Err(fault::invalid("part", "options", "come twice")),
    };
    let progress = Arc::new(LoadProgress::default());
    let look = || {
        let event = Some(Event::Progress(render::load(&progress)));
        Some(control::ImageLoadResponse { event })
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    let load = front.images.load(pieces, options, progress.clone());
    let loaded = with_progress(&parts, look, fed(next, sender, load)).await?;
    let loaded = loaded.map_err(|error| fault::of("ImageLoad", &error))?;
    let done = control::Loaded { images: loaded.iter().map(render::loaded).collect() };
    Ok(control::ImageLoadResponse { event: Some(Event::Done(done)) })
}

/// Does `work` on the bytes that the caller sends. The work may end before they do.
async fn fed<W: Future>(
    mut next: impl AsyncFnMut() -> Result<Option<Bytes>, Status>,
    sender: mpsc::Sender<Piece>,
    work: W,
) -> Result<W::Output, Status> {
    let feed = async move {
        while let Some(data) = next().await? {
            if sender.send(Piece::Data(data)).await.is_err() {
                return Ok::<(), Status>(());
            }
        }
        // Fails only if the work has ended, which says why.
        let _sent = sender.send(Piece::End).await;
        Ok(())
    };
    let (mut work, mut feed) = (std::pin::pin!(work), std::pin::pin!(feed));
    tokio::select! {
        result = &mut work => return Ok(result),
        fed = &mut feed => fed?,
    }
    Ok(work.await)
}
