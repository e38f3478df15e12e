//! Archives in and out.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use berth_proto::control::{
    ImageLoadRequest, LoadOptions, Loaded, image_load_request, image_load_response, loaded,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;
use tonic::codegen::tokio_stream::StreamExt;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

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
    let (data, mut broken) = source.send();
    let options = LoadOptions { repository: repository.unwrap_or_default() };
    let first = ImageLoadRequest { part: Some(Part::Options(options)) };
    let rest = data.map(|data| ImageLoadRequest { part: Some(Part::Data(data)) });
    let requests = tonic::codegen::tokio_stream::once(first).chain(rest);
    let work = async {
        let mut answer = client.control.image_load(requests).await?.into_inner();
        while let Some(message) = answer.message().await? {
            match message.event {
                Some(Event::Progress(transfer)) => progress.show(transfer),
                Some(Event::Done(done)) => return Ok(done),
                None => {}
            }
        }
        Err(Failure::from(Status::internal("the daemon's answer ended early")))
    };
    let done = tokio::select! {
        done = work => done?,
        // What was read so far is no archive: the daemon must not take its end for the whole.
        Ok(failure) = &mut broken => return Err(failure),
    };
    progress.end();
    show_loaded(global, &done)
}

fn show_loaded(global: &Global, done: &Loaded) -> Outcome {
    if global.output == Output::Json {
        let images = Value::from_iter(done.images.iter().map(document));
        return print(&format!("{}\n", json!({"event": "done", "images": images})));
    }
    let lines = done.images.iter().map(|image| match image.tags.as_slice() {
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
