//! Archives that come as streams: docker-archives and OCI layouts, good and bad ones.

use std::sync::Arc;

use berth_image::{
    Error, ErrorKind, ImageStore, ImportOptions, LoadOptions, LoadProgress, Loaded, Piece,
    RegistryConfig,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::images::{Blob, Compression, Dialect, TestImage, compress, image, index, oci_archive};
use crate::pull::{assert_nothing_left, store};
use crate::tarball::{Fields, Tarball};

const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

async fn load_with(
    store: &Arc<ImageStore>,
    bytes: &[u8],
    options: LoadOptions,
) -> Result<Vec<Loaded>, Error> {
    let (sender, pieces) = mpsc::channel(2);
    let progress = Arc::new(LoadProgress::default());
    let chunks: Vec<Vec<u8>> = bytes.chunks(100_001).map(<[u8]>::to_vec).collect();
    let send = async {
        for chunk in chunks {
            if sender.send(Piece::Data(chunk.into())).await.is_err() {
                return;
            }
        }
        let _ = sender.send(Piece::End).await;
    };
    let (loaded, ()) = tokio::join!(store.load(pieces, options, progress.clone()), send);
    if loaded.is_ok() {
        assert!(progress.is_received());
        assert_eq!(progress.bytes_received(), bytes.len() as u64);
    }
    loaded
}

async fn load(store: &Arc<ImageStore>, bytes: &[u8]) -> Result<Vec<Loaded>, Error> {
    load_with(store, bytes, LoadOptions::default()).await
}

fn layer(file: &str, content: &[u8]) -> Vec<u8> {
    Tarball::new().file(file, 0o644, content).finish()
}

fn docker_tar(images: &[(&TestImage, &[&str])], packed: bool) -> Vec<u8> {
    let mut tar = Tarball::new();
    let mut items = Vec::new();
    for (number, (image, tags)) in images.iter().enumerate() {
        let config = format!("{}.json", image.id().hex());
        tar = tar.file(&config, 0o644, &image.config.bytes);
        let mut layers = Vec::new();
        for (at, blob) in image.layers.iter().enumerate() {
            let dir = format!("image{number}layer{at}");
            let bytes =
                if packed { compress(&blob.bytes, Compression::Gzip) } else { blob.bytes.clone() };
            tar = tar.dir(&format!("{dir}/"), 0o755).file(&format!("{dir}/VERSION"), 0o644, b"1.0");
            tar = tar.file(&format!("{dir}/layer.tar"), 0o644, &bytes);
            layers.push(format!("{dir}/layer.tar"));
        }
        items.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    tar.file("manifest.json", 0o644, Value::from(items).to_string().as_bytes()).finish()
}

fn plain(tars: &[Vec<u8>]) -> TestImage {
    image(tars, Dialect::Docker, Compression::Plain, json!({"Cmd": ["sh"]}))
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives_load_with_all_their_images_and_names() {
    for packed in [false, true] {
        for outer in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let (dir, store) = store().await;
            let (one, two) =
                (plain(&[layer("a", b"1")]), plain(&[layer("a", b"1"), layer("b", b"2")]));
            let tar = docker_tar(&[(&one, &["one:1", "x.test/one:2"]), (&two, &[])], packed);
            let loaded = load(&store, &compress(&tar, outer)).await.unwrap();
            let tags = vec!["docker.io/library/one:1".to_owned(), "x.test/one:2".to_owned()];
            let want = [Loaded { id: one.id(), tags }, Loaded { id: two.id(), tags: Vec::new() }];
            assert_eq!(loaded, want);
            assert_eq!(store.find("x.test/one:2").unwrap().id, one.id());
            let two = store.find(two.id().as_str()).unwrap();
            let content = store.read_file(&two, "/b", 10).await.unwrap();
            assert_eq!(content.unwrap(), b"2");
            store.remove("one:1").await.unwrap();
            store.remove(two.id.as_str()).await.unwrap();
            assert_nothing_left(&dir, &store).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_be_a_link_and_names_may_stand_in_repositories() {
    let (_dir, store) = store().await;
    let made = plain(&[layer("a", b"1"), layer("a", b"1")]);
    let items = json!([{"Config": "c.json", "RepoTags": null,
        "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    let repositories = json!({"old.test/x": {"1": "two", "2": "two", "3": "three"}});
    let tar = Tarball::new()
        .symlink("two/layer.tar", "../one/layer.tar")
        .file("one/layer.tar", 0o644, &made.layers[0].bytes)
        .file("c.json", 0o644, &made.config.bytes)
        .file("repositories", 0o644, repositories.to_string().as_bytes())
        .file("manifest.json", 0o644, items.to_string().as_bytes());
    let loaded = load(&store, &tar.finish()).await.unwrap();
    let tags = ["1", "2"].map(|tag| format!("old.test/x:{tag}"));
    assert_eq!(loaded, [Loaded { id: made.id(), tags: tags.to_vec() }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_load_with_every_kind_of_name() {
    let (_dir, store) = store().await;
    let one = image(&[layer("a", b"1")], Dialect::Oci, Compression::Gzip, json!({}));
    let two = image(&[layer("b", b"2")], Dialect::Docker, Compression::Zstd, json!({}));
    let tar = oci_archive(&[
        (&one, &[(NAME, "x.test/one:1"), (REF_NAME, "1")]),
        (&two, &[(REF_NAME, "v2")]),
        (&one, &[(REF_NAME, "y.test/one:3")]),
    ]);
    let loaded = load(&store, &tar).await.unwrap();
    let tags = vec!["x.test/one:1".to_owned(), "y.test/one:3".to_owned()];
    let wanted = [Loaded { id: one.id(), tags }, Loaded { id: two.id(), tags: Vec::new() }];
    assert_eq!(loaded, wanted);
    let options = LoadOptions { repository: Some("local/two".to_owned()) };
    let loaded = load_with(&store, &compress(&tar, Compression::Gzip), options).await.unwrap();
    assert_eq!(loaded[1].tags, ["docker.io/local/two:v2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_the_part_for_this_machine_is_loaded() {
    let (_dir, store) = store().await;
    let own = image(&[layer("a", b"1")], Dialect::Oci, Compression::Gzip, json!({}));
    let other = image(&[layer("b", b"2")], Dialect::Oci, Compression::Gzip, json!({}));
    let host = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    let index = index(&[(&other.manifest, "linux/s390x"), (&own.manifest, host)], Dialect::Oci);
    // The other platform's blobs are not in the archive, as docker leaves them out.
    let mut tar = Tarball::new();
    for blob in own.layers.iter().chain([&own.config, &own.manifest, &index]) {
        tar = tar.file(&member(blob), 0o644, &blob.bytes);
    }
    let mut entry = index.descriptor();
    entry["annotations"] = json!({NAME: "x.test/multi:1"});
    let top = json!({"schemaVersion": 2, "manifests": [entry]});
    let tar = tar.file("index.json", 0o644, top.to_string().as_bytes()).finish();
    let loaded = load(&store, &tar).await.unwrap();
    assert_eq!(loaded, [Loaded { id: own.id(), tags: vec!["x.test/multi:1".to_owned()] }]);
    let found = store.find("x.test/multi:1").unwrap();
    assert_eq!(found.repo_digests, [format!("x.test/multi@{}", index.digest())]);
}

fn member(blob: &Blob) -> String {
    format!("blobs/{}", blob.digest().as_str().replace(':', "/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_archives_say_what_is_wrong_and_leave_nothing() {
    let (dir, store) = store().await;
    let made = image(&[layer("a", &[7; 3000])], Dialect::Oci, Compression::Gzip, json!({}));
    let whole = oci_archive(&[(&made, &[(NAME, "x.test/a:1")])]);
    let layer_name = member(&made.layers[0]);
    let at = whole.windows(layer_name.len()).position(|w| w == layer_name.as_bytes()).unwrap();
    let mut wrong = whole.clone();
    wrong[at + 512 + 12] ^= 1;
    let without_layer = {
        let mut other = made.clone();
        other.layers[0] = Blob { media_type: String::new(), bytes: b"other".to_vec() };
        oci_archive(&[(&other, &[])])
    };
    let named = |name: &str| Tarball::new().file(name, 0o644, b"x").finish();
    let device = Fields { kind: b'3', name: b"dev", device: (1, 3), ..Fields::default() };
    let differing = Tarball::new().file("x", 0o644, b"1").file("x", 0o644, b"2").finish();
    let docker = |text: &str| Tarball::new().file("manifest.json", 0o644, text.as_bytes()).finish();
    let mut gzip = compress(&whole, Compression::Gzip);
    gzip.truncate(gzip.len() / 2);
    let cases: Vec<(Vec<u8>, String)> = vec![
        (b"<html>not an archive at all</html>".repeat(40), "is no tar".to_owned()),
        (Vec::new(), "is empty".to_owned()),
        (Tarball::new().finish(), "is empty".to_owned()),
        (whole[..at + 700].to_vec(), "ends within".to_owned()),
        (gzip, "read the tar stream".to_owned()),
        (wrong, format!("{layer_name} holds sha256:")),
        (
            without_layer,
            format!("layer {}: the archive has no {layer_name}", made.layers[0].digest()),
        ),
        (named("../../etc/passwd"), "\"../../etc/passwd\" outside".to_owned()),
        (named("/etc/passwd"), "\"/etc/passwd\" outside".to_owned()),
        (Tarball::new().symlink("a/l", "../../x").finish(), "\"../../x\", outside".to_owned()),
        (Tarball::new().entry(&device, b"").finish(), "a device or pipe \"dev\"".to_owned()),
        (differing, "two members \"x\" that differ".to_owned()),
        (named("hello"), "neither index.json nor manifest.json".to_owned()),
        (docker("{}"), "manifest.json is not valid".to_owned()),
        (docker("[]"), "names no image".to_owned()),
        (docker(r#"[{"Config":"c.json","Layers":[]}]"#), "has no c.json".to_owned()),
        (docker_tar(&[(&made, &["UPPER"])], false), "UPPER".to_owned()),
    ];
    for (bytes, words) in cases {
        let error = load(&store, &bytes).await.expect_err(&words);
        let report = error.report();
        assert!(report.contains(&words), "{words:?} is not in {report:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{report}");
        assert_nothing_left(&dir, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_images_all_are_listed_or_none() {
    let (dir, store) = store().await;
    let good = plain(&[layer("a", b"1")]);
    let mut bad = plain(&[layer("b", b"2")]);
    bad.layers[0].bytes = layer("c", b"3");
    let tar = docker_tar(&[(&good, &["good:1"]), (&bad, &["bad:1"])], false);
    let report = load(&store, &tar).await.unwrap_err().report();
    assert!(report.contains("not the diff-id"), "{report}");
    assert!(store.list().is_empty());
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_nothing() {
    let (dir, store) = store().await;
    let made = plain(&[layer("a", &[1; 100_000])]);
    let tar = docker_tar(&[(&made, &["x:1"])], false);
    let (sender, pieces) = mpsc::channel(4);
    let progress = Arc::new(LoadProgress::default());
    sender.send(Piece::Data(tar[..50_000].to_vec().into())).await.unwrap();
    drop(sender);
    let error = store.load(pieces, LoadOptions::default(), progress).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", error.report());
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_tag_leaves_the_image_that_had_it() {
    let (_dir, store) = store().await;
    let (one, two) = (plain(&[layer("a", b"1")]), plain(&[layer("b", b"2")]));
    load(&store, &docker_tar(&[(&one, &["one:1"]), (&two, &["two:1"])], false)).await.unwrap();
    let reference = |text| berth_image::Reference::parse(text).unwrap();
    assert_eq!(store.tag("one:1", &reference("x.test/both:9")).await.unwrap(), one.id());
    assert_eq!(store.find("x.test/both:9").unwrap().id, one.id());
    assert_eq!(store.tag("two:1", &reference("x.test/both:9")).await.unwrap(), two.id());
    assert_eq!(store.find("one:1").unwrap().repo_tags, ["docker.io/library/one:1"]);
    let error = store.tag("three:1", &reference("x:1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let pinned = reference(&format!("x@{}", one.id()));
    let error = store.tag("one:1", &pinned).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.report());
    let seen = store.inspect("two:1").await.unwrap().unwrap();
    assert_eq!(seen.layers.len(), 1);
    assert_eq!((seen.layers[0].images, seen.layers[0].path.is_dir()), (1, true));
    assert!(store.inspect("three:1").await.unwrap().is_none());
}

async fn save(store: &Arc<ImageStore>, names: &[&str]) -> Result<Vec<u8>, Error> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let (registry, progress) = (RegistryConfig::default(), LoadProgress::default());
    let archive = store.save(&names, None, &registry, &progress).await?;
    let length = archive.length();
    let (sender, mut pieces) = mpsc::channel(2);
    let collect = async {
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Data(data) => bytes.extend(data),
                Piece::End => return Some(bytes),
            }
        }
        None
    };
    let (sent, bytes) = tokio::join!(archive.send(sender), collect);
    sent?;
    let bytes = bytes.expect("an end");
    assert_eq!(bytes.len() as u64, length);
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_and_loaded_again_has_the_same_digests() {
    let (dir, store) = store().await;
    let one = image(&[layer("a", b"1")], Dialect::Oci, Compression::Gzip, json!({}));
    let two = plain(&[layer("a", b"1"), layer("b", b"2")]);
    let named: &[(&str, &str)] = &[(NAME, "x.test/one:1")];
    load(&store, &oci_archive(&[(&one, named)])).await.unwrap();
    load(&store, &docker_tar(&[(&two, &["x.test/two:1", "x.test/two:2"])], false)).await.unwrap();
    let before = inspect(&store, &["x.test/one:1", "x.test/two:2"]).await;
    let both = save(&store, &["x.test/one:1", two.id().as_str()]).await.unwrap();
    let single = save(&store, &["x.test/two:2"]).await.unwrap();
    for name in ["x.test/one:1", "x.test/two:1"] {
        store.remove(name).await.unwrap();
    }
    assert_nothing_left(&dir, &store).await;
    let blobs = dir.path().join("image/blobs/sha256");
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "they go with their images");

    let loaded = load(&store, &both).await.unwrap();
    let tags: Vec<_> = loaded.iter().flat_map(|image| image.tags.clone()).collect();
    assert_eq!(tags, ["x.test/one:1", "x.test/two:1", "x.test/two:2"]);
    assert_eq!(inspect(&store, &["x.test/one:1", "x.test/two:2"]).await, before);
    assert_eq!(save(&store, &["x.test/one:1", two.id().as_str()]).await.unwrap(), both);

    // As those read it who know docker-archives only.
    let mut docker_only = single.clone();
    let at = single.windows(10).position(|bytes| bytes == b"index.json").unwrap();
    docker_only[at..at + 10].copy_from_slice(b"other.json");
    // Header bytes are summed up: the same letters give the same sum.
    let sum = |name: &[u8]| name.iter().map(|b| u32::from(*b)).sum::<u32>();
    let (old, new) = (sum(b"index.json"), sum(b"other.json"));
    let field = at + 148..at + 154;
    let was = u32::from_str_radix(std::str::from_utf8(&single[field.clone()]).unwrap(), 8).unwrap();
    docker_only[field].copy_from_slice(format!("{:06o}", was + new - old).as_bytes());
    store.remove("x.test/two:2").await.unwrap();
    let loaded = load(&store, &docker_only).await.unwrap();
    assert_eq!(loaded, [Loaded { id: two.id(), tags: vec!["x.test/two:2".to_owned()] }]);
}

/// What tells images apart: ids, and the digests of manifests and layers.
async fn inspect(store: &Arc<ImageStore>, names: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for name in names {
        let found = store.inspect(name).await.unwrap().unwrap();
        assert!(found.layers.iter().all(|layer| layer.blob_kept), "{name}");
        let layers = found.layers.iter().map(|layer| layer.digest.to_string());
        all.extend([found.image.id.to_string(), found.manifest_digest.to_string()]);
        all.extend(layers);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_not_saved() {
    let (dir, store) = store().await;
    let made = plain(&[layer("a", b"1")]);
    load(&store, &docker_tar(&[(&made, &["127.0.0.1:1/a:1"])], false)).await.unwrap();
    let blob = dir.path().join("image/blobs/sha256").join(made.layers[0].digest().hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let report = save(&store, &["127.0.0.1:1/a:1"]).await.unwrap_err().report();
    assert!(report.contains(made.layers[0].digest().as_str()) && report.contains("damaged"));
    std::fs::remove_file(&blob).unwrap();
    let error = save(&store, &["127.0.0.1:1/a:1"]).await.unwrap_err();
    let report = error.report();
    assert!(report.contains("not kept here") && report.contains("127.0.0.1:1"), "{report}");
    let error = save(&store, &["127.0.0.1:1/b:1"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

async fn import(
    store: &Arc<ImageStore>,
    bytes: &[u8],
    options: ImportOptions,
) -> Result<Loaded, Error> {
    let (sender, pieces) = mpsc::channel(2);
    let data = bytes.to_vec();
    let send = async move {
        let _ = sender.send(Piece::Data(data.into())).await;
        let _ = sender.send(Piece::End).await;
    };
    let progress = Arc::new(LoadProgress::default());
    tokio::join!(store.import(pieces, options, progress), send).0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_filesystem_becomes_an_image() {
    let (dir, store) = store().await;
    let tar = layer("hello", b"world");
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let options = ImportOptions {
            tag: Some(berth_image::Reference::parse("made/here:1").unwrap()),
            changes: vec!["CMD [\"/hello\"]".to_owned(), "ENV A=b".to_owned()],
            message: "by hand".to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
        };
        let made = import(&store, &compress(&tar, compression), options).await.unwrap();
        assert_eq!(made.tags, ["docker.io/made/here:1"]);
        let image = store.find("made/here:1").unwrap();
        assert_eq!(image.id, made.id);
        let content = store.read_file(&image, "/hello", 10).await.unwrap();
        assert_eq!(content.unwrap(), b"world");
        let found = store.inspect("made/here:1").await.unwrap().unwrap();
        let config: Value = serde_json::from_str(&found.config).unwrap();
        assert_eq!(config["config"], json!({"Cmd": ["/hello"], "Env": ["A=b"]}));
        assert_eq!(config["history"][0]["comment"], "by hand");
        assert_eq!(config["rootfs"]["diff_ids"][0], berth_image::Digest::of(&tar).as_str());
        assert!(found.layers[0].blob_kept);
        store.remove("made/here:1").await.unwrap();
        assert_nothing_left(&dir, &store).await;
    }
    let bad = ImportOptions { changes: vec!["RUN x".to_owned()], ..ImportOptions::default() };
    for (bytes, options, words) in [
        (&tar[..], bad, "\"RUN x\""),
        (&b""[..], ImportOptions::default(), "is empty"),
        (&[b'x'; 2000][..], ImportOptions::default(), "checksum"),
        (&tar[..600], ImportOptions::default(), "ends within"),
    ] {
        let error = import(&store, bytes, options).await.unwrap_err();
        assert!(error.report().contains(words), "{}", error.report());
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_nothing_left(&dir, &store).await;
    }
}
