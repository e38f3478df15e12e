//! The image crate, in the words of the ports.

use std::path::PathBuf;
use std::sync::Arc;

use berth_image::{ErrorKind, ImageStore};
use berth_proto::ids::ContainerId;

use super::{Image, ImageConfig, Images, Pending, PortError};
use crate::pod::Kind;
use crate::shim::Rootfs;

/// Longer files that name users are refused: nobody has them but to do harm.
const NAMES_LIMIT: u64 = 4 << 20;

impl Images for ImageStore {
    fn ready<'a>(&'a self, name: &'a str) -> Pending<'a, Option<Image>> {
        Box::pin(async move {
            let image = Self::ready(self, name).await.map_err(failed)?;
            Ok(image.map(|image| told(&image)))
        })
    }

    fn admit(&self, image: &Image, asked: &str) -> Result<(), PortError> {
        Self::admit(self, &*known(self, image)?, Some(asked)).map_err(failed)
    }

    fn prepare<'a>(&'a self, container: &'a ContainerId, image: &'a Image) -> Pending<'a, Rootfs> {
        Box::pin(async move {
            let found = known(self, image)?;
            let made = Self::prepare(self, container.as_str(), &found).await.map_err(failed)?;
            Ok(Rootfs { lower: made.lower, upper: made.upper, work: made.work })
        })
    }

    fn lend<'a>(
        &'a self,
        container: &'a ContainerId,
        image: &'a Image,
    ) -> Pending<'a, Vec<PathBuf>> {
        Box::pin(async move {
            let found = known(self, image)?;
            Self::lend(self, container.as_str(), &found).await.map_err(failed)
        })
    }

    fn release<'a>(&'a self, container: &'a str) -> Pending<'a, ()> {
        Box::pin(async move { Self::release(self, container).await.map_err(failed) })
    }

    fn snapshots(&self) -> Vec<String> {
        Self::snapshots(self)
    }

    fn read_file<'a>(&'a self, image: &'a Image, path: &'a str) -> Pending<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            let found = known(self, image)?;
            Self::read_file(self, &found, path, NAMES_LIMIT).await.map_err(failed)
        })
    }
}

fn known(store: &ImageStore, image: &Image) -> Result<Arc<berth_image::Image>, PortError> {
    ImageStore::find(store, &image.id).ok_or_else(|| PortError {
        kind: Kind::NotFound,
        source: format!("image {} was removed meanwhile", image.id).into(),
    })
}

fn failed(error: berth_image::Error) -> PortError {
    let kind = match error.kind() {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::Invalid => Kind::Invalid,
        ErrorKind::Refused => Kind::Refused,
        ErrorKind::NotReady => Kind::NotReady,
        _ => Kind::Internal,
    };
    PortError { kind, source: error.report().to_string().into() }
}

fn told(image: &berth_image::Image) -> Image {
    let id = image.id.to_string();
    let config = image.config.config().as_ref();
    let list = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
    let text = |text: Option<&Option<String>>| text.cloned().flatten().unwrap_or_default();
    Image {
        reference: image.repo_digests.first().map_or_else(|| id.clone(), ToString::to_string),
        id,
        config: ImageConfig {
            user: text(config.map(|c| c.user())),
            env: list(config.map(|c| c.env())),
            entrypoint: list(config.map(|c| c.entrypoint())),
            cmd: list(config.map(|c| c.cmd())),
            working_dir: text(config.map(|c| c.working_dir())),
            stop_signal: text(config.map(|c| c.stop_signal())),
        },
    }
}
