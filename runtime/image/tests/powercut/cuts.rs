//! The rounds: work, cut, mount again, check.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_image::{Reference, RegistryConfig};
use berth_sys::fsctl::Shutdown;

use crate::catalog::{Chance, IMAGES, entry};
use crate::check::{self, Pushed};
use crate::child::Orders;
use crate::disk::Disk;
use crate::journal::heed;
use crate::{number, server};

const CUTS: u64 = 500;
struct Rounds {
    disk: Disk,
    pushed: Pushed,
    registry: String,
    chance: Chance,
    boots: u64,
    /// Images that were known to be on disk.
    must: BTreeSet<usize>,
    runtime: tokio::runtime::Runtime,
}

pub(crate) fn catalog(seed: u64) -> Pushed {
    Pushed { catalog: (0..IMAGES).map(|n| entry(seed, n)).collect(), ids: Vec::new() }
}

impl Rounds {
    fn new(seed: u64) -> Self {
        let mut pushed = catalog(seed);
        let (registry, ids) = server::start(&pushed.catalog);
        pushed.ids = ids;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (disk, chance) = (Disk::new(), Chance(seed));
        Self { disk, pushed, registry, chance, boots: 0, must: BTreeSet::new(), runtime }
    }

    fn orders(&mut self, work: bool) -> Orders {
        Orders {
            root: self.disk.path().join("image"),
            boot: format!("boot-{}", self.boots),
            registry: self.registry.clone(),
            seed: self.chance.next(),
            work,
        }
    }

    /// A process works and is cut.
    fn cut(&mut self, work: bool) {
        let orders = self.orders(work);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(orders.args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).inspect(|_| tell.send(()).unwrap_or(())).collect()
        });
        // Some are cut while they open the store, some while they verify and repair, most in
        // their work. No instant is better than another: what is waited for is only that there
        // is something to lose.
        for _ in 0..self.chance.below(if work { 24 } else { 2 }) {
            if told.recv().is_err() {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(self.chance.below(20_000)));
        let how = [Shutdown::NoLogFlush, Shutdown::LogFlush];
        self.disk.cut(how[usize::from(self.chance.below(3) == 0)]);
        kill(&mut child);
        let lines: Vec<String> = reader.join().unwrap();
        lines.iter().for_each(|line| heed(line, &mut self.must));
        self.disk.remount();
        self.boots += 1;
    }

    /// What does not hold when all is repaired.
    fn wrong(&self) -> Vec<String> {
        let root = self.disk.path().join("image");
        let boot = format!("boot-{}", self.boots);
        self.runtime.block_on(check::all(&root, &boot, &self.pushed, &self.must))
    }

    /// What is wrong with the images that are listed before anything is repaired.
    fn wrong_at_once(&self) -> Vec<String> {
        let root = self.disk.path().join("image");
        let boot = format!("boot-{}", self.boots);
        self.runtime.block_on(async {
            let store = check::open(&root, &boot).await;
            check::wrong_files(&store, &self.pushed).await
        })
    }
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

pub(crate) fn no_wrong_file(seed: u64) {
    let cuts = number("BERTH_POWERCUT_CUTS").unwrap_or(CUTS);
    let start = Instant::now();
    let mut rounds = Rounds::new(seed);
    let (mut durable, mut work) = (0, true);
    for cut in 0..cuts {
        rounds.cut(work);
        durable += rounds.must.len();
        // After a quarter of them the next cut comes while this one's damage is repaired.
        work = rounds.chance.below(4) > 0;
        let wrong = if work { rounds.wrong() } else { rounds.wrong_at_once() };
        assert!(wrong.is_empty(), "seed {seed}, cut {cut}: {wrong:#?}");
    }
    let wrong = rounds.wrong();
    assert!(wrong.is_empty(), "seed {seed}, at the end: {wrong:#?}");
    let took = start.elapsed().as_secs_f32();
    println!("{cuts} cuts in {took:.1} s; {durable} times an image had to be there, and was");
}

/// A copy of a store, of which the markers and records are synced, but the data is not: as a store
/// would leave it that marks before it syncs. With the data synced before, all is well.
pub(crate) fn broken_order(seed: u64) {
    let mut rounds = Rounds::new(seed);
    let right = rounds.copy_and_cut("right", true);
    assert_eq!(right, 0, "seed {seed}: data before markers");
    let wrong = rounds.copy_and_cut("wrong", false);
    assert!(wrong > 0, "seed {seed}: markers before data, and no wrong file was found");
    println!("with the order broken, one cut gave {wrong} wrong files");
}

impl Rounds {
    /// How many files are wrong afterwards.
    fn copy_and_cut(&mut self, name: &str, data_first: bool) -> usize {
        let (root, copy) = (self.disk.path().join("image"), self.disk.path().join(name));
        self.runtime.block_on(async {
            let store = check::open(&root, "boot").await;
            for n in 0..IMAGES {
                let reference = Reference::parse(&format!("{}/x/y:v{n}", self.registry)).unwrap();
                store.pull(&reference, None, &RegistryConfig::default()).await.unwrap();
            }
            store.settle().await.unwrap();
        });
        let copied = Command::new("cp").arg("-a").args([&root, &copy]).status().unwrap();
        assert!(copied.success());
        if data_first {
            rustix::fs::syncfs(std::fs::File::open(&copy).unwrap()).unwrap();
        }
        let mut dirs = vec![copy.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() && entry.file_name() != "fs" => dirs.push(entry.path()),
                    kind if kind.is_file() => sync(&entry.path()),
                    _ => {}
                }
            }
            sync(&dir);
        }
        self.disk.cut(Shutdown::NoLogFlush);
        self.disk.remount();
        self.runtime.block_on(async {
            let store = check::open(&copy, "boot-after").await;
            assert_eq!(store.list().len(), self.pushed.ids.len(), "all have their markers");
            check::wrong_files(&store, &self.pushed).await.len()
        })
    }
}

fn sync(path: &Path) {
    std::fs::File::open(path).unwrap().sync_all().unwrap();
}
