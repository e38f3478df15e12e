//! The composition root. One daemon's life in five stages, each a function that hands the next
//! what it made:
//!
//! ```text
//! claim    its directories and its socket are this daemon's alone
//! build    image store, networks, metrics
//! recover  records + shims + kernel -> pods; images to preload
//! serve    CRI over the socket, until a signal
//! drain    requests under way end; pods stay as they are
//! ```

mod attachments;
mod endpoint;
mod lock;
mod notify;
mod policy;
mod preload;
mod pulls;
mod scrape;
mod signals;
#[cfg(test)]
pub(crate) mod test_dir;

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use berth_image::{ImageStore, StoreConfig, WritableQuota};
use berth_network::{BridgeConfig, NetworkConfig, Networks};
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::{Builtin, Config};
use crate::control;
use crate::cri::{self, Front};
use crate::metrics::Metrics;
use crate::pod::{self, Options, Roster};
use crate::shim::Hierarchies;
use crate::stats::Stats;
use crate::stream::{self, Streams};
use endpoint::Endpoint;
use lock::Lock;
use signals::Signals;

/// How long requests under way may still take after a signal. systemd waits for 90 s.
const DRAIN: Duration = Duration::from_secs(20);
/// Requests at once on one connection; kubelet has one connection.
const STREAMS: u32 = 1024;

