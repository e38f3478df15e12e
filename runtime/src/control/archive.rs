//! The RPCs that move archives.

use std::sync::Arc;

use berth_image::{ImportOptions, LoadOptions, LoadProgress, Piece, SavedArchive};
use berth_proto::control::{
    self, image_import_request, image_import_response, image_load_request, image_load_response,
    image_save_response,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::answer::{Parts, with_progress};
use super::image::{credentials, reference};
use super::{fault, render};
use crate::clock;
use crate::cri::Front;

/// Messages of an archive that wait to be put aside, or to be sent.
const PIECES: usize = 4;

pub(super) async fn load(
    front: Arc<Front>,
    mut requests: Streaming<control::ImageLoadRequest>,
    parts: Parts<control::ImageLoadResponse>,
) -> Result<control::ImageLoadResponse, Status> {
    use image_load_request::Part;
    use image_load_response::Event;
    let Some(Part::Options(options)) = requests.message().await?.and_then(|first| first.part)
    else {
        return Err(no_options());
    };
    if !options.repository.is_empty() {
        reference("repository", &options.repository)?;
    }
    let options = LoadOptions { repository: Some(options.repository) };
    let next = async move || match requests.message().await?.map(|request| request.part) {
        None => Ok(None),
        Some(Some(Part::Data(data))) => Ok(Some(data)),
        Some(_) => Err(second_options()),
    };
    let progress = Arc::new(LoadProgress::default());
    let look = || {
        let event = Some(Event::Progress(render::load(&progress)));
        Some(control::ImageLoadResponse { event })
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    let load = Box::pin(front.images.load(pieces, options, progress.clone()));
    let loaded = with_progress(&parts, look, fed(next, sender, load)).await?;
    let loaded = loaded.map_err(|error| fault::of("ImageLoad", &error))?;
    let done = control::Loaded { images: loaded.iter().map(render::loaded).collect() };
    Ok(control::ImageLoadResponse { event: Some(Event::Done(done)) })
}

pub(super) async fn import(
    front: Arc<Front>,
    mut requests: Streaming<control::ImageImportRequest>,
    parts: Parts<control::ImageImportResponse>,
) -> Result<control::ImageImportResponse, Status> {
    use image_import_request::Part;
    use image_import_response::Event;
    let Some(Part::Options(options)) = requests.message().await?.and_then(|first| first.part)
    else {
        return Err(no_options());
    };
    let tag = match options.tag.as_str() {
        "" => None,
        text => Some(reference("tag", text)?),
    };
    let created = clock::rfc3339(clock::now());
    let control::ImportOptions { changes, message, .. } = options;
    let options = ImportOptions { tag, changes, message, created };
    let next = async move || match requests.message().await?.map(|request| request.part) {
        None => Ok(None),
        Some(Some(Part::Data(data))) => Ok(Some(data)),
        Some(_) => Err(second_options()),
    };
    let progress = Arc::new(LoadProgress::default());
    let look = || {
        let event = Some(Event::Progress(render::load(&progress)));
        Some(control::ImageImportResponse { event })
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    let import = Box::pin(front.images.import(pieces, options, progress.clone()));
    let made = with_progress(&parts, look, fed(next, sender, import)).await?;
    let made = made.map_err(|error| fault::of("ImageImport", &error))?;
    Ok(control::ImageImportResponse { event: Some(Event::Done(render::loaded(&made))) })
}

pub(super) async fn save(
    front: Arc<Front>,
    request: control::ImageSaveRequest,
    parts: Parts<control::ImageSaveResponse>,
) -> Result<control::ImageSaveResponse, Status> {
    use image_save_response::Event;
    if request.images.is_empty() {
        return Err(Status::invalid_argument("images: at least one is needed"));
    }
    let message = |event| control::ImageSaveResponse { event: Some(event) };
    let progress = LoadProgress::default();
    let look = || Some(message(Event::Progress(render::pull(&progress.image()?))));
    let credentials = credentials(request.credentials);
    let save = front.images.save(&request.images, credentials, &front.registry, &progress);
    let archive = with_progress(&parts, look, Box::pin(save)).await;
    let archive = archive.map_err(|error| fault::of("ImageSave", &error))?;
    // Fails only if the caller has gone, and then this future goes, too.
    let _sent = parts.send(message(Event::Total(archive.length()))).await;
    send(archive, |data| message(Event::Data(data)), parts).await?;
    Ok(message(Event::Done(control::Saved {})))
}

async fn send<T>(
    archive: SavedArchive,
    message: impl Fn(Bytes) -> T,
    parts: Parts<T>,
) -> Result<(), Status> {
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let relay = async {
        while let Some(Piece::Data(data)) = pieces.recv().await {
            if parts.send(message(data)).await.is_err() {
                return;
            }
        }
    };
    let (sent, ()) = tokio::join!(archive.send(sender), relay);
    sent.map_err(|error| fault::of("ImageSave", &error))
}

fn no_options() -> Status {
    fault::invalid("part", "data", "comes before the options")
}

fn second_options() -> Status {
    fault::invalid("part", "options", "come twice")
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
