//! The reference plugins (Debian: containernetworking-plugins), in namespaces made here. Needs root,
//! iproute2, iptables and busybox.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's own parts")]

mod common;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use berth_network::{Attachment, Bandwidth, Error, PortMapping, Protocol, Rate};
use common::node::{Namespace, Node, address, leases, list, on, start};
use common::{Place, until};
use serde_json::{Value, json};

#[tokio::test]
async fn a_pod_gets_its_addresses_and_gives_them_back() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let (place, node, pod) = start("one");
        let networks = node.networks(&place, version).await;
        let asked = on("p1", &pod);
        let attached = networks.add(&asked).await.unwrap();
        assert_eq!(attached.ips.len(), 2, "{version}: {attached:?}");
        assert_eq!(attached.ips[0], address(2));
        assert!(attached.ips[1].is_ipv6());
        let eth0 = attached.interfaces.iter().find(|i| i.name == "eth0").unwrap();
        assert_eq!(Path::new(&eth0.sandbox), pod.path());
        let shown = pod.run(&["ip", "-o", "addr", "show", "eth0"]).unwrap();
        for ip in &attached.ips {
            assert!(shown.contains(&format!(" {ip}/")), "{ip} in {shown}");
        }
        assert_eq!(leases(&place).len(), 2);

        networks.del(&asked).await.unwrap();
        assert!(pod.run(&["ip", "link", "show", "eth0"]).is_err());
        assert_eq!((leases(&place).len(), node.ports()), (0, 0), "{version}");
        assert!(place.records().is_empty());
    }
}

#[tokio::test]
async fn an_address_and_a_mac_can_be_asked_for() {
    let (place, node, pod) = start("asked");
    let networks = node.networks(&place, "1.0.0").await;
    let asked = Attachment {
        ips: vec![address(77).to_string()],
        mac: Some("02:11:22:33:44:55".into()),
        ..on("p1", &pod)
    };
    let attached = networks.add(&asked).await.unwrap();
    assert_eq!(attached.ips[0], address(77));
    let shown = pod.run(&["ip", "link", "show", "eth0"]).unwrap();
    assert!(shown.contains("02:11:22:33:44:55"), "{shown}");
    networks.del(&asked).await.unwrap();
}

#[tokio::test]
async fn addresses_come_back_when_the_namespace_is_gone() {
    let (place, node) = (Place::new(), Node::enter("gone"));
    let networks = node.networks(&place, "1.0.0").await;
    let pod = Namespace::new("gone");
    let asked = on("p1", &pod);
    networks.add(&asked).await.unwrap();
    let path = pod.path();
    drop(pod);
    until("the namespace's interfaces are gone", || node.ports() == 0).await;
    // As after a reboot: a plain file where the namespace was pinned.
    let pin = place.path("pin");
    fs::write(&pin, "").unwrap();
    assert!(!path.exists());
    networks.del(&Attachment { netns: pin, ..asked }).await.unwrap();
    assert!(leases(&place).is_empty() && place.records().is_empty());
}

#[tokio::test]
async fn a_chain_that_fails_leaves_nothing() {
    let (place, node, pod) = start("fails");
    place.plugin("bad", "[ $CNI_COMMAND = ADD ] || exit 0\nexit 7");
    place.configure_raw(&list("1.0.0", &json!([node.bridge(&place), {"type": "bad"}])));
    let networks = place.networks().await;
    networks.add(&on("p1", &pod)).await.unwrap_err();
    assert!(pod.run(&["ip", "link", "show", "eth0"]).is_err());
    assert!(leases(&place).is_empty() && place.records().is_empty());
    assert_eq!(node.ports(), 0);
}

#[tokio::test]
async fn an_exhausted_range_is_told_by_the_plugin() {
    let (place, node, pod) = start("full");
    let mut plugin = node.bridge(&place);
    plugin["ipam"]["ranges"] = json!([[{"subnet": "10.213.0.0/30"}]]);
    place.configure_raw(&list("0.4.0", &json!([plugin])));
    let networks = place.networks().await;
    networks.add(&on("p1", &pod)).await.unwrap();
    let second = Namespace::new("full2");
    let error = networks.add(&on("p2", &second)).await.unwrap_err();
    let Error::Plugin { plugin, .. } = &error else { panic!("{error}") };
    assert_eq!(plugin, "bridge");
    assert!(error.to_string().contains("no IP addresses available"), "{error}");
    networks.del(&on("p1", &pod)).await.unwrap();
    networks.add(&on("p2", &second)).await.unwrap();
    networks.del(&on("p2", &second)).await.unwrap();
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod() {
    let (place, node, pod) = start("ports");
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    place.configure_raw(&list("1.0.0", &json!([node.bridge(&place), portmap])));
    let networks = place.networks().await;
    let host_port = 18080;
    let mapping =
        PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None };
    let asked = Attachment { port_mappings: vec![mapping], ..on("p1", &pod) };
    networks.add(&asked).await.unwrap();
    assert!(node.rules().contains("--dports 18080"), "{}", node.rules());

    let mut server = Command::new("ip")
        .args(["netns", "exec", &pod.0, "busybox", "nc", "-l", "-p", "80", "-e", "echo", "hello"])
        .spawn()
        .unwrap();
    let listens = || pod.run(&["busybox", "netstat", "-ltn"]).unwrap().contains(":80 ");
    until("the server listens", listens).await;
    // By the bridge's address, as another machine would; it is one of the host's own.
    let mut stream = TcpStream::connect((address(1), host_port)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello\n");
    server.wait().unwrap();

    networks.del(&asked).await.unwrap();
    assert!(!node.rules().contains("18080"), "{}", node.rules());
}

/// The sample network as it is delivered, but for the directory of its leases.
fn sample(place: &Place) -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/cni/10-berth.conflist");
    let mut sample: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    sample["name"] = json!("berth-test");
    sample["plugins"][0]["ipam"]["dataDir"] = json!(place.path("ipam"));
    sample
}

