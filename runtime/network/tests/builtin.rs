//! The built-in network, in namespaces made here. Needs root, iproute2, nftables and
//! busybox.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test's own parts")]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use berth_network::{Attachment, Error, ErrorKind, NetworkConfig, Networks, PortMapping, Protocol};
use common::node::{Namespace, Node, ip, on};
use common::{Place, attachment, until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn config(place: &Place) -> NetworkConfig {
    NetworkConfig { builtin: true, ..place.config(Duration::from_secs(30)) }
}

async fn open(place: &Place) -> Networks {
    Networks::open(config(place)).await.unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(host_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: host_ip.map(address),
    }
}

/// Does something inside a namespace: on a thread, which ends with it.
fn inside<T: Send + 'static>(
    namespace: &Namespace,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let file = File::open(namespace.path()).unwrap();
    std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
}

/// A server at port 80 of a namespace that tells each caller its address, until it is dropped.
struct Server {
    address: SocketAddr,
    namespace: Option<File>,
}

impl Server {
    fn start(namespace: &Namespace) -> Self {
        let listen = || TcpListener::bind("[::]:80").unwrap();
        let listener = inside(namespace, listen).join().unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let caller = stream.peer_addr().unwrap().ip().to_canonical();
                if write!(stream, "{caller}").is_err() || caller.is_loopback() {
                    return;
                }
            }
        });
        Self { address, namespace: Some(File::open(namespace.path()).unwrap()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A caller from its own loopback ends it.
        let (port, namespace) = (self.address.port(), self.namespace.take().unwrap());
        let call = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let _ = TcpStream::connect_timeout(&(Ipv6Addr::LOCALHOST, port).into(), PATIENCE);
        });
        call.join().unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

/// What the server at this address says to a caller in the namespace; empty without an answer.
fn ask(namespace: &Namespace, host: &str, port: u16) -> String {
    let address = SocketAddr::new(address(host), port);
    let call = move || {
        let mut said = String::new();
        let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE) else { return said };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.read_to_string(&mut said);
        said
    };
    inside(namespace, call).join().unwrap()
}

async fn answers(namespace: &Namespace, host: &str, port: u16) -> String {
    until(&format!("an answer of {host}:{port}"), || !ask(namespace, host, port).is_empty()).await;
    ask(namespace, host, port)
}

/// The machine's table, as nft lists it; empty when there is none.
fn table(node: &Node) -> String {
    node.namespace.run(&["nft", "list", "table", "inet", "berth9"]).unwrap_or_default()
}

fn ports(node: &Node) -> String {
    node.namespace.run(&["ip", "-o", "link", "show", "master", "berth9"]).unwrap_or_default()
}

#[tokio::test]
async fn pods_get_addresses_of_both_families_and_reach_each_other() {
    let (place, node) = (Place::new(), Node::enter("builtin"));
    let networks = open(&place).await;
    networks.status().await.unwrap();
    let (one, two) = (Namespace::new("one"), Namespace::new("two"));
    let first = networks.add(&on("p1", &one)).await.unwrap();
    let second = networks.add(&on("p2", &two)).await.unwrap();
    assert_eq!(first.ips, [address("10.214.0.2"), address("fd14::2")]);
    assert_eq!(second.ips, [address("10.214.0.3"), address("fd14::3")]);
    assert_eq!(first.interfaces[1].mac, "0a:58:0a:d6:00:02");
    let _server = Server::start(&one);
    for host in ["10.214.0.2", "fd14::2"] {
        answers(&two, host, 80).await;
        answers(&node.namespace, host, 80).await;
    }
    // The gateway is the machine.
    two.run(&["busybox", "ping", "-c", "1", "-W", "2", "10.214.0.1"]).unwrap();
    assert_eq!(networks.attached("p1", "eth0").await.unwrap(), Some(first));
    networks.check("p1", "eth0").await.unwrap();

    for id in ["p1", "p2"] {
        networks.del(&attachment(id)).await.unwrap();
        networks.del(&attachment(id)).await.unwrap();
    }
    assert!(place.records().is_empty() && ports(&node).is_empty());
    assert!(one.run(&["ip", "link", "show", "eth0"]).is_err());
    assert!(
        node.namespace.run(&["ip", "addr", "show", "berth9"]).unwrap().contains("10.214.0.1/28")
    );
}

