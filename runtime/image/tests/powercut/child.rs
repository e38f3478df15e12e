//! The process that works until the power is cut.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use berth_image::{ImageStore, Reference, RegistryConfig};

use crate::catalog::{Chance, IMAGES};
use crate::check::open;

/// What it is told.
pub(crate) struct Orders {
    pub(crate) root: PathBuf,
    pub(crate) boot: String,
    pub(crate) registry: String,
    pub(crate) seed: u64,
    /// Work, or only open, verify and repair.
    pub(crate) work: bool,
}

impl Orders {
    pub(crate) fn args(&self) -> Vec<String> {
        let root = self.root.display().to_string();
        let numbers = [self.seed, u64::from(self.work)];
        let mut args = vec!["child".into(), root, self.boot.clone(), self.registry.clone()];
        args.extend(numbers.map(|n| n.to_string()));
        args
    }

    fn parse(args: &[String]) -> Self {
        let [root, boot, registry, seed, work] = args else { panic!("{args:?}") };
        Self {
            root: root.into(),
            boot: boot.clone(),
            registry: registry.clone(),
            seed: seed.parse().unwrap(),
            work: work == "1",
        }
    }
}

pub(crate) fn run(args: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Ends with the parent: also when that is killed.
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        std::process::exit(0);
    });
    // What fails after the cut is no news.
    std::panic::set_hook(Box::new(|_| {}));
    let orders = Orders::parse(args);
    runtime.block_on(work(&orders, u64::MAX, &mut |line| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
    }));
}

/// So many operations. `say` hears what must survive from then on: `durable N N N` are all images
/// that are on disk, `removing N` may be gone from then on; `done` follows each operation.
pub(crate) async fn work(orders: &Orders, operations: u64, say: &mut dyn FnMut(&str)) {
    let mut store = open(&orders.root, &orders.boot).await;
    say("open");
    if !orders.work {
        return std::future::pending().await;
    }
    let mut chance = Chance(orders.seed);
    for _ in 0..operations {
        match chance.below(16) {
            0..=6 => pull(orders, &store, &mut chance).await,
            7 | 8 => {
                let n = chance.below(IMAGES);
                say(&format!("removing {n}"));
                // After the cut everything may fail.
                let _ = store.remove(&name(orders, n)).await;
            }
            9..=11 => settle(orders, &store, say).await,
            12 => {
                // Commits the journal, names of layers with it, but not their data.
                let path = orders.root.with_file_name("noise");
                let _ = std::fs::File::create(&path).and_then(|mut file| {
                    file.write_all(b"x")?;
                    file.sync_all()
                });
            }
            13 => {
                let container = format!("ctr-{}", chance.below(3));
                if let Some(image) = store.find(&name(orders, chance.below(IMAGES))) {
                    let _ = store.prepare(&container, &image).await;
                }
            }
            14 => {
                let _ = store.release(&format!("ctr-{}", chance.below(3))).await;
            }
            _ => {
                drop(store);
                store = open(&orders.root, &orders.boot).await;
            }
        }
        say("done");
    }
}

fn name(orders: &Orders, n: u64) -> String {
    format!("{}/x/y:v{n}", orders.registry)
}

/// One to three images at once.
async fn pull(orders: &Orders, store: &Arc<ImageStore>, chance: &mut Chance) {
    let mut pulls = Vec::new();
    for _ in 0..1 + chance.below(3) {
        let reference = Reference::parse(&name(orders, chance.below(IMAGES))).unwrap();
        let store = store.clone();
        pulls.push(tokio::spawn(async move {
            let _ = store.pull(&reference, None, &RegistryConfig::default()).await;
        }));
    }
    for pull in pulls {
        pull.await.unwrap();
    }
}

async fn settle(orders: &Orders, store: &ImageStore, say: &mut dyn FnMut(&str)) {
    // Before: what comes while it settles need not be on disk.
    let listed: Vec<u64> =
        (0..IMAGES).filter(|&n| store.find(&name(orders, n)).is_some()).collect();
    if store.settle().await.is_ok() {
        let listed: Vec<_> = listed.iter().map(u64::to_string).collect();
        say(&format!("durable {}", listed.join(" ")));
    }
}
