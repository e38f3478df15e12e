//! Chains of plugins made of shell: what they are told, and every way in which they fail.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own parts")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_network::{Attachment, Error, ErrorKind, Networks, PluginError, PortMapping, Protocol};
use common::{Place, attachment, is_alive, until};
use serde_json::json;

/// The answer of a plugin that gave 10.9.0.7.
const ANSWER: &str = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}'"#;

fn only_add(body: &str) -> String {
    format!("[ $CNI_COMMAND = ADD ] || exit 0\n{body}")
}

async fn failed_add(body: &str) -> (Place, Error) {
    let place = Place::new();
    place.plugin("good", ANSWER);
    place.plugin("bad", &only_add(body));
    place.configure(&json!([{"type": "good"}, {"type": "bad"}]));
    let networks = Networks::open(place.config(Duration::from_millis(700))).await.unwrap();
    let error = networks.add(&attachment("p1")).await.unwrap_err();
    let calls = ["ADD good p1", "ADD bad p1", "DEL bad p1", "DEL good p1"];
    assert_eq!(place.calls(), calls, "undone in reverse after: {error}");
    assert!(place.records().is_empty(), "{:?}", place.records());
    (place, error)
}

fn source(error: &Error) -> &PluginError {
    match error {
        Error::Plugin { network, plugin, source, .. } => {
            assert_eq!((network.as_str(), plugin.as_str()), ("berth-test", "bad"));
            source
        }
        other => panic!("not a plugin's error: {other}"),
    }
}

#[tokio::test]
async fn each_plugin_is_told_what_the_specification_says() {
    let place = Place::new();
    place.plugin("first", ANSWER);
    place.plugin("second", ANSWER);
    place.configure(&json!([
        {"type": "first", "mtu": 9000},
        {"type": "second", "capabilities": {"portMappings": true, "ips": true}},
    ]));
    let networks = place.networks().await;
    networks.status().await.unwrap();
    let port =
        PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Udp, host_ip: None };
    let asked = Attachment {
        port_mappings: vec![port],
        mac: Some("02:00:00:00:00:01".into()),
        ..attachment("p1")
    };
    let attached = networks.add(&asked).await.unwrap();
    assert_eq!(attached.ips, ["10.9.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(attached.network, "berth-test");
    assert_eq!(networks.attached("p1", "eth0").await.unwrap(), Some(attached));
    assert_eq!(networks.cached().await.unwrap(), ["p1"]);

    let answer = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.7/24"}]});
    let first = json!({"name": "berth-test", "cniVersion": "1.0.0", "type": "first", "mtu": 9000});
    assert_eq!(place.input("ADD", "first"), first);
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]);
    let second = json!({
        "name": "berth-test", "cniVersion": "1.0.0", "type": "second",
        "capabilities": {"portMappings": true, "ips": true},
        "runtimeConfig": {"portMappings": ports}, "prevResult": answer,
    });
    assert_eq!(place.input("ADD", "second"), second);

    // Another configuration comes: DEL works with that of its ADD.
    place.configure(&json!([{"type": "third"}]));
    networks.del(&attachment("p1")).await.unwrap();
    assert_eq!(place.calls(), ["ADD first p1", "ADD second p1", "DEL second p1", "DEL first p1"]);
    assert_eq!(place.input("DEL", "second"), second);
    assert_eq!(place.input("DEL", "first")["prevResult"], answer);
    assert!(place.records().is_empty());
    networks.del(&attachment("p1")).await.unwrap();
    assert_eq!(place.calls().len(), 4, "a second DEL has nothing to do");
}

#[tokio::test]
async fn the_environment_holds_cni_and_path_only() {
    let place = Place::new();
    place.plugin("only", ANSWER);
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    // The namespace is gone when DEL comes.
    networks.del(&Attachment { netns: "/nonexistent".into(), ..attachment("p1") }).await.unwrap();
    for (verb, netns) in [("ADD", "/proc/self/ns/net"), ("DEL", "")] {
        let text = fs::read_to_string(place.path(&format!("log/{verb}-only.env"))).unwrap();
        // The shell adds the last two.
        let mut lines: Vec<&str> =
            text.lines().filter(|l| !l.starts_with("PWD=") && !l.starts_with("_=")).collect();
        lines.sort_unstable();
        let bin = place.path("bin").display().to_string();
        let want = [
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
             K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1"
                .to_owned(),
            format!("CNI_COMMAND={verb}"),
            "CNI_CONTAINERID=p1".to_owned(),
            "CNI_IFNAME=eth0".to_owned(),
            format!("CNI_NETNS={netns}"),
            format!("CNI_PATH={}:{bin}:/usr/lib/cni", place.path("none").display()),
            format!("PATH={}", std::env::var("PATH").unwrap()),
        ];
        assert_eq!(lines, want);
    }
}