#[tokio::test]
async fn what_leaves_the_machine_has_its_address() {
    let (place, node) = (Place::new(), Node::enter("masq"));
    let (pod, outside) = (Namespace::new("pod"), Namespace::new("outside"));
    ip(&["link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", &outside.0])
        .unwrap();
    ip(&["addr", "add", "192.0.2.1/24", "dev", "up0"]).unwrap();
    ip(&["link", "set", "up0", "up"]).unwrap();
    outside.run(&["ip", "addr", "add", "192.0.2.2/24", "dev", "eth0"]).unwrap();
    outside.run(&["ip", "link", "set", "eth0", "up"]).unwrap();
    let networks = open(&place).await;
    networks
        .add(&Attachment { port_mappings: vec![port(8080, None)], ..on("p1", &pod) })
        .await
        .unwrap();
    let _server = Server::start(&outside);
    let seen = answers(&pod, "192.0.2.2", 80).await;
    assert_eq!(seen, "192.0.2.1");
    // And back in, by a host port: the pod sees the caller as it is.
    let _pods = Server::start(&pod);
    let seen = answers(&outside, "192.0.2.1", 8080).await;
    assert_eq!(seen, "192.0.2.2");
    drop(node);
}

#[tokio::test]
async fn host_ports_lead_to_the_pod_from_everywhere() {
    let (place, node) = (Place::new(), Node::enter("ports"));
    let networks = open(&place).await;
    let (pod, other) = (Namespace::new("pod"), Namespace::new("other"));
    let mappings = vec![port(8080, None), port(8081, Some("10.214.0.1"))];
    networks.add(&Attachment { port_mappings: mappings, ..on("p1", &pod) }).await.unwrap();
    networks.add(&on("p2", &other)).await.unwrap();
    pod.run(&["ip", "link", "set", "lo", "up"]).unwrap();
    let _server = Server::start(&pod);
    // By the machine's address and its loopback, from another pod, from the pod itself.
    for (from, host) in [
        (&node.namespace, "10.214.0.1"),
        (&node.namespace, "127.0.0.1"),
        (&node.namespace, "fd14::1"),
        (&other, "10.214.0.1"),
        (&other, "fd14::1"),
        (&pod, "10.214.0.1"),
    ] {
        answers(from, host, 8080).await;
    }
    answers(&node.namespace, "10.214.0.1", 8081).await;
    assert_eq!(ask(&node.namespace, "127.0.0.1", 8081), "", "only at the address asked for");

    networks.del(&attachment("p1")).await.unwrap();
    let left = table(&node);
    assert!(left.contains("map at4") && !left.contains("8080") && !left.contains("8081"), "{left}");
    assert_eq!(ask(&node.namespace, "10.214.0.1", 8080), "");
}

#[tokio::test]
async fn a_host_port_that_is_taken_names_its_owner() {
    let (place, _node) = (Place::new(), Node::enter("taken"));
    let networks = open(&place).await;
    let (one, two) = (Namespace::new("one"), Namespace::new("two"));
    networks
        .add(&Attachment { port_mappings: vec![port(8080, None)], ..on("p1", &one) })
        .await
        .unwrap();
    for host_ip in [None, Some("10.214.0.1")] {
        let asked = Attachment { port_mappings: vec![port(8080, host_ip)], ..on("p2", &two) };
        let error = networks.add(&asked).await.unwrap_err();
        assert_eq!(error.to_string(), "built-in network: host port 8080/tcp is in use by p1");
    }
    let twice = vec![port(8082, None), port(8082, Some("10.214.0.1"))];
    let error =
        networks.add(&Attachment { port_mappings: twice, ..on("p2", &two) }).await.unwrap_err();
    assert!(error.to_string().contains("in use by the same pod"), "{error}");
    let mut udp = port(8080, None);
    udp.protocol = Protocol::Udp;
    networks.add(&Attachment { port_mappings: vec![udp], ..on("p2", &two) }).await.unwrap();
}

