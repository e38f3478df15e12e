//! Pulling from a real registry.

use std::sync::Arc;

use berth_image::{ErrorKind, Image, ImageStore, Proxies, Reference, RegistryConfig, StoreConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::images::{Compression, Dialect, image, index};
use crate::mounted::Mounted;
use crate::registry::Registry;
use crate::tarball::Tarball;

pub(crate) async fn store() -> (TempDir, Arc<ImageStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.unwrap();
    (dir, store)
}

/// As by default, but without long pauses.
pub(crate) fn quick() -> RegistryConfig {
    let retry_pause = std::time::Duration::from_millis(2);
    RegistryConfig { retry_pause, proxies: Proxies::default(), ..RegistryConfig::default() }
}

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &str,
) -> Result<Arc<Image>, berth_image::Error> {
    let reference = Reference::parse(reference).unwrap();
    let id = store.pull(&reference, None, &quick()).await?;
    Ok(store.find(id.as_str()).expect("a pulled image is listed"))
}

/// Only what a fresh store has, once the background work is done.
pub(crate) async fn assert_nothing_left(dir: &TempDir, store: &ImageStore) {
    let root = dir.path().join("image");
    let left = || -> Vec<_> {
        let dirs = ["images", "layers", "rw", "staging", "trash", "partial", "blobs/sha256"];
        let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(root.join(dir))).flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| *path != root.join("layers/empty")).collect()
    };
    // An unpacking that was cut short ends on its own thread.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        store.settle().await.unwrap();
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "left: {left:?}");
        tokio::task::yield_now().await;
    }
}

