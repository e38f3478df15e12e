//! Archives in and out.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use berth_proto::control::{
    ImageImportRequest, ImageLoadRequest, ImportOptions, LoadOptions, image_import_request,
    image_import_response, image_load_request, image_load_response, loaded,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::tokio_stream::{StreamExt, once};

use crate::args::{Global, Output};
use crate::client::Client;
use crate::outcome::{Failure, Outcome};
use crate::show::{Progress, print};

/// One message.
const PIECE: usize = 512 << 10;
/// Messages that wait to be sent.
const PIECES: usize = 2;

pub(crate) async fn load(global: &Global, file: &Path, repository: Option<String>) -> Outcome {
    use image_load_request::Part;
    use image_load_response::Event;
    let source = Source::open(file)?;
    let mut client = Client::connect(global).await?;
    let mut progress = Progress::new(global, source.length);
    let (data, broken) = source.send();
    let options = LoadOptions { repository: repository.unwrap_or_default() };
    let first = ImageLoadRequest { part: Some(Part::Options(options)) };
    let rest = data.map(|data| ImageLoadRequest { part: Some(Part::Data(data)) });
    let work = async {
        let mut answer = client.control.image_load(once(first).chain(rest)).await?.into_inner();
        while let Some(message) = answer.message().await? {
            match message.event {
                Some(Event::Progress(transfer)) => progress.show(transfer),
                Some(Event::Done(done)) => return Ok(done),
                None => {}
            }
        }
        Err(cut())
    };
    let done = sent(work, broken).await?;
    progress.end();
    show_loaded(global, &done.images)
}

pub(crate) async fn import(global: &Global, file: &Path, options: ImportOptions) -> Outcome {
    use image_import_request::Part;
    use image_import_response::Event;
    let source = Source::open(file)?;
    let mut client = Client::connect(global).await?;
    let mut progress = Progress::new(global, source.length);
    let (data, broken) = source.send();
    let first = ImageImportRequest { part: Some(Part::Options(options)) };
    let rest = data.map(|data| ImageImportRequest { part: Some(Part::Data(data)) });
    let work = async {
        let mut answer = client.control.image_import(once(first).chain(rest)).await?.into_inner();
        while let Some(message) = answer.message().await? {
            match message.event {
                Some(Event::Progress(transfer)) => progress.show(transfer),
                Some(Event::Done(done)) => return Ok(done),
                None => {}
            }
        }
        Err(cut())
    };
    let done = sent(work, broken).await?;
    progress.end();
    match global.output {
        Output::Table => print(&format!("{}\n", done.id)),
        Output::Json => {
            let done = json!({"event": "done", "id": done.id, "tags": done.tags});
            print(&format!("{done}\n"))
        }
    }
}

/// Waits for the daemon's answer. Where the source breaks, what was read so far is no archive:
/// the daemon must not take its end for the whole.
async fn sent<T>(
    work: impl Future<Output = Outcome<T>>,
    mut broken: oneshot::Receiver<Failure>,
) -> Outcome<T> {
    tokio::select! {
        done = work => done,
        Ok(failure) = &mut broken => Err(failure),
    }
}

/// The daemon went away in the middle of its answer.
pub(crate) fn cut() -> Failure {
    Status::unavailable("the daemon's answer ended early").into()
}

fn show_loaded(global: &Global, loaded: &[loaded::Image]) -> Outcome {
    if global.output == Output::Json {
        let images = Value::from_iter(loaded.iter().map(document));
        return print(&format!("{}\n", json!({"event": "done", "images": images})));
    }
    let lines = loaded.iter().map(|image| match image.tags.as_slice() {
        [] => format!("loaded {}\n", image.id),
        tags => tags.iter().map(|tag| format!("loaded {tag}\n")).collect(),
    });
    print(&lines.collect::<String>())
}

fn document(image: &loaded::Image) -> Value {
    json!({"id": image.id, "tags": image.tags})
}

/// A file or standard input.
struct Source {
    reader: Box<dyn Read + Send>,
    name: String,
    length: Option<u64>,
}

impl Source {
    fn open(path: &Path) -> Outcome<Self> {
        if path == Path::new("-") {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                let reason = "standard input is a terminal: name a file, or pipe an archive in";
                return Err(Failure::Usage(reason.to_owned()));
            }
            let name = "standard input".to_owned();
            return Ok(Self { reader: Box::new(stdin), name, length: None });
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Failure::io("open", &name, error))?;
        let about = file.metadata().map_err(|error| Failure::io("open", &name, error))?;
        let length = about.is_file().then_some(about.len());
        Ok(Self { reader: Box::new(file), name, length })
    }

    /// Reads on a thread of its own. The stream ends at the source's end only; where reading
    /// fails, the second value tells why and the stream stays open.
    fn send(self) -> (ReceiverStream<Bytes>, oneshot::Receiver<Failure>) {
        let Self { mut reader, name, .. } = self;
        let (sender, data) = mpsc::channel(PIECES);
        let (tell, broken) = oneshot::channel();
        std::thread::spawn(move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                match reader.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                    Ok(0) => return,
                    Ok(_) if sender.blocking_send(Bytes::from(piece)).is_ok() => {}
                    // The daemon has answered already.
                    Ok(_) => return,
                    Err(error) => {
                        let _told = tell.send(Failure::io("read", name, error));
                        // Until the program ends.
                        std::mem::forget(sender);
                        return;
                    }
                }
            }
        });
        (ReceiverStream::new(data), broken)
    }
}