/// Why the daemon could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory is another daemon's.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The socket can't be had.
    #[error("CRI socket")]
    Endpoint(#[from] endpoint::Error),
    /// Signals can't be listened for.
    #[error("listen for signals")]
    Signals(#[source] io::Error),
    /// The image store can't be opened.
    #[error("open the image store: {}", .0.report())]
    Images(berth_image::Error),
    /// The image policy can't be kept.
    #[error("image policy")]
    Policy(#[from] policy::Error),
    /// Layers can't be unpacked where they are to be.
    #[error(transparent)]
    Pulls(#[from] pulls::Error),
    /// The networks can't be opened.
    #[error("open the networks")]
    Networks(#[from] berth_network::Error),
    /// The cgroup hierarchies can't be found.
    #[error("find the cgroup hierarchies")]
    Stats(#[source] io::Error),
    /// The metrics can't be registered.
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The pods of an earlier life can't be read.
    #[error("recover pods")]
    Recover(#[from] pod::Error),
    /// Streams can't be served.
    #[error(transparent)]
    Stream(#[from] stream::Error),
    /// The address of the metrics can't be had.
    #[error("serve metrics on {address}")]
    Scrape {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("serve CRI")]
    Serve(#[from] tonic::transport::Error),
    /// The socket could not be handed to the server.
    #[error("listen on the CRI socket")]
    Listen(#[source] io::Error),
}

/// Runs a daemon until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let mut signals = Signals::install().map_err(Error::Signals)?;
    let config = Arc::new(config);
    let claim = claim(&config)?;
    let start = async { recover(&config, build(&config).await?).await };
    let (front, streams) = tokio::select! {
        ready = Box::pin(start) => ready?,
        () = signals.stop() => {
            claim.endpoint.remove();
            return Ok(());
        }
    };
    serve(&front, &claim.endpoint, streams, &mut signals).await?;
    drain(&front, claim).await;
    Ok(())
}

/// What no other daemon may have at the same time.
struct Claim {
    endpoint: Endpoint,
    _root: Lock,
    _state: Lock,
}

fn claim(config: &Config) -> Result<Claim, Error> {
    let root = Lock::take(&config.root)?;
    let state = Lock::take(&config.state)?;
    let endpoint = Endpoint::claim(&config.cri.socket)?;
    Ok(Claim { endpoint, _root: root, _state: state })
}

/// The parts that pods are made with, and the door for streams.
struct Parts {
    streams: (Arc<Streams>, TcpListener),
    images: Arc<ImageStore>,
    networks: Arc<Networks>,
    metrics: Arc<Metrics>,
}

async fn build(config: &Config) -> Result<Parts, Error> {
    let below = config.root.join("image");
    let threads = config.image.pull_cgroup.as_deref().map(|cgroup| {
        let hierarchies = Hierarchies::probe().map_err(Error::Stats)?;
        Ok::<_, Error>(pulls::setup(hierarchies, cgroup)?)
    });
    let images = ImageStore::open(StoreConfig {
        threads: threads.transpose()?.unwrap_or_default(),
        policy: Arc::new(policy::load(&config.image.policy)?),
        pinned: config.image.pinned.clone(),
        registry: config.registry.of_store(),
        limits: config.image.limits.of_store(),
        keep_blobs: config.image.keep_blobs,
        write_rate: Some(config.image.write_mib_per_second)
            .filter(|rate| *rate > 0)
            .map(|rate| rate.saturating_mul(1 << 20)),
        writable: Some(below.clone()),
        writable_quota: WritableQuota {
            mib: config.image.rw_quota_mib,
            inodes: config.image.rw_quota_inodes,
        },
        ..StoreConfig::new(config.image.root.clone().unwrap_or(below))
    });
    let networks = Networks::open(NetworkConfig {
        conf_dir: config.network.conf_dir.clone(),
        bin_dirs: config.network.bin_dirs.clone(),
        cache_dir: config.root.join("cni"),
        plugin_deadline: NetworkConfig::PLUGIN_DEADLINE,
        builtin: config.network.builtin == Builtin::Bridge,
        bridge: BridgeConfig {
            name: config.network.bridge_name.clone(),
            subnets: config.network.bridge_subnets.clone(),
        },
    });
    Ok(Parts {
        streams: Streams::bind(&config.stream).await?,
        images: images.await.map_err(Error::Images)?,
        networks: Arc::new(networks.await?),
        metrics: Arc::new(Metrics::new()?),
    })
}

async fn recover(config: &Arc<Config>, parts: Parts) -> Result<(Arc<Front>, TcpListener), Error> {
    let options = Options {
        root: config.root.clone(),
        state: config.state.clone(),
        shim_binary: config.shim.binary.clone(),
        shim_cgroup: config.shim.cgroup.clone(),
        default_cgroup_parent: config.cgroup.default_parent.clone(),
    };
    let roster = Roster::open(options, parts.images.clone(), parts.networks.clone()).await?;
    if let Some(dir) = &config.image.preload {
        preload::import(&parts.images, dir).await;
    }
    let Parts { streams: (streams, listener), images, networks, metrics } = parts;
    let registry = config.registry.of_store();
    let config = Arc::clone(config);
    let stats = Arc::new(Stats::open().map_err(Error::Stats)?);
    let front = Front { roster, streams, images, registry, networks, stats, metrics, config };
    Ok((Arc::new(front), listener))
}

/// Returns after a signal, when the last request has been answered or [`DRAIN`] is over.
async fn serve(
    front: &Arc<Front>,
    endpoint: &Endpoint,
    streams: TcpListener,
    signals: &mut Signals,
) -> Result<(), Error> {
    let connections = UnixListenerStream::new(endpoint.listener().map_err(Error::Listen)?);
    let (runtime, image) = cri::services(Arc::clone(front));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .layer(cri::Deadlines)
        .add_service(runtime)
        .add_service(image)
        .add_service(control::service(Arc::clone(front)))
        .serve_with_incoming_shutdown(connections, async { drop(stopped.await) });
    notify::ready();
    tracing::info!(socket = %front.config.cri.socket.display(), "serving");
    let deadline = async {
        signals.stop().await;
        notify::stopping();
        tracing::info!("draining: pods stay as they are");
        let _server_ended = stop.send(());
        tokio::time::sleep(DRAIN).await;
    };
    let scrapes = scrapes(front).await?;
    let every = NonZero::new(front.config.network.gc_minutes)
        .map(|minutes| Duration::from_secs(minutes.get().saturating_mul(60)));
    tokio::select! {
        () = scrapes => {}
        () = attachments::tend(&front.networks, every) => {}
        () = front.streams.serve(streams, &front.roster) => {}
        served = server => served?,
        () = deadline => tracing::warn!(after = ?DRAIN, "requests are cut off"),
    }
    Ok(())
}

/// A future that answers scrapes for ever, or just waits where no address is configured.
async fn scrapes(front: &Arc<Front>) -> Result<impl Future<Output = ()>, Error> {
    let listener = match front.config.metrics.address {
        None => None,
        Some(address) => {
            let failed = |source| Error::Scrape { address, source };
            Some(scrape::bind(address).await.map_err(failed)?)
        }
    };
    Ok(async move {
        match listener {
            Some(listener) => scrape::serve(listener, front).await,
            None => std::future::pending().await,
        }
    })
}

async fn drain(front: &Front, claim: Claim) {
    claim.endpoint.remove();
    let parts = async {
        front.roster.drain().await;
        front.networks.close().await;
        if let Err(error) = front.images.settle().await {
            tracing::warn!(error = error.report(), "the image store is tidied at the next start");
        }
    };
    if tokio::time::timeout(DRAIN, parts).await.is_err() {
        tracing::warn!(after = ?DRAIN, "work is cut off; the next start finishes or undoes it");
    }
}
