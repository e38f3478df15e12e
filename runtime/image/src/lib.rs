//! From an image reference to a root filesystem.
//!
//! [`ImageStore`] is the way in. Behind it:
//!
//! - `registry/`: which hosts to ask, and asking them.
//! - `manifest`, `platform`: what an image consists of, and which of several fits this machine.
//! - [`policy`]: which images may be used, and whose signatures they need.
//! - `pull`, `archive`: the two ways an image comes in; `progress`: how far it has come.
//! - `layers`, `unpack/`: each layer in one pass from the network to a directory.
//! - `store/`: what is on disk, who needs it, what survives a crash; `heal`, `upkeep`: setting
//!   right what did not.
//! - `snapshot/`: writable layers, and reading from images without mounting them.
//!
//! Nothing here knows of pods or of gRPC.
#![forbid(unsafe_code)]

mod archive;
mod digest;
mod error;
mod export;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod heal;
mod inspect;
mod layers;
mod manifest;
mod pins;
mod platform;
pub mod policy;
mod progress;
mod pull;
mod reference;
mod registry;
mod snapshot;
mod store;
mod threads;
mod unpack;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;

pub use archive::{ImportOptions, LoadOptions, LoadProgress, Loaded, SavedArchive};
pub use digest::{Digest, InvalidDigest};
pub use error::{Error, ErrorKind};
pub use export::{BlobReader, PushOptions, PushReport};
pub use inspect::{Inspection, LayerInspection};
pub use manifest::Error as ManifestError;
pub use oci_spec::image::ImageConfiguration;
pub use progress::{LayerState, LayerStatus, PullState, PullStatus};
pub use reference::{InvalidReference, Reference};
pub use registry::{Chunks, Credentials, Error as RegistryError, Proxies, RegistryConfig, Resume};
pub use snapshot::{Error as SnapshotError, Snapshot};
pub use store::{
    DiskUsage, Error as StoreError, FsUsage, FsckOptions, FsckProgress, FsckReport, GcOptions,
    GcReport, Image, ImageDisk, ImageId, ImageUser, LayerCheck, LayerDisk, LayerHealth, PathDamage,
    Reason, Removed, WritableQuota,
};
pub use threads::ThreadSetup;
pub use unpack::{Error as UnpackError, Limits, Piece, TarError};
pub use upkeep::RepairReport;

use flight::Flights;
use heal::Healer;
use layers::{Layers, blocking};
use pins::Pins;
use policy::Policy;
use registry::Net;
use store::Store;

/// What a store needs to know.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The store's directory, made if need be. One process at a time may have it open.
    pub root: PathBuf,
    /// Layers fetched and unpacked at a time, over all pulls; at least one.
    pub parallel_layers: usize,
    /// Keep the compressed layers of all images, for pushing, saving and repairing offline.
    pub keep_blobs: bool,
    /// Which images may be used.
    pub policy: Arc<Policy>,
    /// Names of images that are pinned; `*` stands for any text.
    pub pinned: Vec<String>,
    /// Where writable layers lie, if not below `root`: it may be on another file system.
    pub writable: Option<PathBuf>,
    /// How damaged layers are fetched again.
    pub registry: RegistryConfig,
    /// Layers compared with their listings at a time after a boot that may have lost data.
    pub parallel_checks: usize,
    /// What tells one boot of the machine from another; the kernel's boot id, if `None`. Tests
    /// give another to a store whose file system was cut off its disk.
    pub boot_id: Option<String>,
    /// What one layer may ask of the machine.
    pub limits: Limits,
    /// Bytes per second that all layers together may be unpacked at; `None`: no bound.
    pub write_rate: Option<u64>,
    /// What each thread that unpacks a layer does first.
    pub threads: ThreadSetup,
    /// What each container may write, where the file system of the writable layers has project
    /// quota. Where it has none, [`prepare`](ImageStore::prepare) fails if this asks for any.
    pub writable_quota: WritableQuota,
}

impl StoreConfig {
    /// A store at `root` with the defaults.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let policy = Arc::new(Policy::default());
        Self {
            root: root.into(),
            parallel_layers: 4,
            keep_blobs: false,
            write_rate: None,
            threads: ThreadSetup::default(),
            policy,
            pinned: Vec::new(),
            writable: None,
            registry: RegistryConfig::default(),
            parallel_checks: 2,
            boot_id: None,
            limits: Limits::default(),
            writable_quota: WritableQuota::default(),
        }
    }
}

