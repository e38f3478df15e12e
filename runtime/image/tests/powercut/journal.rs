//! The two halves by themselves, for devices that record the order of writes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::check;
use crate::child::{self, Orders};
use crate::cuts::catalog;
use crate::server;

/// See the program's head.
pub(crate) fn work(dir: &str, journal: &str, seed: &str, operations: &str) {
    let seed: u64 = seed.parse().unwrap();
    let pushed = catalog(seed);
    let (registry, _) = server::start(&pushed.catalog);
    let root = Path::new(dir).join("image");
    let orders = Orders { root, boot: "boot-0".into(), registry, seed, work: true };
    let mut file = std::fs::File::create(journal).unwrap();
    let mut must = BTreeSet::new();
    let mut line_number = 0;
    let mark = std::env::var("BERTH_POWERCUT_MARK").ok();
    let mut say = |line: &str| {
        if !line.starts_with("durable") && !line.starts_with("removing") {
            return;
        }
        heed(line, &mut must);
        let must: Vec<_> = must.iter().map(usize::to_string).collect();
        writeln!(file, "{}", must.join(" ")).and_then(|()| file.sync_all()).unwrap();
        line_number += 1;
        if let Some(mark) = &mark {
            let status = Command::new(mark).arg(line_number.to_string()).status();
            assert!(status.unwrap().success(), "{mark}");
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(child::work(&orders, operations.parse().unwrap(), &mut say));
}

/// What a line of the working process says of the images that must survive.
pub(crate) fn heed(line: &str, must: &mut BTreeSet<usize>) {
    let mut words = line.split_whitespace();
    let word = words.next();
    let numbers: BTreeSet<usize> = words.map(|n| n.parse().unwrap()).collect();
    match word {
        Some("durable") => *must = numbers,
        Some("removing") => must.retain(|n| !numbers.contains(n)),
        _ => {}
    }
}

/// See the program's head. What the registry would be needed for stays unlisted.
pub(crate) fn check(dir: &str, journal: &str, seed: &str, line: &str) {
    let mut pushed = catalog(seed.parse().unwrap());
    let (_, ids) = server::start(&pushed.catalog);
    pushed.ids = ids;
    let text = std::fs::read_to_string(journal).unwrap();
    let line: usize = line.parse().unwrap();
    let now = line.checked_sub(1).and_then(|at| text.lines().nth(at)).unwrap_or("");
    let must: BTreeSet<usize> = now.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let root = Path::new(dir).join("image");
    let wrong = runtime.block_on(check::all(&root, "boot-1", &pushed, &must));
    assert!(wrong.is_empty(), "{wrong:#?}");
}
