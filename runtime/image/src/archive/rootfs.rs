//! The tar of a root filesystem becomes an image of one layer.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::members::{self, Place};
use super::progress::LoadProgress;
use super::{Loaded, Members, Plan, archive_error, change, docker, list, unpack};
use crate::digest::Digest;
use crate::error::Error;
use crate::layers::{Layers, blocking};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Store;
use crate::unpack::{Piece, diff_id};

/// What the image is to be like.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its name, with a tag; it may have none.
    pub tag: Option<Reference>,
    /// Dockerfile instructions for its configuration: `CMD ["sh"]`, `ENV A=b`.
    pub changes: Vec<String>,
    /// The comment of its history.
    pub message: String,
    /// When it was made, as RFC 3339 has it.
    pub created: String,
}

/// Makes the image. Its blob is the stream as it came; it is kept, as it is nowhere else.
pub(crate) async fn import(
    store: Arc<Store>,
    layers: Arc<Layers>,
    pieces: mpsc::Receiver<Piece>,
    options: ImportOptions,
    progress: Arc<LoadProgress>,
) -> Result<Loaded, Error> {
    let config = settings(&options.changes)?;
    let from = store.clone();
    let shown = progress.clone();
    let (members, plan) = blocking(move || {
        let (members, place) = Members::receive_whole(&from, pieces, &shown)?;
        shown.complete();
        let plan = plan(&place, config, options)?;
        Ok((Arc::new(members), plan))
    })
    .await?;
    let digests = plan.blobs.keys().cloned().collect();
    let _kept = store.blobs.hold(digests);
    let holds = unpack(&layers, &members, &plan, &progress).await?;
    blocking(move || list(&store, plan, &holds, &members)).await
}

fn settings(changes: &[String]) -> Result<Map<String, Value>, Error> {
    let mut config = Map::new();
    for text in changes {
        change::apply(&mut config, text).map_err(|reason| Error::Archive { reason })?;
    }
    Ok(config)
}

fn plan(place: &Place, config: Map<String, Value>, options: ImportOptions) -> Result<Plan, Error> {
    if place.length == 0 {
        return Err(archive_error("is empty".to_owned()));
    }
    let diff_id = diff_id(members::buffered(place.open()?))?;
    let Platform { os, architecture, .. } = Platform::host();
    let comment = match options.message.as_str() {
        "" => "imported from a root filesystem",
        message => message,
    };
    let made = json!({
        "architecture": architecture, "os": os, "created": options.created, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
        "history": [{"created": options.created, "comment": comment}],
    });
    let config_bytes = made.to_string().into_bytes();
    let layer = docker::layer(place)?;
    let digest: Digest = place.digest()?;
    let blobs = HashMap::from([(digest, place.clone())]);
    let (manifest, manifest_bytes) = docker::manifest_of(&config_bytes, vec![layer])?;
    let names = options.tag.into_iter().collect();
    Ok(Plan { names, pin: None, manifest, manifest_bytes, config_bytes, blobs })
}