fn base() -> Vec<u8> {
    Tarball::new()
        .dir("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")
        .finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dialect_and_compression_is_pulled_and_read() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let cases = [
        (Dialect::Oci, Compression::Plain),
        (Dialect::Oci, Compression::Gzip),
        (Dialect::Oci, Compression::MultiGzip),
        (Dialect::Oci, Compression::Zstd),
        (Dialect::Docker, Compression::Gzip),
        (Dialect::Docker, Compression::Zstd),
    ];
    for (n, (dialect, compression)) in cases.into_iter().enumerate() {
        let content = format!("case {n}");
        let top = Tarball::new().dir("etc/", 0o755).file("etc/motd", 0o600, content.as_bytes());
        let settings = json!({"User": "1000:1000", "Env": ["A=b"], "Labels": {"l": "v"}});
        let image = image(&[base(), top.finish()], dialect, compression, settings);
        registry.push("some/app", &format!("v{n}"), &image);
        let name = format!("{}/some/app:v{n}", registry.address);
        let pulled = pull(&store, &name).await.unwrap();
        assert_eq!(pulled.id, image.id());
        assert_eq!(pulled.repo_tags, std::slice::from_ref(&name));
        let digest = format!("{}/some/app@{}", registry.address, image.manifest.digest());
        assert_eq!(pulled.repo_digests, [digest]);
        let blobs = image.layers.iter().chain([&image.config]);
        assert_eq!(pulled.size, blobs.map(|b| b.bytes.len() as u64).sum::<u64>());
        let motd = store.read_file(&pulled, "/etc/motd", 100).await.unwrap().unwrap();
        assert_eq!(motd, content.as_bytes());
        assert!(store.read_file(&pulled, "/etc/passwd", 100).await.unwrap().is_some());
        assert!(store.read_file(&pulled, "/etc/none", 100).await.unwrap().is_none());
    }
    assert_eq!(store.list().len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let name = format!("{}/no/such:tag", registry.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
    assert!(error.report().contains(&name), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_is_unavailable() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let (_dir, store) = store().await;
    let error = pull(&store, &format!("{address}/a:b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(error.report().contains(&address.to_string()), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_lead_to_the_image_for_this_machine() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let here = format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    for dialect in [Dialect::Oci, Dialect::Docker] {
        let (repo, other_tar) = (format!("multi/{dialect:?}").to_lowercase(), Tarball::new());
        let mine = image(&[base()], dialect, Compression::Gzip, json!({"User": "me"}));
        let other = image(&[other_tar.finish()], dialect, Compression::Gzip, json!({}));
        registry.push(&repo, "mine", &mine);
        registry.push(&repo, "other", &other);
        let entries = [(&other.manifest, "linux/s390x"), (&mine.manifest, here.as_str())];
        let mut top = index(&entries, dialect);
        registry.push_manifest(&repo, "flat", &top);
        let flat = pull(&store, &format!("{}/{repo}:flat", registry.address)).await.unwrap();
        assert_eq!(flat.id, mine.id());
        let digest = format!("{}/{repo}@{}", registry.address, top.digest());
        assert!(flat.repo_digests.contains(&digest), "of the index: {:?}", flat.repo_digests);
        // The registry takes an index within an index; so it is served, to a bound.
        for depth in 0..5 {
            let inner = top.digest();
            registry.push_manifest(&repo, inner.as_str(), &top);
            top = index(&[(&top, here.as_str())], dialect);
            registry.push_manifest(&repo, "nested", &top);
            let nested = pull(&store, &format!("{}/{repo}:nested", registry.address)).await;
            assert_eq!(nested.is_ok(), depth < 2, "{depth}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_gives_no_tag_and_a_tag_moves_with_its_registry() {
    let registry = Registry::start();
    let (_dir, store) = store().await;
    let first = image(&[base()], Dialect::Oci, Compression::Gzip, json!({"User": "1"}));
    let second = image(&[base()], Dialect::Oci, Compression::Zstd, json!({"User": "2"}));
    registry.push("app", "t", &first);
    let name = format!("{}/app", registry.address);
    let pinned = format!("{name}:ignored@{}", first.manifest.digest());
    let image = pull(&store, &pinned).await.unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [format!("{name}@{}", first.manifest.digest())]);
    pull(&store, &format!("{name}:t")).await.unwrap();
    assert_eq!(store.list().len(), 1);
    registry.push("app", "t", &second);
    pull(&store, &format!("{name}:t")).await.unwrap();
    assert_eq!(store.find(&format!("{name}:t")).unwrap().id, second.id());
    let old = store.find(&pinned).unwrap();
    assert_eq!((old.id.clone(), old.repo_tags.len()), (first.id(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_on_what_was_pulled() {
    let registry = Registry::start();
    let (dir, store) = store().await;
    let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    let tools = Tarball::new()
        .dir("bin/", 0o755)
        .file("bin/busybox", 0o755, &busybox)
        .hard_link("bin/sh", "bin/busybox")
        .symlink("bin/cat", "busybox");
    let top = Tarball::new().file("bin/.wh.cat", 0, b"").file("etc/.wh.passwd", 0, b"");
    let made = image(
        &[base(), tools.finish(), top.finish()],
        Dialect::Docker,
        Compression::Gzip,
        json!({"Cmd": ["sh"]}),
    );
    registry.push("box", "latest", &made);
    let image = pull(&store, &format!("{}/box", registry.address)).await.unwrap();
    let snapshot = store.prepare("ctr", &image).await.unwrap();
    let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
    let script = "echo hello > /written; ls / /bin /etc; echo *";
    let output = std::process::Command::new("chroot")
        .arg(&mounted.root)
        .args(["/bin/sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text} {output:?}");
    assert!(text.ends_with("bin etc written\n"), "{text}");
    assert!(!text.contains("cat") && !text.contains("passwd"), "{text}");
    drop(mounted);
    let written = store.snapshot_usage("ctr").await.unwrap();
    assert_eq!((written.bytes, written.inodes), (4096 + 4096, 2));
    assert_eq!(store.writable_usage().await, written);
    store.release("ctr").await.unwrap();
    assert_eq!(store.writable_usage().await.inodes, 0);
}

/// Whatever happens at once: nothing that is needed goes, and nothing else stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_removals_and_containers_at_once_leave_a_whole_store() {
    let registry = Registry::start();
    let (dir, store) = store().await;
    for n in 0..4 {
        let own = Tarball::new().file(&format!("own{n}"), 0o644, &[n; 1000]).finish();
        // The last layer's parent is left out of its tar: it is fitted to the others.
        let fitted = Tarball::new().file("etc/fitted", 0o644, b"f").finish();
        let image = image(&[base(), own, fitted], Dialect::Oci, Compression::Gzip, json!({}));
        registry.push("app", &format!("t{n}"), &image);
    }
    let workers = (0..8).map(|worker: usize| {
        let (store, address) = (store.clone(), registry.address.clone());
        tokio::spawn(async move {
            for round in 0..12 {
                let name = format!("{address}/app:t{}", (worker + round) % 4);
                let reference = Reference::parse(&name).unwrap();
                let config = RegistryConfig::default();
                let pull = store.pull(&reference, None, &config);
                if (worker + round).is_multiple_of(5) {
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(3), pull).await;
                } else {
                    pull.await.unwrap_or_else(|e| panic!("{}", e.report()));
                }
                let Some(image) = store.find(&name) else { continue };
                let container = format!("ctr-{worker}");
                // It may have been removed by another since; then it says so.
                match store.prepare(&container, &image).await {
                    Ok(snapshot) => {
                        let mut fitted = snapshot.lower.iter().map(|dir| dir.join("etc/fitted"));
                        let fitted = fitted.find_map(|path| std::fs::read(path).ok());
                        assert_eq!(fitted.as_deref(), Some(&b"f"[..]));
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
                }
                store.release(&container).await.unwrap();
                if round % 3 == 0 {
                    store.remove(&name).await.unwrap();
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    for image in store.list() {
        let fitted = store.read_file(&image, "/etc/fitted", 10).await.unwrap();
        assert_eq!(fitted.unwrap(), b"f");
        assert!(store.read_file(&image, "/etc/passwd", 100).await.unwrap().is_some());
        store.remove(image.id.as_str()).await.unwrap();
    }
    assert_nothing_left(&dir, &store).await;
}
