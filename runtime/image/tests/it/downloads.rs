//! Downloads that break, stall, drip or are given up: they go on where they were.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_image::{
    Chunks, ErrorKind, ImageStore, LayerState, PullOptions, Reference, RegistryConfig, Resume,
    StoreConfig,
};
use serde_json::json;

use crate::conduct::until;
use crate::images::{self, Compression, Dialect, TestImage};
use crate::liar::{Answer, Liar, field};
use crate::pull::{assert_nothing_left, quick, store};
use crate::tarball::Tarball;

/// One layer of so many bytes that cannot be compressed.
fn noise(size: usize) -> TestImage {
    let mut state = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()
    })
    .flatten()
    .take(size)
    .collect();
    let tar = Tarball::new().dir("d/", 0o755).file("d/noise", 0o644, &content).finish();
    images::image(&[tar], Dialect::Oci, Compression::Gzip, json!({}))
}

async fn pull(
    store: &ImageStore,
    name: &str,
    registry: &RegistryConfig,
) -> Result<(), berth_image::Error> {
    store.pull(&Reference::parse(name).unwrap(), None, registry).await.map(|_| ())
}

async fn pull_well(store: &ImageStore, name: &str, registry: &RegistryConfig) {
    pull(store, name, registry).await.unwrap_or_else(|e| panic!("{}", e.report()));
}

