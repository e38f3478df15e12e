//! `berthctl image save`: images as an archive.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use berth_proto::control::{ImageSaveRequest, Transfer, image_save_response::Event};
use serde_json::json;

use crate::archive::cut;
use crate::args::{Global, Output};
use crate::auth::AuthArgs;
use crate::client::Client;
use crate::outcome::{Failure, Outcome};
use crate::show::{Progress, print};

pub(crate) async fn save(
    global: &Global,
    images: Vec<String>,
    file: &Path,
    auth: &AuthArgs,
) -> Outcome {
    let mut target = Target::open(file)?;
    let credentials = auth.credentials()?;
    let mut client = Client::connect(global).await?;
    let request = ImageSaveRequest { images, credentials };
    let mut answer = client.control.image_save(request).await?.into_inner();
    let mut written = 0_u64;
    let mut progress = target.progress(global, None);
    while let Some(message) = answer.message().await? {
        match message.event {
            Some(Event::Progress(transfer)) => progress.show(transfer),
            Some(Event::Total(total)) => {
                progress.end();
                progress = target.progress(global, Some(total));
            }
            Some(Event::Data(data)) => {
                target.write(&data)?;
                written = written.saturating_add(data.len() as u64);
                let state = "saving".to_owned();
                progress.show(Transfer { state, received: written, ..Transfer::default() });
            }
            Some(Event::Done(_)) => {
                target.finish()?;
                progress.end();
                return match (global.output, file == Path::new("-")) {
                    (Output::Json, false) => {
                        let done = json!({"event": "done", "file": file, "size": written});
                        print(&format!("{done}\n"))
                    }
                    _ => Ok(()),
                };
            }
            None => {}
        }
    }
    Err(cut())
}

/// Standard output, or a file that has its name only once it is whole.
struct Target {
    out: Box<dyn Write>,
    name: String,
    file: Option<Unfinished>,
}

/// A file beside its later name; removed if it never gets that.
struct Unfinished {
    path: PathBuf,
    home: PathBuf,
}

impl Target {
    fn open(path: &Path) -> Outcome<Self> {
        if path == Path::new("-") {
            if io::stdout().is_terminal() {
                let reason = "standard output is a terminal: name a file with --file, or pipe it";
                return Err(Failure::Usage(reason.to_owned()));
            }
            let name = "standard output".to_owned();
            return Ok(Self { out: Box::new(io::stdout()), name, file: None });
        }
        let name = path.display().to_string();
        let base = path.file_name().map(|base| base.to_string_lossy().into_owned());
        let base = base.ok_or_else(|| Failure::Usage(format!("--file: {name:?} is no file")))?;
        if !path.is_file() && path.exists() {
            // A pipe or a device is written to as it is.
            let out = File::options().write(true).open(path);
            let out = out.map_err(|error| Failure::io("open", &name, error))?;
            return Ok(Self { out: Box::new(out), name, file: None });
        }
        let fresh = path.with_file_name(format!(".{base}.{}", std::process::id()));
        let out = File::create(&fresh).map_err(|error| Failure::io("make", &name, error))?;
        let file = Some(Unfinished { path: fresh, home: path.to_owned() });
        Ok(Self { out: Box::new(out), name, file })
    }

    /// JSON goes to standard output, which the archive may need for itself.
    fn progress(&self, global: &Global, length: Option<u64>) -> Progress {
        let alone = self.file.is_none() && global.output == Output::Json;
        if alone { Progress::Quiet } else { Progress::new(global, length) }
    }

    fn write(&mut self, data: &[u8]) -> Outcome {
        self.out.write_all(data).map_err(|error| Failure::io("write to", &self.name, error))
    }

    fn finish(&mut self) -> Outcome {
        self.out.flush().map_err(|error| Failure::io("write to", &self.name, error))?;
        if let Some(file) = self.file.take() {
            let renamed = std::fs::rename(&file.path, &file.home);
            renamed.map_err(|error| Failure::io("rename into place", &self.name, error))?;
            std::mem::forget(file);
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It may have been removed; nothing else can be done about it here.
        let _removed = std::fs::remove_file(&self.path);
    }
}
