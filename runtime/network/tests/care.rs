//! STATUS, GC and CHECK: when plugins are asked, and what they are told.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test's own parts")]

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use berth_network::{Error, ErrorKind, Networks};
use common::{Place, attachment, until};
use serde_json::{Value, json};

/// Answers ADD; does for another verb what the file `log/on-VERB` says.
const PLUGIN: &str = r#"
[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.7/24"}]}'; exit 0; }
[ ! -e $HERE/log/on-$CNI_COMMAND ] || . $HERE/log/on-$CNI_COMMAND
"#;

fn place(list: &Value) -> Place {
    let place = Place::new();
    place.plugin("one", PLUGIN);
    place.plugin("two", PLUGIN);
    place.configure_raw(list);
    place
}

fn list(version: &str, more: &Value) -> Value {
    let mut list = json!({
        "name": "n", "cniVersion": version, "plugins": [{"type": "one"}, {"type": "two"}],
    });
    let (keys, more) = (list.as_object_mut().unwrap(), more.as_object().unwrap());
    keys.extend(more.clone());
    list
}

fn calls(place: &Place, verb: &str) -> usize {
    place.calls().iter().filter(|call| call.starts_with(verb)).count()
}

#[tokio::test]
async fn a_plugin_that_cannot_work_makes_the_network_not_ready() {
    let place = place(&list("1.1.0", &json!({})));
    let refuse = r#"[ $(basename $0) = one ] || { echo '{"code":50,"msg":"no daemon"}'; exit 1; }"#;
    fs::write(place.path("log/on-STATUS"), refuse).unwrap();
    let networks = place.networks().await;
    let error = networks.status().await.unwrap_err();
    assert!(error.message.contains("\"two\" STATUS: no daemon (code 50)"), "{error}");
    let input = place.input("STATUS", "two");
    assert_eq!(input, json!({"name": "n", "cniVersion": "1.1.0", "type": "two"}));
    let env = fs::read_to_string(place.path("log/STATUS-two.env")).unwrap();
    assert!(env.lines().any(|line| line == "CNI_COMMAND=STATUS"), "{env}");

    // The answer is kept for some seconds; another configuration is asked at once.
    networks.status().await.unwrap_err();
    assert_eq!(calls(&place, "STATUS two"), 1);
    fs::remove_file(place.path("log/on-STATUS")).unwrap();
    place.configure_raw(&list("1.1.0", &json!({"name": "m"})));
    networks.status().await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_hangs_in_status_keeps_nobody_waiting_for_long() {
    let place = place(&list("1.1.0", &json!({})));
    fs::write(place.path("log/on-STATUS"), "exec sleep 60").unwrap();
    let networks = Networks::open(place.config(Duration::from_millis(200))).await.unwrap();
    let error = networks.status().await.unwrap_err();
    assert!(error.message.contains("\"one\" STATUS: not done after 200ms"), "{error}");
    let networks = Networks::open(place.config(Duration::from_secs(30))).await.unwrap();
    let began = std::time::Instant::now();
    let error = networks.status().await.unwrap_err();
    assert!(error.message.contains("not known yet"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn old_versions_are_asked_nothing_new() {
    for version in ["0.3.1", "1.0.0"] {
        let place = place(&list(version, &json!({})));
        let networks = place.networks().await;
        networks.status().await.unwrap();
        assert!(!networks.gc().await.unwrap());
        assert!(place.calls().is_empty(), "{version}: {:?}", place.calls());
    }
}

#[tokio::test]
async fn gc_is_told_of_every_attachment() {
    let place = place(&list("1.1.0", &json!({})));
    let networks = place.networks().await;
    for id in ["p1", "p2", "p3"] {
        networks.add(&attachment(id)).await.unwrap();
    }
    networks.del(&attachment("p2")).await.unwrap();
    // One whose record a power cut tore is there all the same.
    fs::write(place.path("cni/p4-eth0.json"), "").unwrap();
    assert!(networks.gc().await.unwrap());
    let valid = json!([
        {"containerID": "p1", "ifname": "eth0"},
        {"containerID": "p3", "ifname": "eth0"},
        {"containerID": "p4", "ifname": "eth0"},
    ]);
    for plugin in ["one", "two"] {
        let want = json!({
            "name": "n", "cniVersion": "1.1.0", "type": plugin,
            "cni.dev/valid-attachments": valid,
        });
        assert_eq!(place.input("GC", plugin), want);
    }
}

#[tokio::test]
async fn gc_runs_on_all_plugins_and_tells_which_failed() {
    let place = place(&list("1.1.0", &json!({})));
    let networks = place.networks().await;
    let refuse = r#"[ $(basename $0) = two ] || { echo '{"code":7,"msg":"no"}'; exit 1; }"#;
    fs::write(place.path("log/on-GC"), refuse).unwrap();
    let error = networks.gc().await.unwrap_err();
    assert_eq!(error.to_string(), "network \"n\": plugin \"one\" GC: no (code 7)");
    assert_eq!(place.calls(), ["GC one", "GC two"]);
}

#[tokio::test]
async fn a_list_can_forbid_gc_and_check() {
    let place = place(&list("1.1.0", &json!({"disableGC": true, "disableCheck": true})));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    assert!(!networks.gc().await.unwrap());
    networks.check("p1", "eth0").await.unwrap();
    assert_eq!((calls(&place, "GC"), calls(&place, "CHECK")), (0, 0));
}

#[tokio::test]
async fn what_is_attached_during_gc_waits_for_its_end() {
    let place = place(&list("1.1.0", &json!({})));
    let networks = Arc::new(place.networks().await);
    let hold = "touch $HERE/log/held; while [ ! -e $HERE/log/go ]; do sleep 0.01; done";
    fs::write(place.path("log/on-GC"), hold).unwrap();
    let collecting = tokio::spawn({
        let networks = networks.clone();
        async move { networks.gc().await }
    });
    until("GC runs", || place.path("log/held").exists()).await;
    let adding = tokio::spawn({
        let networks = networks.clone();
        async move { networks.add(&attachment("p1")).await }
    });
    // What is attached already can be detached meanwhile.
    networks.del(&attachment("p0")).await.unwrap();
    assert_eq!(calls(&place, "ADD"), 0);
    assert!(!adding.is_finished());
    fs::write(place.path("log/go"), "").unwrap();
    assert!(collecting.await.unwrap().unwrap());
    adding.await.unwrap().unwrap();
    let order = place.calls();
    assert_eq!(order, ["GC one", "GC two", "ADD one p1", "ADD two p1"]);
}

#[tokio::test]
async fn check_gives_each_plugin_the_last_result() {
    let place = place(&list("0.4.0", &json!({})));
    let networks = place.networks().await;
    let missing = networks.check("p1", "eth0").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    networks.add(&attachment("p1")).await.unwrap();
    networks.check("p1", "eth0").await.unwrap();
    for plugin in ["one", "two"] {
        let previous = &place.input("CHECK", plugin)["prevResult"];
        assert_eq!(previous["ips"][0]["address"], "10.9.0.7/24");
    }
    let refuse = r#"echo '{"code":9,"msg":"eth0 is gone"}'; exit 1"#;
    fs::write(place.path("log/on-CHECK"), refuse).unwrap();
    let wrong = networks.check_all().await;
    let [(id, error @ Error::Plugin { .. })] = wrong.as_slice() else { unreachable!("{wrong:?}") };
    assert_eq!(id, "p1");
    assert!(error.to_string().contains("\"one\" CHECK: eth0 is gone (code 9)"), "{error}");
}