#[tokio::test]
async fn the_delivered_sample_works() {
    let (place, node, pod) = start("sample");
    place.configure_raw(&sample(&place));
    let networks = place.networks().await;
    let mapping = PortMapping {
        host_port: 18081,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    };
    let asked = Attachment { port_mappings: vec![mapping], ..on("p1", &pod) };
    let attached = networks.add(&asked).await.unwrap();
    assert_eq!(attached.ips, [IpAddr::from([10, 85, 0, 2])]);
    assert!(node.rules().contains("10.85.0.2:80"), "{}", node.rules());
    pod.run(&["busybox", "ping", "-c", "1", "-W", "5", "10.85.0.1"]).unwrap();
    networks.del(&asked).await.unwrap();
    let filter = node.namespace.run(&["iptables-save"]).unwrap();
    assert!(!filter.contains("10.85.0.2"), "{filter}");
    assert!(leases(&place).is_empty() && place.records().is_empty());
}

/// Whether this kernel has what the bandwidth plugin needs.
fn has_shaping() -> bool {
    let probe = Namespace::new("probe");
    probe.run(&["ip", "link", "add", "ifb0", "type", "ifb"]).is_ok()
        && probe
            .run(&[
                "tc", "qdisc", "add", "dev", "ifb0", "root", "tbf", "rate", "1mbit", "burst",
                "10k", "latency", "9ms",
            ])
            .is_ok()
        && probe.run(&["tc", "qdisc", "add", "dev", "ifb0", "ingress"]).is_ok()
}

#[tokio::test]
async fn a_bandwidth_limits_the_interface() {
    if !has_shaping() {
        eprintln!("left out: this kernel lacks ifb, tbf or ingress");
        return;
    }
    let (place, node, pod) = start("rates");
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    place.configure_raw(&list("1.0.0", &json!([node.bridge(&place), bandwidth])));
    let networks = place.networks().await;
    let rate = Rate { bits_per_second: 8_000_000, burst_bits: 1_000_000 };
    let both = Bandwidth { ingress: Some(rate), egress: Some(rate) };
    let asked = Attachment { bandwidth: Some(both), ..on("p1", &pod) };
    let attached = networks.add(&asked).await.unwrap();
    let veth = attached.interfaces.iter().find(|i| i.name.starts_with("veth")).unwrap();
    let shaped = Command::new("tc").args(["qdisc", "show", "dev", &veth.name]).output().unwrap();
    let shaped = String::from_utf8(shaped.stdout).unwrap();
    assert!(shaped.contains("tbf") && shaped.contains("8Mbit"), "{shaped}");
    networks.del(&asked).await.unwrap();
    assert!(leases(&place).is_empty());
}

#[tokio::test]
async fn the_loopback_plugin_works_as_a_single_configuration() {
    let (place, pod) = (Place::new(), Namespace::new("lo"));
    let conf = json!({"name": "berth-lo", "cniVersion": "0.4.0", "type": "loopback"});
    fs::write(place.path("net.d/10-lo.conf"), conf.to_string()).unwrap();
    let networks = place.networks().await;
    let asked = Attachment { ifname: "lo".into(), ..on("p1", &pod) };
    let attached = networks.add(&asked).await.unwrap();
    assert_eq!(attached.ips[0], IpAddr::from([127, 0, 0, 1]));
    networks.del(&asked).await.unwrap();
}

#[tokio::test]
async fn pods_come_and_go_ten_at_a_time() {
    let (place, node) = (Place::new(), Node::enter("many"));
    let networks = node.networks(&place, "1.0.0").await;
    let networks = std::sync::Arc::new(networks);
    let pods: Vec<Namespace> = (0..10).map(|i| Namespace::new(&format!("many{i}"))).collect();
    let mut adds = tokio::task::JoinSet::new();
    for pod in &pods {
        let (networks, asked) = (networks.clone(), on(&pod.0, pod));
        adds.spawn(async move { networks.add(&asked).await.unwrap().ips[0] });
    }
    let mut ips = adds.join_all().await;
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 10, "an address each");
    assert_eq!(networks.cached().await.unwrap().len(), 10);
    let mut dels = tokio::task::JoinSet::new();
    for pod in &pods {
        let (networks, asked) = (networks.clone(), on(&pod.0, pod));
        dels.spawn(async move { networks.del(&asked).await.unwrap() });
    }
    dels.join_all().await;
    assert!(leases(&place).is_empty() && place.records().is_empty());
    assert_eq!(node.ports(), 0);
}