/// Where the requests for this blob began.
fn starts(liar: &Liar, blob: &str) -> Vec<usize> {
    let requests = liar.requests();
    let asked = requests.iter().filter(|request| request.contains(&format!("/blobs/{blob}")));
    asked
        .map(|request| {
            let range = field(request, "range").unwrap_or("bytes=0-");
            range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_broke() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let (blob, bytes) = (image.layers[0].digest().to_string(), image.layers[0].bytes.clone());
    // Each connection brings 100,000 bytes and closes.
    let serve = bytes.clone();
    let reply = move |request: &str, _: &[u8]| Answer::range(request, &serve, "\"e\"", 100_000);
    liar.blob(&image.layers[0], Answer::call(reply));
    pull_well(&store, &liar.name("t"), &quick()).await;
    let starts_seen = starts(&liar, &blob);
    assert_eq!(starts_seen[0], 0);
    assert_eq!(starts_seen.len(), bytes.len().div_ceil(100_000));
    assert!(starts_seen.is_sorted_by(|a, b| a < b), "each goes on: {starts_seen:?}");
    let again = liar.requests();
    let conditional = again.iter().filter(|r| field(r, "if-range") == Some("\"e\"")).count();
    assert_eq!(conditional, starts_seen.len() - 1);
    store.remove(&liar.name("t")).await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_ranges_starts_over_and_what_was_had_is_passed_over() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let bytes = image.layers[0].bytes.clone();
    let tries = AtomicUsize::new(0);
    let reply = move |_: &str, _: &[u8]| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::Cut { announced: bytes.len(), bytes: bytes[..100_000].to_vec() },
        _ => Answer::blob(&bytes),
    };
    liar.blob(&image.layers[0], Answer::call(reply));
    pull_well(&store, &liar.name("t"), &quick()).await;
    assert_eq!(liar.count("/blobs/"), 3, "configuration, and the layer twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_never_gets_further_ends_with_the_reason() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let (blob, bytes) = (image.layers[0].digest(), image.layers[0].bytes.clone());
    let reply = move |request: &str, _: &[u8]| Answer::range(request, &bytes, "\"e\"", 10);
    liar.blob(&image.layers[0], Answer::call(reply));
    let error = pull(&store, &liar.name("t"), &quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.report().contains(blob.as_str()), "{}", error.report());
    assert_eq!(liar.count(&format!("/blobs/{blob}")), 5, "once, and four retries");
    assert_nothing_left(&dir, &store).await;
}

fn mirrors(dir: &Path, mirrors: &[&Liar]) -> RegistryConfig {
    let certs = dir.join("certs.d");
    std::fs::create_dir_all(certs.join("_default")).unwrap();
    let (server, first) = mirrors.split_last().unwrap();
    let hosts: String =
        first.iter().map(|mirror| format!("[host.\"http://{}\"]\n", mirror.address)).collect();
    let hosts = format!("server = \"http://{}\"\n{hosts}", server.address);
    std::fs::write(certs.join("_default/hosts.toml"), hosts).unwrap();
    RegistryConfig { config_path: Some(certs), ..quick() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_and_a_drip_are_left_for_the_next_mirror_which_goes_on() {
    let image = noise(300_000);
    let bytes = image.layers[0].bytes.clone();
    let blob = image.layers[0].digest().to_string();
    let drip = Answer::Drip { bytes: bytes.clone(), step: 10, pause: Duration::from_millis(20) };
    for slow in [Answer::Stall(bytes[..100_000].to_vec()), drip] {
        let (stalled, good) = (Liar::start(), Liar::start());
        let (dir, store) = store().await;
        for liar in [&stalled, &good] {
            liar.honest("t", &image);
        }
        stalled.blob(&image.layers[0], slow);
        let serve = bytes.clone();
        let reply = move |request: &str, _: &[u8]| Answer::range(request, &serve, "\"e\"", 1 << 30);
        good.blob(&image.layers[0], Answer::call(reply));
        let stall_timeout = Duration::from_millis(200);
        let registry = RegistryConfig {
            stall_timeout,
            min_rate: 10_000,
            avoid_for: Duration::from_secs(60),
            ..mirrors(dir.path(), &[&stalled, &good])
        };
        pull_well(&store, "upstream.test/x/y:t", &registry).await;
        assert_eq!(starts(&stalled, &blob), [0]);
        let went_on = starts(&good, &blob);
        assert!(went_on.len() == 1 && went_on[0] > 0, "{went_on:?}");
        // The mirror that failed is asked after the other for a while.
        let (before, asked) = (stalled.requests().len(), good.requests().len());
        store.remove("upstream.test/x/y:t").await.unwrap();
        store.settle().await.unwrap();
        pull_well(&store, "upstream.test/x/y:t", &registry).await;
        assert_eq!(stalled.requests().len(), before, "it is avoided");
        assert_eq!(good.requests().len(), asked + 3, "manifest, configuration, layer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_other_bytes_is_left_for_the_next() {
    let (wrong, good) = (Liar::start(), Liar::start());
    let (dir, store) = store().await;
    let image = noise(300_000);
    for liar in [&wrong, &good] {
        liar.honest("t", &image);
    }
    let mut bytes = image.layers[0].bytes.clone();
    // Inflates well: only the digest can tell, when all has come.
    bytes[9] ^= 1;
    wrong.blob(&image.layers[0], Answer::blob(&bytes));
    let registry = mirrors(dir.path(), &[&wrong, &good]);
    pull_well(&store, "upstream.test/x/y:t", &registry).await;
    let blob = format!("/blobs/{}", image.layers[0].digest());
    assert_eq!((wrong.count(&blob), good.count(&blob)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_are_spaced_as_the_registry_asks() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = noise(1000);
    liar.honest("t", &image);
    let (tries, manifest) = (AtomicUsize::new(0), image.manifest.clone());
    let reply = move |_: &str, _: &[u8]| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::status("429 Too Many Requests", "retry-after: 1\r\n"),
        1 => Answer::status("503 Service Unavailable", ""),
        _ => Answer::manifest(&manifest),
    };
    liar.tag("t", Answer::call(reply));
    let began = std::time::Instant::now();
    pull_well(&store, &liar.name("t"), &quick()).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(liar.count("/manifests/t"), 3);
}

/// Everything is worth keeping.
fn keeping() -> RegistryConfig {
    let resume = Resume { after: Duration::ZERO, ..Resume::default() };
    RegistryConfig { resume, ..quick() }
}

fn partial_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir.join("image/partial")) else { return 0 };
    entries.flatten().map(|entry| entry.metadata().map_or(0, |about| about.len())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_download_goes_on_also_in_another_process() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let (blob, bytes) = (image.layers[0].digest().to_string(), image.layers[0].bytes.clone());
    liar.blob(&image.layers[0], Answer::Stall(bytes[..100_000].to_vec()));
    let (name, registry) = (liar.name("t"), keeping());
    let mut first = Box::pin(pull(&store, &name, &registry));
    tokio::select! {
        _ = &mut first => panic!("a stalled pull ended"),
        () = until(|| partial_bytes(dir.path()) == 100_000) => {}
    }
    drop(first);
    store.settle().await.unwrap();
    // Another process opens the store when the first has gone.
    drop(store);
    let store = reopened(&dir.path().join("image")).await;
    let serve = bytes.clone();
    let reply = move |request: &str, _: &[u8]| Answer::range(request, &serve, "\"e\"", 1 << 30);
    liar.blob(&image.layers[0], Answer::call(reply));
    pull_well(&store, &liar.name("t"), &keeping()).await;
    assert_eq!(starts(&liar, &blob), [0, 100_000]);
    assert_eq!(partial_bytes(dir.path()), 0, "it has served its end");
    store.remove(&liar.name("t")).await.unwrap();
    assert_nothing_left(&dir, &store).await;
}

/// The store's last user may still be going.
async fn reopened(root: &Path) -> Arc<ImageStore> {
    let open = async {
        loop {
            match ImageStore::open(StoreConfig::new(root)).await {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), open).await.expect("the store stays in use")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_rest_of_a_download_is_thrown_away_and_fetched_again() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let (blob, bytes) = (image.layers[0].digest(), image.layers[0].bytes.clone());
    let serve = bytes.clone();
    let reply = move |request: &str, _: &[u8]| Answer::range(request, &serve, "\"e\"", 1 << 30);
    liar.blob(&image.layers[0], Answer::call(reply));
    // What a power cut makes of a file: its length without its data. And one from the middle on,
    // as a slow download leaves it; and one that is longer than the blob.
    let partial = dir.path().join("image/partial");
    let damaged = vec![0; 100_000];
    let longer = vec![1; bytes.len() + 1];
    let rests: [(usize, &[u8], &[usize]); 4] = [
        (0, &damaged, &[100_000, 0]),
        (50_000, &bytes[50_000..120_000], &[0, 120_000]),
        (50_000, &damaged, &[0, 150_000, 0]),
        (0, &longer, &[0]),
    ];
    for (offset, rest, wanted) in rests {
        std::fs::create_dir_all(&partial).unwrap();
        std::fs::write(partial.join(format!("sha256-{}.{offset}", blob.hex())), rest).unwrap();
        let before = starts(&liar, blob.as_str()).len();
        pull_well(&store, &liar.name("t"), &keeping()).await;
        assert_eq!(starts(&liar, blob.as_str())[before..], *wanted);
        store.remove(&liar.name("t")).await.unwrap();
        assert_nothing_left(&dir, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_is_fetched_in_chunks_at_once() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = noise(1_000_000);
    liar.honest("t", &image);
    let (blob, bytes) = (image.layers[0].digest().to_string(), image.layers[0].bytes.clone());
    let (serve, waiting) = (bytes.clone(), Arc::new(std::sync::Barrier::new(4)));
    // No chunk is served before four are asked for. One breaks in its middle.
    let (asked, broke) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let reply = move |request: &str, _: &[u8]| {
        if asked.fetch_add(1, Ordering::SeqCst) < 4 {
            waiting.wait();
        }
        let breaks = request.contains("bytes=200000-") && broke.fetch_add(1, Ordering::SeqCst) == 0;
        Answer::range(request, &serve, "\"e\"", if breaks { 5000 } else { 1 << 30 })
    };
    liar.blob(&image.layers[0], Answer::call(reply));
    let chunks = Some(Chunks { size: 100_000, count: 4 });
    pull_well(&store, &liar.name("t"), &RegistryConfig { chunks, ..quick() }).await;
    let mut seen = starts(&liar, &blob);
    seen.sort_unstable();
    let mut wanted: Vec<_> = (0..bytes.len()).step_by(100_000).chain([200_000]).collect();
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_from_a_host_without_ranges_are_one_body() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = noise(1_000_000);
    liar.honest("t", &image);
    let chunks = Some(Chunks { size: 100_000, count: 2 });
    pull_well(&store, &liar.name("t"), &RegistryConfig { chunks, ..quick() }).await;
    let asked = liar.count(&format!("/blobs/{}", image.layers[0].digest()));
    assert!(asked <= 3, "two to learn it: {asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_lie_are_refused() {
    let image = noise(300_000);
    let lies = [
        ("another range", "206 Partial Content", "content-range: bytes 0-9/10\r\n"),
        ("no range", "206 Partial Content", ""),
        ("not satisfiable", "416 Range Not Satisfiable", ""),
    ];
    for (what, status, headers) in lies {
        let liar = Liar::start();
        let (dir, store) = store().await;
        liar.honest("t", &image);
        let bytes = image.layers[0].bytes.clone();
        let reply = move |request: &str, _: &[u8]| match field(request, "range") {
            None => Answer::Cut { announced: bytes.len(), bytes: bytes[..1000].to_vec() },
            Some(_) => Answer::Body { status, headers: headers.to_owned(), bytes: vec![1; 10] },
        };
        liar.blob(&image.layers[0], Answer::call(reply));
        let error = pull(&store, &liar.name("t"), &quick()).await.unwrap_err();
        assert!(error.report().contains(image.layers[0].digest().as_str()), "{what}");
        assert_nothing_left(&dir, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_s_budget_holds_for_all_pulls_together() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let images = [noise(200_000), noise(200_001)];
    let bandwidth = Some(400_000);
    for (n, image) in images.iter().enumerate() {
        liar.honest(&format!("t{n}"), image);
    }
    let began = std::time::Instant::now();
    let registry = RegistryConfig { bandwidth, ..quick() };
    let (one, two) = (liar.name("t0"), liar.name("t1"));
    tokio::join!(pull_well(&store, &one, &registry), pull_well(&store, &two, &registry));
    // 400,000 bytes at 400,000 a second, less what may come at once.
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_shown_while_it_is_made() {
    let liar = Liar::start();
    let (_dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let bytes = image.layers[0].bytes.clone();
    liar.blob(&image.layers[0], Answer::Stall(bytes[..100_000].to_vec()));
    let (name, registry) = (liar.name("t"), quick());
    let mut pulling = Box::pin(pull(&store, &name, &registry));
    let seen = || {
        let pulls = store.pulls();
        let layer = pulls.first().and_then(|pull| pull.layers.first());
        layer.is_some_and(|layer| layer.received == 100_000)
    };
    tokio::select! {
        _ = &mut pulling => panic!("a stalled pull ended"),
        () = until(seen) => {}
    }
    let pulls = store.pulls();
    assert_eq!((pulls.len(), pulls[0].reference.as_str()), (1, liar.name("t").as_str()));
    let layer = &pulls[0].layers[0];
    assert_eq!((layer.size, layer.state), (bytes.len() as u64, LayerState::Receiving));
    assert_eq!(layer.host.as_deref(), Some(liar.address.as_str()));
    drop(pulling);
    until(|| store.pulls().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_blobs_spare_the_registry_and_go_with_their_image() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    let image = noise(300_000);
    liar.honest("t", &image);
    let reference = Reference::parse(&liar.name("t")).unwrap();
    let options = PullOptions { keep_blobs: true };
    store.pull_with(&reference, None, &quick(), options.clone()).await.unwrap();
    let kept = dir.path().join("image/blobs/sha256").join(image.layers[0].digest().hex());
    assert_eq!(std::fs::read(&kept).unwrap(), image.layers[0].bytes);
    store.settle().await.unwrap();
    assert!(kept.exists(), "its image is listed");
    store.remove(&liar.name("t")).await.unwrap();
    store.settle().await.unwrap();
    assert!(!kept.exists());
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_blob_is_read_in_place_of_the_registry_s_unless_it_is_damaged() {
    let liar = Liar::start();
    let (dir, store) = store().await;
    // It links to a file below: above another base it is another layer, and unpacked again.
    let leaning = Tarball::new().dir("etc/", 0o755).file("etc/leaning", 0o644, &[7; 5000]);
    let leaning = leaning.hard_link("etc/linked", "etc/n").finish();
    let above = |n: u8| {
        let base = Tarball::new().dir("etc/", 0o755).file("etc/n", 0o644, &[n]).finish();
        let tars = [base, leaning.clone()];
        images::image(&tars, Dialect::Oci, Compression::Gzip, json!({}))
    };
    let blob = above(0).layers[1].digest();
    let fetched = || liar.count(&format!("/blobs/{blob}"));
    for (n, tag) in ["t0", "t1", "t2"].into_iter().enumerate() {
        liar.honest(tag, &above(u8::try_from(n).unwrap()));
    }
    let reference = Reference::parse(&liar.name("t0")).unwrap();
    let options = PullOptions { keep_blobs: true };
    store.pull_with(&reference, None, &quick(), options).await.unwrap();
    assert_eq!(fetched(), 1);
    pull_well(&store, &liar.name("t1"), &quick()).await;
    assert_eq!(fetched(), 1, "read from the kept blob");
    let kept = dir.path().join("image/blobs/sha256").join(blob.hex());
    let length = std::fs::read(&kept).unwrap().len();
    std::fs::write(&kept, vec![0; length]).unwrap();
    pull_well(&store, &liar.name("t2"), &quick()).await;
    // For its own pass, and for the one with the base in view.
    assert_eq!(fetched(), 3, "told by its digest");
    assert!(!kept.exists());
}
