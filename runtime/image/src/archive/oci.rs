//! OCI image layouts.
//!
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>. Docker writes such
//! tars too (`docker save` since version 25).

use std::collections::BTreeMap;

use super::{LoadOptions, MAX_DEPTH, Members, Plan, archive_error, docker};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Descriptor, Document, IndexEntry, MAX_CONFIG, MAX_MANIFEST, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;

pub(super) const INDEX: &str = "index.json";
/// Where whole names stand, the better first.
pub(super) const NAME: &str = "io.containerd.image.name";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The images that the index names and that fit this machine, each once with all its names.
pub(super) fn plans(members: &Members, options: &LoadOptions) -> Result<Vec<Plan>, Error> {
    let bytes = members.read(INDEX, MAX_MANIFEST)?;
    let digest = Digest::of(&bytes);
    let entries = match manifest::parse(&digest, manifest::OCI_INDEX, &bytes)? {
        Document::Index(entries) => entries,
        Document::Manifest(_) => return Err(archive_error(format!("{INDEX} is no index"))),
    };
    let docker_names = docker::names_by_config(members)?;
    let host = Platform::host();
    let fits = |entry: &&IndexEntry| entry.platform.as_ref().is_none_or(|p| host.rank(p).is_some());
    let mut plans: Vec<Plan> = Vec::new();
    for entry in entries.iter().filter(fits) {
        let mut plan = plan(members, entry, options)?;
        if plan.names.is_empty()
            && let Some(names) = docker_names.get(&plan.manifest.config.digest)
        {
            plan.names.clone_from(names);
        }
        match plans.iter_mut().find(|known| known.manifest.digest == plan.manifest.digest) {
            Some(known) => known.add_names(plan.names),
            None => plans.push(plan),
        }
    }
    if plans.is_empty() {
        // Says which platforms there are.
        manifest::choose(&digest, &entries, &host)?;
        return Err(archive_error("names no image".to_owned()));
    }
    Ok(plans)
}

fn plan(members: &Members, entry: &IndexEntry, options: &LoadOptions) -> Result<Plan, Error> {
    let (manifest, manifest_bytes) = choose(members, entry.descriptor.clone())?;
    let config_bytes = document(members, &manifest.config, MAX_CONFIG)?;
    let mut blobs = std::collections::HashMap::new();
    for layer in &manifest.layers {
        // Whether it is there is asked when it is needed: it may be in the store already.
        if let Ok(place) = members.find(&member(&layer.digest)) {
            blobs.insert(layer.digest.clone(), place.clone());
        }
    }
    let names = name(&entry.annotations, options).into_iter().collect();
    let pin = Some(entry.descriptor.digest.clone());
    Ok(Plan { names, pin, manifest, manifest_bytes, config_bytes, blobs })
}

/// The image's name. A mere tag, which the layout's specification allows, names no repository
/// but the one that the caller may have given; without it the image has no name.
fn name(annotations: &BTreeMap<String, String>, options: &LoadOptions) -> Option<Reference> {
    let whole = |key| annotations.get(key).filter(|name| name.contains(['/', ':']));
    let repository = options.repository.as_deref().filter(|name| !name.is_empty());
    let text = match (whole(NAME).or_else(|| whole(REF_NAME)), repository) {
        (Some(name), _) => name.clone(),
        (None, Some(repository)) => match annotations.get(REF_NAME) {
            Some(tag) => format!("{repository}:{tag}"),
            None => repository.to_owned(),
        },
        (None, None) => return None,
    };
    Reference::parse(&text)
        .inspect_err(|error| tracing::warn!(%error, "loaded without a name"))
        .ok()
}

/// Follows indexes to the manifest for this machine.
fn choose(members: &Members, mut at: Descriptor) -> Result<(Manifest, Vec<u8>), Error> {
    for _ in 0..MAX_DEPTH {
        let bytes = document(members, &at, MAX_MANIFEST)?;
        match manifest::parse(&at.digest, &at.media_type, &bytes)? {
            Document::Manifest(manifest) => return Ok((manifest, bytes)),
            Document::Index(entries) => {
                let entry = manifest::choose(&at.digest, &entries, &Platform::host())?;
                at = entry.descriptor.clone();
            }
        }
    }
    Err(manifest::Error::TooDeep { digest: at.digest }.into())
}

/// A small blob, verified.
fn document(members: &Members, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
    let name = member(&blob.digest);
    let bytes = members.read(&name, limit)?;
    let mut hasher = blob.digest.hasher();
    hasher.update(&bytes);
    let actual = hasher.finish();
    if actual == blob.digest {
        return Ok(bytes);
    }
    Err(archive_error(format!("{name} holds {actual}")))
}

/// `blobs/sha256/HEX`
pub(super) fn member(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}
