//! `berthctl image ...`

use berth_proto::control::{
    ImageInspectRequest, ImagePullRequest, ImagePushRequest, ImageTagRequest, ImportOptions,
    image_push_response,
};
use berth_proto::control::{Pulled, image_pull_response};
use berth_proto::cri;
use serde_json::{Value, json};
use tonic::Status;

use crate::args::{Global, Image, Output};
use crate::auth::AuthArgs;
use crate::client::Client;
use crate::outcome::Outcome;
use crate::show::{Progress, human, print, table};
use crate::{archive, save};

pub(crate) async fn run(global: &Global, command: Image) -> Outcome {
    match command {
        Image::Pull { reference, auth } => pull(global, reference, &auth).await,
        Image::List { name, ids } => list(global, name, ids).await,
        Image::Inspect { names } => inspect(global, names).await,
        Image::Remove { names } => remove(global, names).await,
        Image::Tag { image, name } => tag(global, image, name).await,
        Image::Load { file, repository } => archive::load(global, &file, repository).await,
        Image::Save { names, file, auth } => save::save(global, names, &file, &auth).await,
        Image::Push { image, to, auth } => push(global, image, to, &auth).await,
        Image::Import { file, name, change, message } => {
            let options = ImportOptions { tag: name.unwrap_or_default(), changes: change, message };
            archive::import(global, &file, options).await
        }
    }
}

async fn pull(global: &Global, reference: String, auth: &AuthArgs) -> Outcome {
    use image_pull_response::Event;
    let credentials = auth.credentials()?;
    let mut client = Client::connect(global).await?;
    let request = ImagePullRequest { reference, credentials };
    let mut answer = client.control.image_pull(request).await?.into_inner();
    let mut progress = Progress::new(global, None);
    while let Some(message) = answer.message().await? {
        match message.event {
            Some(Event::Progress(transfer)) => progress.show(transfer),
            Some(Event::Done(Pulled { id, reference })) => {
                progress.end();
                return match global.output {
                    Output::Table => print(&format!("{id}\n")),
                    Output::Json => {
                        let done = json!({"event": "done", "reference": reference, "id": id});
                        print(&format!("{done}\n"))
                    }
                };
            }
            None => {}
        }
    }
    Err(archive::cut())
}

async fn push(global: &Global, image: String, to: Option<String>, auth: &AuthArgs) -> Outcome {
    use image_push_response::Event;
    let credentials = auth.credentials()?;
    let mut client = Client::connect(global).await?;
    let request = ImagePushRequest { image, to: to.unwrap_or_default(), credentials };
    let mut answer = client.control.image_push(request).await?.into_inner();
    let mut progress = Progress::new(global, None);
    while let Some(message) = answer.message().await? {
        match message.event {
            Some(Event::Progress(transfer)) => progress.show(transfer),
            Some(Event::Done(done)) => {
                progress.end();
                return match global.output {
                    Output::Table => print(&format!("{}\n", done.digest)),
                    Output::Json => {
                        let done = json!({
                            "event": "done", "reference": done.reference, "digest": done.digest,
                            "sent": done.sent, "mounted": done.mounted, "present": done.present,
                        });
                        print(&format!("{done}\n"))
                    }
                };
            }
            None => {}
        }
    }
    Err(archive::cut())
}

fn spec(name: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() })
}

async fn list(global: &Global, name: Option<String>, ids: bool) -> Outcome {
    let mut client = Client::connect(global).await?;
    let filter = name.as_deref().map(|name| cri::ImageFilter { image: spec(name) });
    let request = cri::ListImagesRequest { filter };
    let images = client.images.list_images(request).await?.into_inner().images;
    match (ids, global.output) {
        (true, Output::Table) => {
            print(&images.iter().fold(String::new(), |text, image| text + &image.id + "\n"))
        }
        (_, Output::Json) => print(&format!("{}\n", Value::from_iter(images.iter().map(document)))),
        (false, Output::Table) => print(&rows(&images)),
    }
}

fn document(image: &cri::Image) -> Value {
    json!({
        "id": image.id, "tags": image.repo_tags, "digests": image.repo_digests,
        "size": image.size, "pinned": image.pinned,
    })
}

/// One row per tag; an image without any has one, too.
fn rows(images: &[cri::Image]) -> String {
    let mut rows = vec![["IMAGE", "ID", "SIZE"].map(str::to_owned)];
    for image in images {
        let hex = image.id.split_once(':').map_or("", |(_, hex)| hex);
        let id: String = hex.chars().take(12).collect();
        let nameless = || image.repo_digests.first().cloned().unwrap_or("<none>".to_owned());
        let names = match image.repo_tags.as_slice() {
            [] => vec![nameless()],
            tags => tags.to_vec(),
        };
        rows.extend(names.into_iter().map(|name| [name, id.clone(), human(image.size)]));
    }
    table(&rows)
}

async fn inspect(global: &Global, names: Vec<String>) -> Outcome {
    let mut client = Client::connect(global).await?;
    let mut documents = Vec::with_capacity(names.len());
    for image in names {
        let found = client.control.image_inspect(ImageInspectRequest { image }).await?;
        documents.push(crate::show::inspection(&found.into_inner()));
    }
    let document = Value::from(documents);
    match global.output {
        Output::Table => print(&format!("{document:#}\n")),
        Output::Json => print(&format!("{document}\n")),
    }
}

async fn remove(global: &Global, names: Vec<String>) -> Outcome {
    let mut client = Client::connect(global).await?;
    for name in names {
        // CRI's own RemoveImage takes what is not there for removed.
        let request = cri::ImageStatusRequest { image: spec(&name), verbose: false };
        let found = client.images.image_status(request).await?.into_inner().image;
        let Some(image) = found else {
            return Err(Status::not_found(format!("no image {name:?}")).into());
        };
        let request = cri::RemoveImageRequest { image: spec(&image.id) };
        client.images.remove_image(request).await?;
        match global.output {
            Output::Table => {
                let names = image.repo_tags.iter().map(|tag| format!("removed {tag}\n"));
                print(&names.chain([format!("removed {}\n", image.id)]).collect::<String>())?;
            }
            Output::Json => {
                let done = json!({"event": "removed", "id": image.id, "tags": image.repo_tags});
                print(&format!("{done}\n"))?;
            }
        }
    }
    Ok(())
}

async fn tag(global: &Global, image: String, tag: String) -> Outcome {
    let mut client = Client::connect(global).await?;
    let done = client.control.image_tag(ImageTagRequest { image, tag }).await?.into_inner();
    match global.output {
        Output::Table => print(&format!("{}\n", done.tag)),
        Output::Json => {
            print(&format!("{}\n", json!({"event": "done", "id": done.id, "tag": done.tag})))
        }
    }
}
