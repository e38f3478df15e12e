//! Pulls under a policy: which are let through, and what the others say.

use std::sync::Arc;

use berth_image::policy::{Action, Identity, Policy, Rule};
use berth_image::{ErrorKind, ImageStore, StoreConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::cosign::{Signed, Signer, referrers, referring, tag};
use crate::images::{Blob, Compression, Dialect, TestImage, image, index};
use crate::liar::{Answer, Liar};
use crate::pull::{assert_nothing_left, pull};
use crate::registry::Registry;
use crate::store::{import, open_with};
use crate::tarball::Tarball;

fn sample() -> TestImage {
    let tar = Tarball::new().file("a", 0o644, b"content").finish();
    image(&[tar], Dialect::Oci, Compression::Gzip, json!({}))
}

fn require(signer: &Signer, identity: Identity) -> Action {
    Action::Require { keys: signer.keys(), identity }
}

fn config(dir: &TempDir, policy: Policy) -> StoreConfig {
    let config = StoreConfig::new(dir.path().join("image"));
    StoreConfig { policy: Arc::new(policy), ..config }
}

async fn open(dir: &TempDir, policy: Policy) -> Arc<ImageStore> {
    ImageStore::open(config(dir, policy)).await.unwrap()
}

/// A store with one rule for everything.
async fn store(action: Action) -> (TempDir, Arc<ImageStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Policy::new(action, Vec::new())).await;
    (dir, store)
}

fn push(registry: &Registry, reference: &str, signed: &Signed) {
    for blob in &signed.blobs {
        registry.push_blob("some/app", blob);
    }
    registry.push_manifest("some/app", reference, &signed.manifest);
}

fn serve(liar: &Liar, reference: &str, signed: &Signed) {
    for blob in &signed.blobs {
        liar.blob(blob, Answer::blob(&blob.bytes));
    }
    liar.tag(reference, Answer::manifest(&signed.manifest));
}

/// Keeps a list of referrers, as registries with that API do.
fn refer(liar: &Liar, subject: &Blob, signed: &[&Signed]) {
    for one in signed {
        serve(liar, one.manifest.digest().as_str(), one);
    }
    let list = referrers(signed, true);
    liar.path(&format!("/v2/x/y/referrers/{}", subject.digest()), Answer::manifest(&list));
}