/// What a caller may choose for one pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PullOptions {
    /// Keep this image's compressed layers, even if the store's configuration does not. Layers
    /// that are in the store already are not fetched for this.
    pub keep_blobs: bool,
}

type PullKey = (Reference, Option<Credentials>, PullOptions);

/// The images of a node, and what containers have of them.
///
/// All methods may be called at once. Dropping a method's future is safe at every point.
pub struct ImageStore {
    store: Arc<Store>,
    layers: Arc<Layers>,
    policy: Arc<Policy>,
    pins: Pins,
    net: Arc<Net>,
    keep_blobs: bool,
    pulls: Flights<PullKey, Result<ImageId, Arc<Error>>>,
    healer: Arc<Healer>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for ImageStore {
    fn drop(&mut self) {
        self.store.closing.store(true, std::sync::atomic::Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl ImageStore {
    /// Opens the store, whatever lies in its directories. Must be called within a tokio runtime,
    /// whose tasks then do the store's background work. What is damaged is logged; layers that
    /// may not have reached the disk before a power cut are verified and, where they are damaged,
    /// fetched again in the background. Images are listed as far as all their layers are sound.
    pub async fn open(config: StoreConfig) -> Result<Arc<Self>, Error> {
        let store = blocking(move || {
            let writable = config.writable.as_ref().unwrap_or(&config.root);
            let (boot_id, quota) = (config.boot_id.clone(), config.writable_quota);
            let store = Store::open(&config.root, writable, boot_id, quota)?;
            let Resume { max_bytes, max_age, .. } = Resume::default();
            store.blobs.trim_partials(max_bytes, max_age);
            Ok((store, config))
        });
        let (store, config) = store.await?;
        let layers = Arc::new(Layers::new(store.clone(), &config));
        let (policy, pins) = (config.policy, Pins::new(&config.pinned));
        let net = Arc::<Net>::default();
        let healer = Arc::new(Healer {
            store: store.clone(),
            net: net.clone(),
            layers: layers.clone(),
            registry: config.registry,
            parallel: config.parallel_checks,
            failures: std::sync::Mutex::default(),
        });
        let tasks = [tokio::spawn(keep_tidy(store.clone())), tokio::spawn(healer.clone().run())];
        let (pulls, keep_blobs) = (Flights::new(), config.keep_blobs);
        Ok(Arc::new(Self { store, layers, policy, pins, net, keep_blobs, pulls, healer, tasks }))
    }

    /// Pulls an image and returns its id. Equal pulls under way are joined; when the last
    /// caller drops its future, the work stops and leaves nothing. On return the image is
    /// listed; its data becomes durable in the background.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
    ) -> Result<ImageId, Error> {
        self.pull_with(reference, credentials, registry, PullOptions::default()).await
    }

    /// As [`pull`](Self::pull), with options. Pulls are equal only if these are, too.
    pub async fn pull_with(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
        mut options: PullOptions,
    ) -> Result<ImageId, Error> {
        options.keep_blobs |= self.keep_blobs;
        let start = || {
            let pull = pull::Pull {
                store: self.store.clone(),
                layers: self.layers.clone(),
                net: self.net.clone(),
                reference: reference.clone(),
                credentials: credentials.clone(),
                registry: registry.clone(),
                policy: self.policy.clone(),
                options: options.clone(),
            };
            async move { pull.run().await.map_err(Arc::new) }
        };
        let key = (reference.clone(), credentials.clone(), options.clone());
        let landed = self.pulls.fly(key, start).await;
        let result = landed.value.unwrap_or_else(|| Err(Arc::new(Error::Cancelled)));
        result.map_err(|source| Error::Pull { reference: reference.to_string(), source })
    }

    /// Sends an image to a registry under the name `to`, with what is kept of it here and the rest
    /// from where it came. What the registry has is not sent. Shown among [`pulls`](Self::pulls)
    /// under that name. Dropping the future stops it.
    pub async fn push(
        &self,
        image: &Arc<Image>,
        to: &Reference,
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
        options: &PushOptions,
    ) -> Result<PushReport, Error> {
        let entry = self.layers.board.enter(to.to_string());
        let pushed = self.origins(image, credentials, registry).push(to, options, &entry).await;
        let named = |source| Error::Push { reference: to.to_string(), source: Box::new(source) };
        pushed.map_err(named)
    }

    /// One of the image's compressed layers, byte for byte as its registry or archive had it: the
    /// kept blob, or else from a registry that the image came from. `None`, if no layer has this
    /// digest.
    #[must_use]
    pub fn read_layer(
        &self,
        image: &Arc<Image>,
        digest: &Digest,
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
    ) -> Option<BlobReader> {
        let blob = export::layer(image, digest)?;
        Some(self.origins(image, credentials, registry).read(&blob))
    }

    fn origins(
        &self,
        image: &Arc<Image>,
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
    ) -> export::Origins {
        export::Origins {
            store: self.store.clone(),
            net: self.net.clone(),
            image: image.clone(),
            registry: registry.clone(),
            credentials,
        }
    }

    /// The pulls and imports under way, in the order in which they began. Reads counters: cheap
    /// enough to ask ten times a second.
    #[must_use]
    pub fn pulls(&self) -> Vec<PullStatus> {
        self.layers.board.pulls()
    }

    /// Imports the images of an OCI image layout in a tar (not compressed), as far as they fit
    /// this machine, under the names their annotations give. Returns their ids in the archive's
    /// order; on error, images before the failing one have been imported.
    pub async fn import_oci_archive(&self, path: &Path) -> Result<Vec<ImageId>, Error> {
        let (store, layers) = (self.store.clone(), self.layers.clone());
        archive::import(store, layers, path.to_owned()).await.map_err(|source| Error::Import {
            path: path.display().to_string(),
            source: Box::new(source),
        })
    }

    /// Loads the images of an archive (OCI layout or docker-archive; plain, gzip or zstd), as far
    /// as they fit this machine, in the archive's order. Either all are listed, or none.
    /// A stream that closes without [`Piece::End`], or a dropped future, ends it.
    pub async fn load(
        &self,
        pieces: tokio::sync::mpsc::Receiver<Piece>,
        options: LoadOptions,
        progress: Arc<LoadProgress>,
    ) -> Result<Vec<Loaded>, Error> {
        let (store, layers) = (self.store.clone(), self.layers.clone());
        // On the heap: callers hold it together with what feeds it.
        let loaded = Box::pin(archive::load(store, layers, pieces, options, progress)).await;
        loaded.map_err(|source| Error::Load { source: Box::new(source) })
    }

    /// Makes an image with one layer of the tar of a root filesystem, plain or compressed. The
    /// stream is as in [`load`](Self::load).
    pub async fn import(
        &self,
        pieces: tokio::sync::mpsc::Receiver<Piece>,
        options: ImportOptions,
        progress: Arc<LoadProgress>,
    ) -> Result<Loaded, Error> {
        let (store, layers) = (self.store.clone(), self.layers.clone());
        let made = archive::import_rootfs(store, layers, pieces, options, progress).await;
        made.map_err(|source| Error::Load { source: Box::new(source) })
    }

    /// Makes ready an archive of the images that `names` lead to: a tag is saved as such, an id
    /// with all its image's tags. Blobs that are not kept are fetched by digest from where the
    /// images came. Dropping the future leaves nothing.
    pub async fn save(
        &self,
        names: &[String],
        credentials: Option<Credentials>,
        registry: &RegistryConfig,
        progress: &LoadProgress,
    ) -> Result<SavedArchive, Error> {
        let selected = archive::select(&self.store, names)?;
        let held = self.store.blobs.hold(selected.iter().flat_map(|one| one.blobs()).collect());
        let fetch = archive::Fetch {
            store: &self.store,
            board: &self.layers.board,
            credentials,
            registry,
            net: &self.net,
            progress,
        };
        let passing = fetch.all(&selected).await?;
        archive::prepare_save(self.store.clone(), selected, held, passing).await
    }

    /// Gives the image that `name` leads to one more tag, which leaves any other image. Returns
    /// the image's id. A reference by digest is no tag: an error of kind `Invalid`.
    pub async fn tag(&self, name: &str, tag: &Reference) -> Result<ImageId, Error> {
        let image = self.find(name).ok_or_else(|| Error::NoImage { name: name.to_owned() })?;
        if tag.tag().is_none() {
            return Err(Error::NotTag { reference: tag.to_string() });
        }
        let (store, id, tag) = (self.store.clone(), image.id.clone(), tag.to_string());
        blocking(move || {
            store.tag(&id, &tag)?;
            Ok(id)
        })
        .await
    }

    /// All that is known of an image; `None` if there is none of this name.
    pub async fn inspect(&self, name: &str) -> Result<Option<Inspection>, Error> {
        let Some(image) = self.find(name) else { return Ok(None) };
        let store = self.store.clone();
        blocking(move || inspect::inspect(&store, &image).map(Some)).await
    }

    /// All images, one entry per id, ordered by it. Waits for nothing.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.list()
    }

    /// The image of this name: a tag or digest (normalised like docker's), a bare name, an id
    /// with or without `sha256:`, or the beginning of one if only one image's begins so.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.store.find(name)
    }

    /// Whether the image is to be left by whoever makes room. [`remove`](Self::remove) asks
    /// nobody.
    #[must_use]
    pub fn pinned(&self, image: &Image) -> bool {
        self.pins.hold(image)
    }

    /// Whether the image policy lets something be made of this image. `asked` is what the
    /// caller's user calls it (a name, or anything else, which counts for nothing): the rule for
    /// that name decides, without one the rules for all of the image's names.
    pub fn admit(&self, image: &Image, asked: Option<&str>) -> Result<(), Error> {
        let is_id = |name: &str| {
            let hex = name.strip_prefix("sha256:").unwrap_or(name);
            image.id.hex().starts_with(hex)
        };
        let asked = asked.filter(|name| !is_id(name));
        let asked = asked.and_then(|asked| Reference::parse(asked).ok());
        Ok(self.policy.admit(image, asked.as_ref())?)
    }

    /// Removes the image that `name` leads to, with all its names; none is well. Its layers go
    /// when no other image and no container needs them.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let (store, name) = (self.store.clone(), name.to_owned());
        blocking(move || Ok(store.remove(&name)?)).await
    }

