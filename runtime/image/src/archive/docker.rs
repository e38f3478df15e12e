//! docker-archive: what `docker save` has written since 1.10.
//!
//! <https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format>
//!
//! Such an archive has no manifest in a registry's sense. One is made of what it has: the same
//! archive gives the same manifest.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Value, json};

use super::members::Place;
use super::{Members, Plan, archive_error};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Document, MAX_CONFIG, MAX_MANIFEST, Manifest, OCI_MANIFEST};
use crate::reference::Reference;
use crate::unpack;

pub(super) const MANIFEST: &str = "manifest.json";
const REPOSITORIES: &str = "repositories";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images that `manifest.json` lists.
pub(super) fn plans(members: &Members) -> Result<Vec<Plan>, Error> {
    let items = items(members)?;
    if items.is_empty() {
        return Err(archive_error("names no image".to_owned()));
    }
    let repositories = repositories(members)?;
    items.iter().map(|item| plan(members, item, &repositories)).collect()
}

/// The names that `manifest.json` gives, if there is one, by the configuration's digest. For
/// layouts that say no names elsewhere.
pub(super) fn names_by_config(members: &Members) -> Result<HashMap<Digest, Vec<Reference>>, Error> {
    if !members.has(MANIFEST) {
        return Ok(HashMap::new());
    }
    let mut names = HashMap::new();
    for item in items(members)? {
        let config = members.read(&item.config, MAX_CONFIG)?;
        names.insert(Digest::of(&config), tags(item.repo_tags.iter().flatten())?);
    }
    Ok(names)
}

fn items(members: &Members) -> Result<Vec<Item>, Error> {
    let bytes = members.read(MANIFEST, MAX_MANIFEST)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| archive_error(format!("{MANIFEST} is not valid: {error}")))
}

type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// Repository -> tag -> the name of its image's top layer: how names were told before
/// `manifest.json` had them.
fn repositories(members: &Members) -> Result<Repositories, Error> {
    if !members.has(REPOSITORIES) {
        return Ok(Repositories::new());
    }
    let bytes = members.read(REPOSITORIES, MAX_MANIFEST)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| archive_error(format!("{REPOSITORIES} is not valid: {error}")))
}

fn plan(members: &Members, item: &Item, repositories: &Repositories) -> Result<Plan, Error> {
    let config_bytes = members.read(&item.config, MAX_CONFIG)?;
    let mut blobs = HashMap::new();
    let mut layers = Vec::new();
    for name in item.layers.iter().flatten() {
        let place = members.find(name)?;
        layers.push(layer(place)?);
        blobs.insert(place.digest()?, place.clone());
    }
    let (manifest, manifest_bytes) = manifest_of(&config_bytes, layers)?;
    let mut names = tags(item.repo_tags.iter().flatten())?;
    if names.is_empty() {
        names = old_names(item, repositories)?;
    }
    Ok(Plan { names, pin: None, manifest, manifest_bytes, config_bytes, blobs })
}

/// The descriptor of a layer that came without a manifest.
pub(super) fn layer(place: &Place) -> Result<Value, Error> {
    let digest = place.digest()?;
    Ok(json!({
        "mediaType": layer_type(place)?, "digest": digest.as_str(), "size": place.length,
    }))
}

/// A manifest of these layers and this configuration, with its very bytes.
pub(super) fn manifest_of(
    config_bytes: &[u8],
    layers: Vec<Value>,
) -> Result<(Manifest, Vec<u8>), Error> {
    let config = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest::of(config_bytes).as_str(), "size": config_bytes.len(),
    });
    let made = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
    });
    let bytes = made.to_string().into_bytes();
    match manifest::parse(&Digest::of(&bytes), OCI_MANIFEST, &bytes)? {
        Document::Manifest(manifest) => Ok((manifest, bytes)),
        Document::Index(_) => Err(archive_error(format!("{MANIFEST} makes no image"))),
    }
}

fn layer_type(place: &Place) -> Result<&'static str, Error> {
    Ok(match unpack::format_of(&place.head()?) {
        "gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    })
}

fn old_names(item: &Item, repositories: &Repositories) -> Result<Vec<Reference>, Error> {
    let top = item.layers.iter().flatten().next_back();
    let top = top.and_then(|layer| layer.strip_suffix("/layer.tar"));
    let found = repositories.iter().flat_map(|(repository, tags)| {
        let here = tags.iter().filter(|(_, layer)| Some(layer.as_str()) == top);
        here.map(move |(tag, _)| format!("{repository}:{tag}"))
    });
    tags(found)
}

fn tags(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Reference>, Error> {
    texts.into_iter().map(|text| Ok(Reference::parse(text.as_ref())?)).collect()
}
