//! Namespaces that tests make, and a network of the reference plugins in them.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_network::{Attachment, Networks};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use super::{Place, attachment};

pub(crate) fn ip(args: &[&str]) -> Result<String, String> {
    let done = Command::new("ip").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

/// A network namespace, removed when dropped.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("berth-test-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]).unwrap();
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(crate) fn run(&self, command: &[&str]) -> Result<String, String> {
        let mut args = vec!["netns", "exec", &self.0];
        args.extend(command);
        ip(&args)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.0]);
    }
}

/// A machine of its own: the test's thread moves into a namespace and so do the plugins it starts.
/// Bridges, rules and addresses end with the thread, whatever the plugins leave behind.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
}

pub(crate) const BRIDGE: &str = "berth0";

impl Node {
    pub(crate) fn enter(name: &str) -> Self {
        let namespace = Namespace::new(&format!("{name}-node"));
        let file = File::open(namespace.path()).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        ip(&["link", "set", "lo", "up"]).unwrap();
        Self { namespace }
    }

    pub(crate) fn bridge(&self, place: &Place) -> Value {
        json!({
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true,
            "capabilities": {"ips": true, "mac": true},
            "ipam": {
                "type": "host-local", "dataDir": place.path("ipam"),
                "ranges": [[{"subnet": "10.213.0.0/24"}], [{"subnet": "fd13::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    /// A network of the bridge alone.
    pub(crate) async fn networks(&self, place: &Place, version: &str) -> Networks {
        place.configure_raw(&list(version, &json!([self.bridge(place)])));
        place.networks().await
    }

    /// Interfaces that hang on the bridge.
    pub(crate) fn ports(&self) -> usize {
        ip(&["-o", "link", "show", "master", BRIDGE]).unwrap_or_default().lines().count()
    }

    /// Address translation, as iptables-save shows it.
    pub(crate) fn rules(&self) -> String {
        self.namespace.run(&["iptables-save", "-t", "nat"]).unwrap()
    }
}

pub(crate) fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 213, 0, last).into()
}

pub(crate) fn list(version: &str, plugins: &Value) -> Value {
    json!({"name": "berth-test", "cniVersion": version, "plugins": plugins})
}

/// Addresses that host-local holds.
pub(crate) fn leases(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("ipam/berth-test")).into_iter().flatten();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("10.") || n.starts_with("fd13")).collect()
}

pub(crate) fn start(name: &str) -> (Place, Node, Namespace) {
    (Place::new(), Node::enter(name), Namespace::new(name))
}

pub(crate) fn on(id: &str, namespace: &Namespace) -> Attachment {
    Attachment { netns: namespace.path(), ..attachment(id) }
}