#[tokio::test]
async fn addresses_can_be_asked_for_and_run_out() {
    let (place, _node) = (Place::new(), Node::enter("range"));
    let networks = open(&place).await;
    let pods: Vec<Namespace> = (0..14).map(|pod| Namespace::new(&format!("r{pod}"))).collect();
    let wanted = Attachment { ips: vec!["10.214.0.9/28".into()], ..on("p0", &pods[0]) };
    let attached = networks.add(&wanted).await.unwrap();
    assert_eq!(attached.ips[0], address("10.214.0.9"));
    for (ip, want) in [
        ("10.214.0.9", "ips: 10.214.0.9 is in use by p0"),
        ("10.214.0.1", "is in none of the network's ranges"),
        ("10.99.0.1", "is in none of the network's ranges"),
    ] {
        let asked = Attachment { ips: vec![ip.into()], ..on("p1", &pods[1]) };
        let error = networks.add(&asked).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    for (index, pod) in pods.iter().enumerate().skip(1).take(12) {
        networks.add(&on(&format!("p{index}"), pod)).await.unwrap();
    }
    let error = networks.add(&on("p13", &pods[13])).await.unwrap_err();
    assert!(error.to_string().contains("all addresses of 10.214.0.0/28 are in use"), "{error}");
    networks.del(&attachment("p3")).await.unwrap();
    networks.add(&on("p13", &pods[13])).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_comes_back_knows_what_it_gave_and_removes_what_nobody_has() {
    let (place, node) = (Place::new(), Node::enter("back"));
    let pods: Vec<Namespace> = (0..3).map(|pod| Namespace::new(&format!("b{pod}"))).collect();
    let networks = open(&place).await;
    for (index, pod) in pods.iter().enumerate().take(2) {
        let port = port(9000 + u16::try_from(index).unwrap(), None);
        let asked = Attachment { port_mappings: vec![port], ..on(&format!("p{index}"), pod) };
        networks.add(&asked).await.unwrap();
    }
    drop(networks);
    // One attachment's record is lost with a disk, another's is torn.
    fs::remove_file(place.path("cni/p0-eth0.json")).unwrap();
    fs::write(place.path("cni/p9-eth0.json"), "").unwrap();
    assert_eq!(ports(&node).lines().count(), 2);

    let networks = open(&place).await;
    assert_eq!(networks.cached().await.unwrap(), ["p1", "p9"]);
    networks.del(&attachment("p9")).await.unwrap();
    let attached = networks.add(&on("p2", &pods[2])).await.unwrap();
    assert_eq!(attached.ips[0], address("10.214.0.2"), "p0's is free, p1's is not");
    assert_eq!(ports(&node).lines().count(), 2);
    let rules = table(&node);
    assert!(rules.contains("9001") && !rules.contains("9000"), "{rules}");
    // As after a reboot: the namespaces are gone, the records are not.
    drop(pods);
    for id in ["p1", "p2"] {
        networks.del(&Attachment { netns: "/nonexistent".into(), ..attachment(id) }).await.unwrap();
    }
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn a_configuration_that_appears_takes_over_and_what_was_attached_is_detached_as_it_was() {
    let (place, node) = (Place::new(), Node::enter("over"));
    let pod = Namespace::new("over");
    let networks = open(&place).await;
    networks.add(&on("p1", &pod)).await.unwrap();
    place.plugin("lone", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}'"#);
    place.configure(&serde_json::json!([{"type": "lone"}]));
    let attached = networks.add(&attachment("p2")).await.unwrap();
    assert_eq!(attached.network, "berth-test");
    networks.del(&on("p1", &pod)).await.unwrap();
    assert!(ports(&node).is_empty());
    assert_eq!(place.calls(), ["ADD lone p2"]);
}

#[tokio::test]
async fn what_fails_half_way_leaves_nothing() {
    let (place, node) = (Place::new(), Node::enter("half"));
    let pod = Namespace::new("half");
    let networks = open(&place).await;
    // Something has the name already.
    pod.run(&["ip", "link", "add", "eth0", "type", "bridge"]).unwrap();
    let error = networks.add(&on("p1", &pod)).await.unwrap_err();
    assert!(matches!(error, Error::Builtin { .. }), "{error}");
    assert!(error.to_string().contains("eth0 of p1"), "{error}");
    assert!(place.records().is_empty() && ports(&node).is_empty());
    let error =
        networks.add(&Attachment { netns: "/nonexistent".into(), ..attachment("p1") }).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Internal);
    pod.run(&["ip", "link", "delete", "eth0"]).unwrap();
    let attached = networks.add(&on("p1", &pod)).await.unwrap();
    networks.del(&on("p1", &pod)).await.unwrap();
    assert!(!attached.ips.is_empty());
    // Somebody took the bridge away: it is made again.
    ip(&["link", "delete", "berth9"]).unwrap();
    networks.add(&on("p1", &pod)).await.unwrap();
    pod.run(&["busybox", "ping", "-c", "1", "-W", "2", "10.214.0.1"]).unwrap();
}