async fn refused(dir: &TempDir, store: &ImageStore, name: &str) -> String {
    let error = pull(store, name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{}", error.report());
    assert!(store.list().is_empty());
    assert_nothing_left(dir, store).await;
    error.report()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_form_is_found_by_its_tag() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "v1", &image);
    let signature = signer.simple(&image.manifest, "elsewhere.example/app");
    push(&registry, &format!("{}.sig", tag(&image.manifest.digest())), &signature);
    let (_dir, store) = store(require(&signer, Identity::Ignore)).await;
    let pulled = pull(&store, &format!("{}/some/app:v1", registry.address)).await.unwrap();
    let [verified] = pulled.verified() else { panic!("{:?}", pulled.verified()) };
    assert_eq!(verified.key, *signer.keys()[0].id());
    assert_eq!(verified.subject, image.manifest.digest());
    assert_eq!(verified.repository, "elsewhere.example/app");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_found_by_tag_where_the_registry_lists_no_referrers() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "v1", &image);
    let bundle = signer.bundle(&image.manifest);
    push(&registry, bundle.manifest.digest().as_str(), &bundle);
    let list = referrers(&[&bundle], false);
    registry.push_manifest("some/app", &tag(&image.manifest.digest()), &list);
    let (_dir, store) = store(require(&signer, Identity::Ignore)).await;
    let name = format!("{}/some/app@{}", registry.address, image.manifest.digest());
    assert_eq!(pull(&store, &name).await.unwrap().verified().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_found_among_referrers() {
    let (liar, signer, image) = (Liar::start(), Signer::new(), sample());
    liar.honest("v1", &image);
    let foreign = Signer::new().bundle(&image.manifest);
    let bundle = signer.bundle(&image.manifest);
    refer(&liar, &image.manifest, &[&foreign, &bundle]);
    let (_dir, store) = store(require(&signer, Identity::Ignore)).await;
    let pulled = pull(&store, &liar.name("v1")).await.unwrap();
    assert_eq!(pulled.verified()[0].repository, "");
    assert_eq!(liar.count(&format!("manifests/{} ", tag(&image.manifest.digest()))), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_or_the_manifest_below_it_may_be_signed() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "one", &image);
    let list = index(&[(&image.manifest, "linux/amd64")], Dialect::Oci);
    registry.push_manifest("some/app", "many", &list);
    for subject in [&list, &image.manifest] {
        let (dir, store) = store(require(&signer, Identity::Ignore)).await;
        let name = format!("{}/some/app:many", registry.address);
        refused(&dir, &store, &name).await;
        let signature = signer.simple(subject, "any");
        let at = format!("{}.sig", tag(&subject.digest()));
        push(&registry, &at, &signature);
        let pulled = pull(&store, &name).await.unwrap();
        assert_eq!(pulled.verified()[0].subject, subject.digest());
        // The next round begins unsigned.
        push(&registry, &at, &Signer::new().simple(subject, "any"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_image_is_refused_before_its_blobs_are_fetched() {
    let (liar, signer, image) = (Liar::start(), Signer::new(), sample());
    liar.honest("v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let rule = Rule::new(&liar.address, require(&signer, Identity::Ignore)).unwrap();
    let store = open(&dir, Policy::new(Action::Allow, vec![rule])).await;
    let report = refused(&dir, &store, &liar.name("v1")).await;
    let rule = format!("the rule for {:?} of the image policy", liar.address);
    assert!(report.contains(&rule), "{report}");
    let none = format!("{} has none", image.manifest.digest());
    assert!(report.ends_with(&none), "{report}");
    assert_eq!(liar.count("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_do_not_do_are_told_with_their_reasons() {
    let (liar, signer, image) = (Liar::start(), Signer::new(), sample());
    liar.honest("v1", &image);
    let other = Blob { bytes: b"{}".to_vec(), ..image.manifest.clone() };
    let foreign = Signer::new().bundle(&image.manifest);
    let elsewhere = signer.bundle(&other);
    let junk =
        referring(&image.manifest, Blob { bytes: b"junk".to_vec(), ..bundle_blob(&foreign) });
    let large = Blob { bytes: vec![b' '; (1 << 20) + 1], ..bundle_blob(&foreign) };
    let large = referring(&image.manifest, large);
    let gone = signer.bundle(&image.manifest);
    refer(&liar, &image.manifest, &[&foreign, &elsewhere, &junk, &large, &gone]);
    let not_found = Answer::Body { status: "404 Not Found", headers: String::new(), bytes: vec![] };
    liar.blob(&gone.blobs[1], not_found);
    let (dir, store) = store(require(&signer, Identity::Ignore)).await;
    let report = refused(&dir, &store, &liar.name("v1")).await;
    assert!(report.contains("the default rule of the image policy"), "{report}");
    let reasons = [
        (&foreign, "made with none of the rule's keys".to_owned()),
        (&elsewhere, format!("for another image ({})", other.digest())),
        (&junk, "malformed: bundle".to_owned()),
        (&large, "malformed: 1048577 bytes, more than 1048576".to_owned()),
        (&gone, "malformed: it is not there".to_owned()),
    ];
    for (signed, reason) in reasons {
        let text = format!("{}: {reason}", signed.manifest.digest());
        assert!(report.contains(&text), "{text}\n{report}");
    }
    assert_eq!(liar.count(&large.blobs[1].digest().to_string()), 0);
}

fn bundle_blob(signed: &Signed) -> Blob {
    signed.blobs[1].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_not_taken_for_one_without_signatures() {
    let (liar, signer, image) = (Liar::start(), Signer::new(), sample());
    liar.honest("v1", &image);
    let busy = |status| Answer::Body { status, headers: String::new(), bytes: vec![] };
    liar.tag(&format!("{}.sig", tag(&image.manifest.digest())), busy("500 Internal Server Error"));
    let (dir, store) = store(require(&signer, Identity::Ignore)).await;
    let error = pull(&store, &liar.name("v1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert_nothing_left(&dir, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_image_is_not_even_asked_for() {
    let liar = Liar::start();
    liar.honest("v1", &sample());
    let (dir, store) = store(Action::Deny).await;
    let report = refused(&dir, &store, &liar.name("v1")).await;
    let said = format!("{} is denied by the default rule of the image policy", liar.name("v1"));
    assert!(report.contains(&said), "{report}");
    assert!(liar.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_ask_for_the_repositorys_name_in_the_signature() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "v1", &image);
    let name = format!("{}/some/app", registry.address);
    let (dir, store) = store(require(&signer, Identity::Repository)).await;
    let at = format!("{}.sig", tag(&image.manifest.digest()));
    push(&registry, &at, &signer.simple(&image.manifest, "a.example/b"));
    let report = refused(&dir, &store, &format!("{name}:v1")).await;
    let reason = format!("for repository \"a.example/b\", where the rule asks for {name:?}");
    assert!(report.contains(&reason), "{report}");
    push(&registry, &at, &signer.simple(&image.manifest, &name));
    let pulled = pull(&store, &format!("{name}:v1")).await.unwrap();
    assert_eq!(pulled.verified()[0].repository, name);
    assert!(store.admit(&pulled, Some(&format!("{name}:other"))).is_ok());
    assert!(store.admit(&pulled, Some("a.example/b")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_came_unverified_is_not_admitted_until_it_is_pulled() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "v1", &image);
    push(
        &registry,
        &format!("{}.sig", tag(&image.manifest.digest())),
        &signer.simple(&image.manifest, "any"),
    );
    let name = format!("{}/some/app:v1", registry.address);
    let (dir, store) = store(require(&signer, Identity::Ignore)).await;
    let loaded = import(&dir, &store, &image, &name).await;
    for asked in [None, Some(name.as_str()), Some(loaded.id.as_str())] {
        let error = store.admit(&loaded, asked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.report().contains("pulling it again verifies it"), "{}", error.report());
    }
    let pulled = pull(&store, &name).await.unwrap();
    for asked in [None, Some(name.as_str()), Some("any.example/name")] {
        assert!(store.admit(&pulled, asked).is_ok(), "{asked:?}");
    }
    // What was verified stays with the image, whatever brings it again.
    let loaded = import(&dir, &store, &image, "b.example/name:v2").await;
    assert_eq!(loaded.verified(), pulled.verified());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_counts_only_for_keys_that_are_still_configured() {
    let (registry, signer, image) = (Registry::start(), Signer::new(), sample());
    registry.push("some/app", "v1", &image);
    let at = format!("{}.sig", tag(&image.manifest.digest()));
    push(&registry, &at, &signer.simple(&image.manifest, "any"));
    let name = format!("{}/some/app:v1", registry.address);
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(&dir, Policy::new(require(&signer, Identity::Ignore), vec![])).await;
    pull(&store, &name).await.unwrap();
    store.settle().await.unwrap();
    let other = Signer::new();
    let both = Action::Require {
        keys: [other.keys(), signer.keys()].concat(),
        identity: Identity::Ignore,
    };
    let cases = [
        (Action::Allow, true),
        (Action::Deny, false),
        (require(&signer, Identity::Ignore), true),
        (both, true),
        (require(&other, Identity::Ignore), false),
        (require(&signer, Identity::Repository), false),
    ];
    for (action, admitted) in cases {
        store = open_with(config(&dir, Policy::new(action.clone(), vec![])), store).await;
        let image = store.find(&name).unwrap();
        assert_eq!(store.admit(&image, None).is_ok(), admitted, "{action:?}");
        assert_eq!(store.admit(&image, Some(&name)).is_ok(), admitted, "{action:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_name_to_go_by_all_names_must_be_admitted() {
    let image = sample();
    let dir = tempfile::tempdir().unwrap();
    let rules = [("a.example", Action::Allow), ("b.example", Action::Deny)];
    let rules = rules.map(|(prefix, action)| Rule::new(prefix, action).unwrap());
    let store = open(&dir, Policy::new(Action::Deny, rules.into())).await;
    let loaded = import(&dir, &store, &image, "a.example/b:v1").await;
    assert!(store.admit(&loaded, None).is_ok());
    let loaded = import(&dir, &store, &image, "b.example/b:v1").await;
    assert!(store.admit(&loaded, None).is_err());
    assert!(store.admit(&loaded, Some("a.example/b:v1")).is_ok());
}