#[tokio::test]
async fn an_error_object_reaches_the_caller_whole() {
    let body = "echo moaning >&2\n\
        echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"no room\",\"details\":\"pool full\"}'\n\
        exit 1";
    let (_place, error) = failed_add(body).await;
    assert_eq!(
        error.to_string(),
        "network \"berth-test\": plugin \"bad\" ADD: no room: pool full (code 11); stderr: moaning"
    );
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn a_crash_is_told_with_what_was_said() {
    let (_place, error) = failed_add("echo half; echo why >&2; kill -9 $$").await;
    let PluginError::Crashed { status, output, stderr } = source(&error) else { panic!("{error}") };
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(9));
    assert_eq!((output.as_str(), stderr.0.as_str()), ("half\n", "why"));
}

#[tokio::test]
async fn rubbish_is_no_result() {
    let cases = [
        ("echo hello", "expected"),
        ("exit 0", "EOF"),
        ("echo '[]'", "not an object"),
        ("head -c 3000000 /dev/zero", "longer than"),
        (
            "echo '{\"ips\":[{\"address\":\"10.0.0.1/8\",\"interface\":5}]}'",
            "interface 5, not in it",
        ),
    ];
    for (body, want) in cases {
        let (_place, error) = failed_add(body).await;
        let PluginError::Rubbish { why, .. } = source(&error) else { panic!("{error}") };
        assert!(why.contains(want), "{body}: {why}");
    }
}

#[tokio::test]
async fn an_interface_without_address_is_a_failure() {
    let (_place, error) = failed_add("echo '{\"cniVersion\":\"1.0.0\"}'").await;
    assert!(matches!(error, Error::NoAddress { .. }), "{error}");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let began = Instant::now();
    let (place, error) =
        failed_add("sleep 1000 & echo $! > $HERE/child; echo $$ > $HERE/self; echo on >&2; wait")
            .await;
    assert!(began.elapsed() < Duration::from_secs(10));
    let PluginError::Deadline { stderr, .. } = source(&error) else { panic!("{error}") };
    assert_eq!(stderr.0, "on");
    assert_eq!(error.kind(), ErrorKind::Deadline);
    for pid in ["self", "child"] {
        until(pid, || !is_alive(&place.path(pid))).await;
    }
}

