//! How far the pulls under way have come: counters that the work moves and anyone may read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::registry::Budget;

/// A pull or import under way, as it stood at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullStatus {
    /// What is pulled, normalised; the archive's path for an import.
    pub reference: String,
    /// What it is at.
    pub state: PullState,
    /// Since it began.
    pub age: Duration,
    /// Since a byte came or a layer's state changed; a pull that hangs shows here.
    pub idle: Duration,
    /// Bottom first; empty until the manifest is known.
    pub layers: Vec<LayerStatus>,
}

/// What a pull is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullState {
    /// Manifest, configuration and policy.
    Resolving,
    /// Layers come in.
    Fetching,
    /// All layers are there; the image is being listed.
    Finishing,
    /// This is a push: its layers are sent, `received` counts what has gone.
    Pushing,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// The digest of its blob.
    pub digest: Digest,
    /// The size of its blob.
    pub size: u64,
    /// Bytes of the blob that are here, those of an earlier download included.
    pub received: u64,
    /// Bytes of the tar that are on disk.
    pub unpacked: u64,
    /// What it is at.
    pub state: LayerState,
    /// The host that it comes from; `None` before one has answered and for what is here already.
    pub host: Option<String>,
}

/// What a layer is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// Its blob comes in, and is unpacked as it comes.
    Receiving,
    /// As `Receiving`, after an earlier download that was broken off.
    Resumed,
    /// The blob is here; the rest of it is being unpacked.
    Unpacking,
    /// It is in the store.
    Done,
    /// It was in the store already.
    Shared,
}

const LAYER_STATES: [LayerState; 6] = [
    LayerState::Waiting,
    LayerState::Receiving,
    LayerState::Resumed,
    LayerState::Unpacking,
    LayerState::Done,
    LayerState::Shared,
];
const PULL_STATES: [PullState; 4] =
    [PullState::Resolving, PullState::Fetching, PullState::Finishing, PullState::Pushing];

/// The counters of one layer's way in; shared by all pulls that wait for it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    received: AtomicU64,
    unpacked: AtomicU64,
    state: AtomicU8,
    host: Mutex<Option<Arc<str>>>,
    moved: Mutex<Option<Instant>>,
    pace: Option<Arc<Pace>>,
}

/// How fast all layers together may be written.
#[derive(Debug)]
struct Pace {
    budget: Budget,
    per_second: u64,
}

impl Meter {
    /// So many bytes of the blob have come.
    pub(crate) fn received(&self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        self.touch();
    }

    /// So many bytes of the tar are to be unpacked. Blocks, where the node's budget for writing
    /// says so.
    pub(crate) fn unpacked(&self, count: usize) {
        self.unpacked.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(pace) = &self.pace {
            std::thread::sleep(pace.budget.take(count, pace.per_second));
        }
    }

    /// How many bytes of the blob have come.
    pub(crate) fn so_far(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn comes_from(&self, host: &str) {
        *lock(&self.host) = Some(Arc::from(host));
    }

    pub(crate) fn set(&self, state: LayerState) {
        let index = LAYER_STATES.iter().position(|s| *s == state).unwrap_or(0);
        self.state.store(u8::try_from(index).unwrap_or(0), Ordering::Relaxed);
        self.touch();
    }

    /// The layer's way begins again.
    pub(crate) fn restart(&self) {
        self.received.store(0, Ordering::Relaxed);
        self.unpacked.store(0, Ordering::Relaxed);
        self.set(LayerState::Receiving);
    }

    fn touch(&self) {
        *lock(&self.moved) = Some(Instant::now());
    }

    pub(crate) fn state(&self) -> LayerState {
        let index = usize::from(self.state.load(Ordering::Relaxed));
        LAYER_STATES.get(index).copied().unwrap_or(LayerState::Waiting)
    }

    fn status(&self, digest: &Digest, size: u64) -> LayerStatus {
        LayerStatus {
            digest: digest.clone(),
            size,
            received: self.received.load(Ordering::Relaxed),
            unpacked: self.unpacked.load(Ordering::Relaxed),
            state: self.state(),
            host: lock(&self.host).as_deref().map(str::to_owned),
        }
    }
}

/// All pulls under way, and the meters of their layers.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pulls: Mutex<Vec<Weak<Entry>>>,
    meters: Mutex<HashMap<Digest, Weak<Meter>>>,
    pace: Option<Arc<Pace>>,
}

/// One pull's line on the board; gone when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    reference: String,
    began: Instant,
    state: AtomicU8,
    layers: Mutex<Vec<(Digest, u64, Arc<Meter>)>>,
}

