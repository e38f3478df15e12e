//! Getting an image's layers: all at once, each in one pass, then fitted from the bottom up.

pub(crate) mod intake;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::try_join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::StoreConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::flight::Flights;
use crate::layers::intake::{Copying, Intake};
use crate::manifest::Descriptor;
use crate::progress::{Board, Entry, LayerState, Meter};
use crate::snapshot;
use crate::store::layer::{LayerHold, LayerKey, LayerRecord, Staging, chain_ids};
use crate::store::{self, Store};
use crate::threads::ThreadSetup;
use crate::unpack::listing::LISTING;
use crate::unpack::{self, Below, Counts, Expected, Facts, Limits, ListingWriter, Piece};

/// Pieces of a blob that wait to be inflated. A piece is one read of a socket, 256 KiB at most.
pub(crate) const PIECES: usize = 8;

/// Layers of one overlay: their names fit one page of mount options.
const MAX_LAYERS: usize = 120;

/// Where blobs come from: a registry or an archive.
pub(crate) trait Blobs: Send + Sync + 'static {
    /// Brings the bytes of `range`, in order; those up to the blob's end, if it can do no less.
    /// That nobody takes them any more is no error.
    fn send(
        self: Arc<Self>,
        blob: Descriptor,
        range: Range<u64>,
        to: &mut Intake,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// What came was not the blob. Whether asking again may bring it, from elsewhere.
    fn distrust(&self, _blob: &Digest) -> bool {
        false
    }

    /// What becomes of a copy of the bytes.
    fn copying(&self) -> Copying;
}

/// Unpacks layers, each once however many ask for it.
pub(crate) struct Layers {
    store: Arc<Store>,
    pub(crate) board: Board,
    flights: Flights<Digest, Result<Arc<Unpacked>, Arc<Error>>>,
    chains: Turns,
    limit: Arc<Semaphore>,
    limits: Limits,
    threads: ThreadSetup,
}

