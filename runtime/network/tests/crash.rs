//! The reference plugins when the daemon is killed or the disk is full. Needs root and iproute2.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test's own parts")]

mod common;

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_network::{Attachment, Error, NetworkConfig, Networks};
use common::attachment;
use common::node::{leases, list, on, start};
use serde_json::json;

/// A small file system over the directory of records, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "berth-test"]).arg(&path);
        assert!(mount.status().unwrap().success());
        Self(path)
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        let full = std::iter::repeat_with(|| file.write_all(&[0; 4096])).find(Result::is_err);
        assert_eq!(full.unwrap().unwrap_err().kind(), ErrorKind::StorageFull);
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_keeps_pods_out_and_lets_them_go() {
    let (place, node, pod) = start("disk");
    let disk = Disk::mount(place.path("cni"));
    let networks = node.networks(&place, "1.0.0").await;
    let asked = on("p1", &pod);
    disk.fill();
    let error = networks.add(&asked).await.unwrap_err();
    assert!(matches!(error, Error::Record { .. }), "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    disk.empty();
    assert!(place.records().is_empty() && leases(&place).is_empty());

    networks.add(&asked).await.unwrap();
    disk.fill();
    networks.del(&asked).await.unwrap();
    disk.empty();
    assert!(place.records().is_empty() && leases(&place).is_empty());
    assert_eq!(node.ports(), 0);
}

/// The other half of the next test: a daemon that is killed at some moment.
#[tokio::test]
#[ignore = "run by kills_during_add_and_del_leave_nothing"]
async fn daemon_that_attaches() {
    let (Ok(cache), Ok(netns)) = (env::var("BERTH_TEST_CACHE"), env::var("BERTH_TEST_NETNS"))
    else {
        return;
    };
    let cache_dir = PathBuf::from(cache);
    let networks = Networks::open(NetworkConfig {
        conf_dir: cache_dir.with_file_name("net.d"),
        bin_dirs: vec!["/usr/lib/cni".into()],
        cache_dir,
        plugin_deadline: Duration::from_secs(30),
        builtin: false,
        bridge: common::bridge(),
    });
    let networks = networks.await.unwrap();
    let asked = Attachment { netns: netns.into(), ..attachment("p1") };
    networks.add(&asked).await.unwrap();
    networks.del(&asked).await.unwrap();
}

#[tokio::test]
async fn kills_during_add_and_del_leave_nothing() {
    let (place, node, pod) = start("kills");
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    place.configure_raw(&list("1.0.0", &json!([node.bridge(&place), portmap])));
    let mut found = 0;
    for kill in 0..24_u64 {
        let mut daemon = Command::new(env::current_exe().unwrap())
            .args(["--exact", "daemon_that_attaches", "--ignored"])
            .env("BERTH_TEST_CACHE", place.path("cni"))
            .env("BERTH_TEST_NETNS", pod.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over its life, whatever it is doing then.
        tokio::time::sleep(Duration::from_millis(kill * 11)).await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();

        let networks = place.networks().await;
        for id in networks.cached().await.unwrap() {
            found += 1;
            networks.del_all(&id).await.unwrap();
        }
        let left = (leases(&place).len(), node.ports(), place.records());
        assert_eq!(left, (0, 0, vec![]), "after kill {kill}");
        assert!(pod.run(&["ip", "link", "show", "eth0"]).is_err(), "after kill {kill}");
    }
    assert!(found > 2, "only {found} kills hit");
}