impl Board {
    /// With so many bytes per second for all layers that are unpacked; `None`: no bound.
    pub(crate) fn new(write_rate: Option<u64>) -> Self {
        let pace = |per_second| Arc::new(Pace { budget: Budget::default(), per_second });
        Self { pace: write_rate.map(pace), ..Self::default() }
    }

    pub(crate) fn enter(&self, reference: String) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            reference,
            began: Instant::now(),
            state: AtomicU8::new(0),
            layers: Mutex::default(),
        });
        let mut pulls = lock(&self.pulls);
        pulls.retain(|pull| pull.strong_count() > 0);
        pulls.push(Arc::downgrade(&entry));
        entry
    }

    /// The meter of the layer with this diff-id: one, however many pulls want the layer.
    pub(crate) fn meter(&self, diff_id: &Digest) -> Arc<Meter> {
        let mut meters = lock(&self.meters);
        meters.retain(|_, meter| meter.strong_count() > 0);
        if let Some(meter) = meters.get(diff_id).and_then(Weak::upgrade) {
            return meter;
        }
        let meter = Arc::new(Meter { pace: self.pace.clone(), ..Meter::default() });
        meters.insert(diff_id.clone(), Arc::downgrade(&meter));
        meter
    }

    /// In the order in which they began.
    pub(crate) fn pulls(&self) -> Vec<PullStatus> {
        let entries: Vec<_> = lock(&self.pulls).iter().filter_map(Weak::upgrade).collect();
        entries.iter().map(|entry| entry.status()).collect()
    }
}

impl Entry {
    pub(crate) fn set(&self, state: PullState) {
        let index = PULL_STATES.iter().position(|s| *s == state).unwrap_or(0);
        self.state.store(u8::try_from(index).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn layers(&self, layers: impl Iterator<Item = (Descriptor, Arc<Meter>)>) {
        let rows = layers.map(|(blob, meter)| (blob.digest, blob.size, meter)).collect();
        *lock(&self.layers) = rows;
        self.set(PullState::Fetching);
    }

    pub(crate) fn status(&self) -> PullStatus {
        let rows = lock(&self.layers);
        let moved = rows.iter().filter_map(|(_, _, meter)| *lock(&meter.moved)).max();
        let index = usize::from(self.state.load(Ordering::Relaxed));
        PullStatus {
            reference: self.reference.clone(),
            state: PULL_STATES.get(index).copied().unwrap_or(PullState::Resolving),
            age: self.began.elapsed(),
            idle: moved.map_or(self.began, |moved| moved.max(self.began)).elapsed(),
            layers: rows.iter().map(|(digest, size, meter)| meter.status(digest, *size)).collect(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layers_together_keep_to_the_budget_for_writing() {
        let board = Board::new(Some(1_000_000));
        let meters = [board.meter(&Digest::of(b"one")), board.meter(&Digest::of(b"two"))];
        let began = Instant::now();
        std::thread::scope(|scope| {
            for meter in &meters {
                scope.spawn(|| (0..4).for_each(|_| meter.unpacked(50_000)));
            }
        });
        // 400,000 bytes, less what may come at once.
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    }

    #[test]
    fn a_layer_that_two_pulls_want_moves_for_both_and_ends_with_them() {
        let board = Board::default();
        let blob = Descriptor { media_type: String::new(), digest: Digest::of(b"blob"), size: 100 };
        let diff_id = Digest::of(b"tar");
        let (one, two) = (board.enter("one".to_owned()), board.enter("two".to_owned()));
        for entry in [&one, &two] {
            entry.layers([(blob.clone(), board.meter(&diff_id))].into_iter());
        }
        let meter = board.meter(&diff_id);
        meter.set(LayerState::Receiving);
        meter.comes_from("host:1");
        meter.received(40);
        meter.unpacked(70);
        let pulls = board.pulls();
        assert_eq!(pulls.len(), 2);
        for pull in &pulls {
            assert_eq!(pull.state, PullState::Fetching);
            let wanted = LayerStatus {
                digest: blob.digest.clone(),
                size: 100,
                received: 40,
                unpacked: 70,
                state: LayerState::Receiving,
                host: Some("host:1".to_owned()),
            };
            assert_eq!(pull.layers, [wanted]);
        }
        drop((one, meter));
        let pulls = board.pulls();
        assert_eq!((pulls.len(), pulls[0].reference.as_str()), (1, "two"));
        drop(two);
        assert!(board.pulls().is_empty());
        let fresh = board.meter(&diff_id).status(&blob.digest, 100);
        assert_eq!((fresh.received, fresh.state), (0, LayerState::Waiting));
    }
}
