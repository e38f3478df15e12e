//! Images: from a real registry to a root filesystem, and what goes wrong on the way.
#![forbid(unsafe_code)]

mod confined;
mod faults;
mod formats;
mod layers;
mod leaving;
mod names;
mod registries;
mod signed;
mod usage;
mod volumes;

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Built, Image, Layer};
use berth_tests::prelude::*;
use berth_tests::tar::Entry;
use serde_json::json;

pub(crate) fn spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..Default::default() }
}

pub(crate) async fn find(node: &Node, name: &str) -> Result<Option<berth_proto::cri::Image>> {
    let request = ImageStatusRequest { image: Some(spec(name)), verbose: false };
    Ok(node.cri().image_status(request).await?.image)
}

pub(crate) async fn try_pull(node: &Node, name: &str) -> Result<String, tonic::Status> {
    let request = PullImageRequest { image: Some(spec(name)), ..Default::default() };
    Ok(node.cri().pull_image(request).await?.image_ref)
}

pub(crate) async fn remove(node: &Node, name: &str) -> Result<()> {
    node.cri().remove_image(RemoveImageRequest { image: Some(spec(name)) }).await?;
    Ok(())
}

pub(crate) async fn list(node: &Node) -> Result<Vec<berth_proto::cri::Image>> {
    Ok(node.cri().list_images(ListImagesRequest::default()).await?.images)
}

/// A layer with one file.
pub(crate) fn file_layer(path: &str, text: &str) -> Result<Layer> {
    Layer::new(&[Entry::file(path, text)])
}

/// busybox with a file that makes it this test's own.
pub(crate) fn own_image(mark: &str) -> Result<Image> {
    let image = Image::new(vec![busybox_layer()?, file_layer("mark", mark)?]);
    Ok(image.config(json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]})))
}

/// What a shell script prints in a container of this image.
pub(crate) async fn output(node: &Node, image: &str, script: &str) -> Result<String> {
    let pod = node.pod(&format!("p{}", image.replace([':', '/', '@', '.'], "-"))).await?;
    let mut config = shell("main", script);
    config.image = Some(spec(image));
    let text = node.output(&pod, config).await;
    node.remove_pod(&pod.id).await?;
    text
}

pub(crate) fn push(node: &Node, repository: &str, tag: &str, image: &Built) -> Result<String> {
    node.registry().push(repository, tag, image)?;
    Ok(node.image(&format!("{repository}:{tag}")).image)
}

/// Text that packs badly, the same each time.
pub(crate) fn noise(bytes: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text.truncate(bytes);
    text
}