    /// What the unpacked layers use, from records: never fails, never waits.
    #[must_use]
    pub fn fs_usage(&self) -> FsUsage {
        self.store.usage()
    }

    /// What all containers have written, from quotas or by walking it: never fails.
    pub async fn writable_usage(&self) -> FsUsage {
        let store = self.store.clone();
        let walk = tokio::task::spawn_blocking(move || store.writable_usage(None));
        walk.await.unwrap_or_else(|_| FsUsage { bytes: 0, inodes: 0, ..self.fs_usage() })
    }

    /// What one container has written; nothing, if it has no writable layer.
    pub async fn snapshot_usage(&self, container: &str) -> Result<FsUsage, Error> {
        let (store, container) = (self.store.clone(), container.to_owned());
        blocking(move || snapshot::usage(&store, &container)).await
    }

    /// Makes the container's writable layer, or finds it again. It and the image's layers stay
    /// until [`release`](Self::release), also over restarts.
    pub async fn prepare(&self, container: &str, image: &Arc<Image>) -> Result<Snapshot, Error> {
        let (store, container, image) = (self.store.clone(), container.to_owned(), image.clone());
        blocking(move || snapshot::prepare(&store, &container, &image)).await
    }

    /// The image's layers, top first and at least two, for mounting it read only in a container that
    /// has a writable layer. They stay until that is released.
    pub async fn lend(&self, container: &str, image: &Arc<Image>) -> Result<Vec<PathBuf>, Error> {
        let (store, container, image) = (self.store.clone(), container.to_owned(), image.clone());
        blocking(move || snapshot::lend(&store, &container, &image)).await
    }

