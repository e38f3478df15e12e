//! What the tests of this crate share: a place of their own, and plugins made of shell.
#![allow(dead_code, reason = "each test binary uses its part")]
#![expect(clippy::unwrap_used, reason = "a test ends where its place cannot be made")]

pub(crate) mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_network::{Attachment, BridgeConfig, NetworkConfig, Networks};
use serde_json::Value;
use tempfile::TempDir;

/// One daemon's directories.
pub(crate) struct Place {
    temp: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("berth-test-network-").tempdir().unwrap();
        for dir in ["bin", "net.d", "log"] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        Self { temp }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// The first configuration of the place.
    pub(crate) fn configure(&self, plugins: &Value) {
        let list =
            serde_json::json!({"name": "berth-test", "cniVersion": "1.0.0", "plugins": plugins});
        self.configure_raw(&list);
    }

    pub(crate) fn configure_raw(&self, list: &Value) {
        fs::write(self.path("net.d/10-test.conflist"), list.to_string()).unwrap();
    }

    /// A plugin that notes each call in `log/calls` ("ADD name id"), its input and environment in
    /// `log/<verb>-<name>.{json,env}`, then runs `body`. `$HERE` is the place.
    pub(crate) fn plugin(&self, name: &str, body: &str) {
        let here = self.temp.path().display();
        let text = format!(
            "#!/bin/sh\nHERE={here}\nlog=$HERE/log/$CNI_COMMAND-{name}\n\
             env > $log.env\ncat > $log.json\n\
             echo $CNI_COMMAND {name} $CNI_CONTAINERID >> $HERE/log/calls\n{body}\n"
        );
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn config(&self, plugin_deadline: Duration) -> NetworkConfig {
        NetworkConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![self.path("none"), self.path("bin"), "/usr/lib/cni".into()],
            cache_dir: self.path("cni"),
            plugin_deadline,
            builtin: false,
            bridge: bridge(),
        }
    }

    pub(crate) async fn networks(&self) -> Networks {
        Networks::open(self.config(Duration::from_secs(30))).await.unwrap()
    }

    /// What ran so far, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log/calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The input that the plugin's last call got.
    pub(crate) fn input(&self, verb: &str, plugin: &str) -> Value {
        let text = fs::read(self.path(&format!("log/{verb}-{plugin}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Files in the directory of records.
    pub(crate) fn records(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cni")).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The built-in network of tests.
pub(crate) fn bridge() -> BridgeConfig {
    let subnets = ["10.214.0.0/28", "fd14::/64"].map(|subnet| subnet.parse().unwrap());
    BridgeConfig { name: "berth9".into(), subnets: subnets.into() }
}

pub(crate) fn attachment(id: &str) -> Attachment {
    Attachment {
        id: id.into(),
        netns: "/proc/self/ns/net".into(),
        ifname: "eth0".into(),
        pod_name: "web-0".into(),
        pod_namespace: "default".into(),
        pod_uid: "u-1".into(),
        ..Attachment::default()
    }
}

/// Waits for a condition, up to ten seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process that wrote its id there is alive.
pub(crate) fn is_alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // The state follows the name in parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