#[tokio::test]
async fn a_missing_plugin_is_told_before_anything_runs() {
    let place = Place::new();
    place.plugin("good", ANSWER);
    place.configure(&json!([{"type": "good"}, {"type": "gone"}]));
    let networks = place.networks().await;
    let not_ready = networks.status().await.unwrap_err();
    assert!(not_ready.message.contains("plugin \"gone\": not found in"), "{not_ready}");
    let error = networks.add(&attachment("p1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(place.calls().is_empty() && place.records().is_empty());
    // It comes later, without a restart.
    place.plugin("gone", ANSWER);
    networks.status().await.unwrap();
    networks.add(&attachment("p1")).await.unwrap();
    // And goes again: DEL leaves it out.
    fs::remove_file(place.path("bin/gone")).unwrap();
    networks.del(&attachment("p1")).await.unwrap();
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn a_configuration_dropped_in_later_is_seen() {
    let place = Place::new();
    place.plugin("good", ANSWER);
    let networks = place.networks().await;
    let not_ready = networks.status().await.unwrap_err();
    let dir = place.path("net.d").display().to_string();
    assert_eq!(not_ready.message, format!("no CNI configuration found in {dir}"));
    let error = networks.add(&attachment("p1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
    place.configure(&json!([{"type": "good"}]));
    networks.status().await.unwrap();
    fs::write(place.path("net.d/05-broken.conflist"), "{").unwrap();
    let not_ready = networks.status().await.unwrap_err();
    assert!(not_ready.message.contains("05-broken.conflist cannot be used"), "{not_ready}");
}

#[tokio::test]
async fn a_failed_del_can_be_repeated() {
    let place = Place::new();
    place.plugin("first", ANSWER);
    place.plugin(
        "second",
        &format!("[ $CNI_COMMAND = ADD ] && {ANSWER} && exit\n[ -e $HERE/well ]"),
    );
    place.configure(&json!([{"type": "first"}, {"type": "second"}]));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    let error = networks.del(&attachment("p1")).await.unwrap_err();
    let Error::Detach { failures, .. } = &error else { panic!("{error}") };
    assert_eq!(failures.len(), 1);
    assert_eq!(place.calls().last().unwrap(), "DEL first p1", "the others ran");
    assert_eq!(networks.cached().await.unwrap(), ["p1"]);
    let again = networks.add(&attachment("p1")).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    fs::write(place.path("well"), "").unwrap();
    networks.del_all("p1").await.unwrap();
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn an_unknown_container_needs_no_del() {
    let place = Place::new();
    let refusal = "echo '{\"code\":3,\"msg\":\"unknown\"}'; exit 1";
    place.plugin("only", &format!("[ $CNI_COMMAND = ADD ] && {ANSWER} && exit\n{refusal}"));
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    networks.del(&attachment("p1")).await.unwrap();
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn del_of_the_oldest_version_gets_no_result() {
    let place = Place::new();
    place.plugin("only", &ANSWER.replace("1.0.0", "0.3.1"));
    place
        .configure_raw(&json!({"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "only"}]}));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    networks.del(&attachment("p1")).await.unwrap();
    let want = json!({"name": "n", "cniVersion": "0.3.1", "type": "only"});
    assert_eq!(place.input("DEL", "only"), want);
}

#[tokio::test]
async fn a_torn_record_is_deleted_by_the_configuration_in_force() {
    let place = Place::new();
    place.plugin("only", ANSWER);
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    networks.add(&attachment("p1")).await.unwrap();
    fs::write(place.path("cni/p1-eth0.json"), "{\"version\":1,\"pha").unwrap();
    assert_eq!(networks.attached("p1", "eth0").await.unwrap(), None);
    networks.del(&attachment("p1")).await.unwrap();
    assert_eq!(place.calls().last().unwrap(), "DEL only p1");
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn attachments_run_side_by_side() {
    let place = Place::new();
    // Each answers only once all three are there.
    let body = format!(
        "touch $HERE/here-$CNI_CONTAINERID\n\
         until [ -e $HERE/here-p1 -a -e $HERE/here-p2 -a -e $HERE/here-p3 ]; do sleep 0.01; done\n\
         {ANSWER}"
    );
    place.plugin("only", &body);
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    let [a, b, c] = ["p1", "p2", "p3"].map(attachment);
    let (a, b, c) = tokio::join!(networks.add(&a), networks.add(&b), networks.add(&c));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(networks.cached().await.unwrap(), ["p1", "p2", "p3"]);
}

#[tokio::test]
async fn an_add_whose_caller_left_completes() {
    let place = Place::new();
    let body = format!("touch $HERE/began; until [ -e $HERE/go ]; do sleep 0.01; done\n{ANSWER}");
    place.plugin("only", &only_add(&body));
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    let asked = attachment("p1");
    tokio::select! {
        _ = networks.add(&asked) => panic!("cannot be done"),
        () = until("began", || place.path("began").exists()) => {}
    }
    assert_eq!(networks.cached().await.unwrap(), ["p1"], "the intent is on disk");
    assert_eq!(networks.attached("p1", "eth0").await.unwrap(), None);
    fs::write(place.path("go"), "").unwrap();
    networks.close().await;
    assert!(networks.attached("p1", "eth0").await.unwrap().is_some());
    assert!(matches!(networks.del(&asked).await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_del_ends_the_add_before_it() {
    let place = Place::new();
    place.plugin(
        "only",
        &only_add("echo $$ > $HERE/self.new; mv $HERE/self.new $HERE/self; sleep 1000"),
    );
    place.configure(&json!([{"type": "only"}]));
    let networks = place.networks().await;
    let asked = attachment("p1");
    let (added, deleted) = tokio::join!(networks.add(&asked), async {
        until("began", || place.path("self").exists()).await;
        networks.del(&asked).await
    });
    deleted.unwrap();
    assert_eq!(added.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(!is_alive(&place.path("self")));
    assert_eq!(place.calls(), ["ADD only p1", "DEL only p1"]);
    assert!(place.records().is_empty());
}

/// Whether this process has the file open.
fn has_open(path: &Path) -> bool {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path))
}

/// The other half of the next test: a daemon that is killed during its ADD.
#[tokio::test]
#[ignore = "run by a_daemon_killed_during_add_leaves_a_record"]
async fn daemon_that_adds() {
    let Ok(root) = std::env::var("BERTH_TEST_PLACE") else { return };
    let root = Path::new(&root);
    let networks = Networks::open(berth_network::NetworkConfig {
        conf_dir: root.join("net.d"),
        bin_dirs: vec![root.join("bin")],
        cache_dir: root.join("cni"),
        plugin_deadline: Duration::from_secs(30),
        builtin: false,
        bridge: common::bridge(),
    });
    networks.await.unwrap().add(&attachment("p1")).await.unwrap();
}

#[tokio::test]
async fn a_daemon_killed_during_add_leaves_a_record() {
    let place = Place::new();
    let body = "touch $HERE/began; until [ -e $HERE/go ]; do sleep 0.01; done; \
                echo done >> $HERE/log/calls";
    place.plugin("only", &only_add(body));
    place.configure(&json!([{"type": "only"}]));
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_that_adds", "--ignored"])
        .env("BERTH_TEST_PLACE", place.path(""))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("began", || place.path("began").exists()).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let networks = place.networks().await;
    assert_eq!(networks.cached().await.unwrap(), ["p1"]);
    // DEL does not overtake the plugin that still runs.
    let deletes = async {
        tokio::select! {
            biased;
            done = networks.del_all("p1") => done,
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("never done"),
        }
    };
    let (deleted, ()) = tokio::join!(deletes, async {
        until("DEL holds the input open", || has_open(&place.path("cni/p1-eth0.input"))).await;
        assert_eq!(place.calls(), ["ADD only p1"]);
        fs::write(place.path("go"), "").unwrap();
    });
    deleted.unwrap();
    assert_eq!(place.calls(), ["ADD only p1", "done", "DEL only p1"]);
    assert!(place.records().is_empty());
}