    /// Removes the container's writable layer; one that is not there is well. The overlay must
    /// not be mounted any more.
    pub async fn release(&self, container: &str) -> Result<(), Error> {
        let (store, container) = (self.store.clone(), container.to_owned());
        blocking(move || snapshot::release(&store, &container)).await
    }

    /// The containers that have a writable layer.
    #[must_use]
    pub fn snapshots(&self) -> Vec<String> {
        self.store.snapshots()
    }

    /// Reads a regular file of the image as a container would see it: `None` if there is none,
    /// an error of kind `Invalid` if it is longer than `limit` bytes or no regular file.
    pub async fn read_file(
        &self,
        image: &Arc<Image>,
        path: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (store, image, path) = (self.store.clone(), image.clone(), path.to_owned());
        blocking(move || snapshot::read_file(&store, &image, &path, limit)).await
    }

    /// Waits until all that could be removed is gone and all that was listed before is on disk:
    /// for shutting down, and for tests. An error, if the disk does not take it.
    pub async fn settle(&self) -> Result<(), Error> {
        let store = self.store.clone();
        blocking(move || Ok(store.tidy()?)).await
    }
}

/// Removes and syncs in the background, one round at a time.
async fn keep_tidy(store: Arc<Store>) {
    loop {
        store.untidy.notified().await;
        let round = store.clone();
        // What a round could not do, it has logged.
        if let Err(error) = tokio::task::spawn_blocking(move || round.tidy().is_ok()).await {
            tracing::error!(%error, "the store's background work failed");
        }
    }
}