/// A lock for each chain that is being fitted.
#[derive(Default)]
struct Turns(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, chain_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(chain_id).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(chain_id.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// A layer after its own pass.
enum Unpacked {
    /// It stands alone, or was fitted to the same layers before, and is in the store.
    Ready(Vec<Arc<LayerHold>>),
    /// It depends on what lies below it. What it holds is in the store, unless some of it could
    /// not be unpacked without what lies below.
    Open { bulk: Option<Arc<LayerHold>>, facts: Facts },
}

/// One layer of an image, as wanted.
#[derive(Clone)]
struct Wanted {
    blob: Descriptor,
    diff_id: Digest,
    chain_id: Digest,
    meter: Arc<Meter>,
    limits: Limits,
    threads: ThreadSetup,
}

impl Wanted {
    /// What it may be in the store as: standing alone, unpacked for its chain, unpacked without
    /// regard to others, and what completes the latter.
    fn keys(&self) -> [LayerKey; 4] {
        let (diff_id, chain_id) = (&self.diff_id, &self.chain_id);
        [
            LayerKey::Diff(diff_id.clone()),
            LayerKey::Chain(chain_id.clone()),
            LayerKey::Bulk(diff_id.clone()),
            LayerKey::Patch(chain_id.clone()),
        ]
    }
}

impl Layers {
    pub(crate) fn new(store: Arc<Store>, config: &StoreConfig) -> Self {
        Self {
            store,
            board: Board::new(config.write_rate),
            flights: Flights::new(),
            chains: Turns::default(),
            limit: Arc::new(Semaphore::new(config.parallel_layers.max(1))),
            limits: config.limits,
            threads: config.threads.clone(),
        }
    }

    /// Claims on all layers, bottom first. What is not in the store is brought there; dropping
    /// the future stops that.
    pub(crate) async fn all(
        self: Arc<Self>,
        blobs: &Arc<impl Blobs>,
        layers: &[Descriptor],
        diff_ids: &[Digest],
        entry: &Entry,
    ) -> Result<Vec<Arc<LayerHold>>, Error> {
        let wanted: Vec<_> = layers
            .iter()
            .zip(diff_ids.iter().zip(chain_ids(diff_ids)))
            .map(|(blob, (diff_id, chain_id))| Wanted {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                chain_id,
                meter: self.board.meter(diff_id),
                limits: self.limits,
                threads: self.threads.clone(),
            })
            .collect();
        entry.layers(wanted.iter().map(|layer| (layer.blob.clone(), layer.meter.clone())));
        let passes: Vec<_> =
            wanted.iter().map(|layer| self.clone().one(blobs.clone(), layer.clone())).collect();
        let unpacked = try_join_all(passes).await?;
        let mut holds: Vec<Arc<LayerHold>> = Vec::with_capacity(wanted.len());
        // An overlay has room for so many more.
        let mut patches = MAX_LAYERS.saturating_sub(wanted.len());
        for (layer, unpacked) in wanted.iter().zip(unpacked) {
            let fitted = match unpacked.as_ref() {
                Unpacked::Ready(holds) => holds.clone(),
                Unpacked::Open { bulk, facts } => {
                    let open = (bulk.clone().filter(|_| patches > 0), facts);
                    self.fit(blobs, layer, open, &holds).await?
                }
            };
            patches = patches.saturating_sub(fitted.len().saturating_sub(1));
            if !matches!(layer.meter.state(), LayerState::Shared) {
                layer.meter.set(LayerState::Done);
            }
            holds.extend(fitted);
        }
        Ok(holds)
    }

    async fn one(
        self: Arc<Self>,
        blobs: Arc<impl Blobs>,
        layer: Wanted,
    ) -> Result<Arc<Unpacked>, Error> {
        let mut shared = LayerState::Shared;
        for key in layer.keys() {
            self.store.verified(&key).await;
        }
        loop {
            if let Some(unpacked) = self.known(&layer) {
                layer.meter.set(shared);
                return Ok(Arc::new(unpacked));
            }
            let start = || {
                let (store, limit) = (self.store.clone(), self.limit.clone());
                pass(store, limit, blobs.clone(), layer.clone())
            };
            let landed = self.flights.fly(layer.diff_id.clone(), start).await;
            match landed.value {
                Some(Ok(unpacked)) => return Ok(unpacked),
                // Another's registry may have failed where this one's serves.
                Some(Err(_)) | None if landed.joined => shared = LayerState::Done,
                Some(Err(source)) => return Err(named(&layer, source)),
                None => return Err(Error::Cancelled),
            }
        }
    }

    fn known(&self, layer: &Wanted) -> Option<Unpacked> {
        let [alone, chain, bulk, _] = layer.keys();
        if let Some(hold) = self.store.hold(&alone).or_else(|| self.store.hold(&chain)) {
            return Some(Unpacked::Ready(vec![hold]));
        }
        let hold = self.store.hold(&bulk)?;
        let facts = hold.record.open.clone()?;
        Some(Unpacked::Open { bulk: Some(hold), facts })
    }

    /// Fits a layer that does not stand alone to those below it.
    async fn fit(
        &self,
        blobs: &Arc<impl Blobs>,
        layer: &Wanted,
        (bulk, facts): (Option<Arc<LayerHold>>, &Facts),
        below: &[Arc<LayerHold>],
    ) -> Result<Vec<Arc<LayerHold>>, Error> {
        // Two images may want the same; the second finds what the first made.
        let turn = self.chains.of(&layer.chain_id);
        let _turn = turn.lock().await;
        if let Some(hold) = self.store.hold(&LayerKey::Chain(layer.chain_id.clone())) {
            return Ok(vec![hold]);
        }
        let named = |e: Error| named(layer, Arc::new(e));
        if let Some(bulk) = bulk
            && let Some(holds) = self.patch(layer, bulk, facts, below).await.map_err(named)?
        {
            return Ok(holds);
        }
        let below = Some((below.to_vec(), facts.clone()));
        let made = stream(&self.store, &self.limit, blobs, layer, below).await.map_err(named)?;
        let key = LayerKey::Chain(layer.chain_id.clone());
        let hold = commit(&self.store, made, key, layer.diff_id.clone()).await.map_err(named)?;
        Ok(vec![hold])
    }

    /// What was unpacked without regard to others, and above it the directories that its tar left
    /// out, as they are below. `None` where that is not enough.
    async fn patch(
        &self,
        layer: &Wanted,
        bulk: Arc<LayerHold>,
        facts: &Facts,
        below: &[Arc<LayerHold>],
    ) -> Result<Option<Vec<Arc<LayerHold>>>, Error> {
        let [_, _, _, key] = layer.keys();
        self.store.verified(&key).await;
        if let Some(patch) = self.store.hold(&key) {
            return Ok(Some(vec![bulk, patch]));
        }
        let (store, facts, below) = (self.store.clone(), facts.clone(), below.to_vec());
        let lower = bulk.clone();
        let made = blocking(move || patch_into_staging(&store, &lower, &facts, &below)).await?;
        Ok(match made {
            Patched::Needless => Some(vec![bulk]),
            Patched::Impossible => None,
            Patched::Made(made) => {
                let patch = commit(&self.store, *made, key, layer.diff_id.clone()).await?;
                Some(vec![bulk, patch])
            }
        })
    }
}

enum Patched {
    /// Nothing below has the directories that were left out.
    Needless,
    Made(Box<Made>),
    /// The layer must be unpacked with the layers below in view.
    Impossible,
}

fn patch_into_staging(
    store: &Arc<Store>,
    bulk: &LayerHold,
    facts: &Facts,
    below: &[Arc<LayerHold>],
) -> Result<Patched, Error> {
    let view = view(store, below)?;
    let Some(paths) = unpack::missing(facts, &view)? else { return Ok(Patched::Impossible) };
    if paths.is_empty() {
        return Ok(Patched::Needless);
    }
    let from = store::open_dir(&store.layout.layer(&bulk.record.key.short()).join("fs"))?;
    let staging = store.stage()?;
    let root = store::open_dir(&staging.fs())?;
    let mut listing = create_listing(&staging)?;
    let counts = unpack::patch(&root, &from, &paths, &view, &mut listing)?;
    Ok(Patched::Made(Box::new(Made { staging, listing, facts: Facts::default(), counts })))
}

fn create_listing(staging: &Staging) -> Result<ListingWriter, Error> {
    let path = staging.path().join(LISTING);
    Ok(ListingWriter::create(&path).map_err(store::Error::io("make", &path))?)
}

fn named(layer: &Wanted, source: Arc<Error>) -> Error {
    Error::Layer { digest: layer.blob.digest.clone(), source }
}

/// What a pass made, not yet in the store.
struct Made {
    staging: Staging,
    listing: ListingWriter,
    facts: Facts,
    counts: Counts,
}

/// A layer's own pass, as far as it goes without regard to others.
async fn pass(
    store: Arc<Store>,
    limit: Arc<Semaphore>,
    blobs: Arc<impl Blobs>,
    layer: Wanted,
) -> Result<Arc<Unpacked>, Arc<Error>> {
    let made = stream(&store, &limit, &blobs, &layer, None).await.map_err(Arc::new)?;
    let facts = made.facts.clone();
    if facts.needs_below() {
        return Ok(Arc::new(Unpacked::Open { bulk: None, facts }));
    }
    let [alone, _, bulk, _] = layer.keys();
    let key = if facts.stands_alone() { alone } else { bulk };
    let hold = commit(&store, made, key, layer.diff_id.clone()).await.map_err(Arc::new)?;
    if !facts.stands_alone() {
        return Ok(Arc::new(Unpacked::Open { bulk: Some(hold), facts }));
    }
    layer.meter.set(LayerState::Done);
    Ok(Arc::new(Unpacked::Ready(vec![hold])))
}

type BelowHolds = (Vec<Arc<LayerHold>>, Facts);

/// Receives a blob and unpacks it as it comes. Dropping the future closes the channel, at which
/// the unpacking ends by itself and throws away what it made.
async fn stream(
    store: &Arc<Store>,
    limit: &Semaphore,
    blobs: &Arc<impl Blobs>,
    layer: &Wanted,
    below: Option<BelowHolds>,
) -> Result<Made, Error> {
    let _permit = limit.acquire().await.map_err(|_| Error::Cancelled)?;
    loop {
        let mut local = false;
        let made = receive(store, blobs, layer, below.clone(), &mut local).await;
        match made {
            Err(error) if is_not_the_blob(&error) => {
                // Our own copy is the first to be doubted.
                if local {
                    intake::forget(&store.blobs, &layer.blob.digest);
                } else if !blobs.distrust(&layer.blob.digest) {
                    return Err(error);
                }
                tracing::warn!(digest = %layer.blob.digest, %error, "not the blob; asking again");
            }
            other => return other,
        }
    }
}

/// What another copy of the blob may cure.
fn is_not_the_blob(error: &Error) -> bool {
    use unpack::Error as Cause;
    matches!(
        error,
        Error::Unpack(
            Cause::BlobDigest { .. }
                | Cause::BlobSize { .. }
                | Cause::Inflate { .. }
                | Cause::Tar(_)
        )
    )
}

/// One try of [`stream`]. `local` tells whether bytes from this machine's disk went into it.
async fn receive(
    store: &Arc<Store>,
    blobs: &Arc<impl Blobs>,
    layer: &Wanted,
    below: Option<BelowHolds>,
    local: &mut bool,
) -> Result<Made, Error> {
    layer.meter.restart();
    let (sender, receiver) = mpsc::channel(PIECES);
    let expected = Expected {
        blob: layer.blob.digest.clone(),
        blob_size: layer.blob.size,
        diff_id: layer.diff_id.clone(),
        limits: layer.limits,
        meter: layer.meter.clone(),
    };
    let (meter, copying) = (layer.meter.clone(), blobs.copying());
    let mut intake = Intake::new(sender, meter, store.blobs.clone(), layer.blob.clone(), copying);
    let sending = async {
        let sent = fill(store, blobs, &layer.blob, &mut intake).await;
        layer.meter.set(LayerState::Unpacking);
        *local = intake.local;
        sent?;
        Ok::<_, Error>(intake.end().await)
    };
    let (into, threads) = (store.clone(), layer.threads.clone());
    let unpacking = blocking(move || {
        threads.run(move || unpack_into_staging(&into, receiver, &expected, below))?
    });
    let (sent, made) = tokio::join!(sending, unpacking);
    // A failed download cuts the unpacking short: its word counts then. A copy stays, and the
    // next download goes on with it.
    let copied = sent?;
    if let Some(copied) = copied {
        let verified = made.is_ok();
        spawn_blocking(move || copied.settle(verified))
            .await
            .map_err(|e| store::Error::Task(e.to_string()))?;
    }
    made
}

/// Brings all of a blob: from a kept copy, from what an earlier download left, and the rest from
/// where blobs come from.
async fn fill(
    store: &Arc<Store>,
    blobs: &Arc<impl Blobs>,
    blob: &Descriptor,
    to: &mut Intake,
) -> Result<(), Error> {
    if let Some(kept) = store.blobs.open(&blob.digest) {
        let _ = to.replay(kept).await;
        return Ok(());
    }
    if let Some(earlier) = to.earlier().await {
        if earlier.offset > 0 {
            blobs.clone().send(blob.clone(), 0..earlier.offset, to).await?;
        }
        if to.at() != earlier.offset {
            // The source knows no ranges, or has failed.
            earlier.discard();
        } else if to.resume(earlier).await.is_err() {
            return Ok(());
        }
    }
    if to.at() < blob.size || blob.size == 0 {
        blobs.clone().send(blob.clone(), to.at()..blob.size, to).await?;
    }
    Ok(())
}

/// Brings a blob in to be kept whole, without unpacking it. Dropping the future stops that.
pub(crate) async fn keep(
    store: &Arc<Store>,
    blobs: &Arc<impl Blobs>,
    blob: &Descriptor,
    meter: Arc<Meter>,
) -> Result<(), Error> {
    meter.restart();
    let (sender, receiver) = mpsc::channel(PIECES);
    let mut intake =
        Intake::new(sender, meter.clone(), store.blobs.clone(), blob.clone(), Copying::Keep);
    let sending = async {
        fill(store, blobs, blob, &mut intake).await?;
        Ok::<_, Error>(intake.end().await)
    };
    let wanted = blob.clone();
    let reading = blocking(move || unpack::verify_blob(receiver, &wanted.digest, wanted.size));
    let (sent, read) = tokio::join!(sending, reading);
    if let Some(copied) = sent? {
        let verified = read.is_ok();
        blocking(move || {
            copied.settle(verified);
            Ok(())
        })
        .await?;
    }
    read?;
    meter.set(LayerState::Done);
    Ok(())
}

fn unpack_into_staging(
    store: &Arc<Store>,
    pieces: mpsc::Receiver<Piece>,
    expected: &Expected,
    below: Option<BelowHolds>,
) -> Result<Made, Error> {
    let staging = store.stage()?;
    let root = store::open_dir(&staging.fs())?;
    let below = match &below {
        Some((holds, facts)) => Some(Below { view: view(store, holds)?, facts: facts.clone() }),
        None => None,
    };
    let mut listing = create_listing(&staging)?;
    let (facts, counts) = unpack::unpack(pieces, expected, root, &mut listing, below)?;
    Ok(Made { staging, listing, facts, counts })
}

fn view(store: &Store, holds: &[Arc<LayerHold>]) -> Result<snapshot::view::MergedView, Error> {
    let records: Vec<_> = holds.iter().map(|hold| hold.record.clone()).collect();
    let path = store.layout.layers();
    snapshot::merged(store, &records)
        .map_err(store::Error::io("open the layers in", &path))
        .map_err(Error::from)
}

async fn commit(
    store: &Arc<Store>,
    made: Made,
    key: LayerKey,
    diff_id: Digest,
) -> Result<Arc<LayerHold>, Error> {
    let store = store.clone();
    blocking(move || {
        let path = made.staging.path().join(LISTING);
        made.listing.finish().map_err(store::Error::io("write", &path))?;
        let record = LayerRecord::new(key, &diff_id, &made.facts, made.counts, &store.boot_id);
        Ok(store.commit(made.staging, record)?)
    })
    .await
}

/// Runs blocking work on tokio's pool; a panic there becomes an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|e| store::Error::Task(e.to_string()))?
}
