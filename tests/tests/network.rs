//! CNI networks, host ports, and a node without a network.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use berth_tests::prelude::*;

const PORTMAP: &str =
    r#"{"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}"#;
const BANDWIDTH: &str = r#"{"type": "bandwidth", "capabilities": {"bandwidth": true}}"#;

async fn ready(node: &Node) -> Result<RuntimeCondition> {
    let status = node.cri().status(StatusRequest { verbose: false }).await?.status;
    let conditions = status.context("a status")?.conditions;
    let condition = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
    condition.context("the condition NetworkReady")
}

async fn ip(node: &Node, pod: &str) -> Result<String> {
    Ok(node.pod_status(pod).await?.network.context("a network")?.ip)
}

#[tokio::test]
async fn pods_reach_each_other_by_their_addresses() -> Result<()> {
    let node = Node::start().await?;
    let (one, two) = (node.pod("one").await?, node.pod("two").await?);
    let (first, second) = (ip(&node, &one.id).await?, ip(&node, &two.id).await?);
    assert_ne!(first, second);
    let script = "while :; do echo served | nc -l -p 8080; done";
    node.run(&one, shell("server", script)).await?;
    let client = node.run(&two, shell("client", "sleep 1000")).await?;
    let ask = format!("nc -w 2 {first} 8080 < /dev/null");
    eventually("an answer", SOON, async || {
        Ok((node.sh(&client, &ask).await? == "served\n").then_some(()))
    })
    .await?;
    // Its own loopback is up.
    assert!(node.sh(&client, "ping -c 1 -W 2 127.0.0.1").await?.contains("1 packets received"));
    node.finish().await
}

#[tokio::test]
async fn addresses_are_given_back_at_stop() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("one").await?;
    let reserved = || -> Vec<String> {
        let found = node.footprint().unwrap_or_default().into_iter();
        found.filter(|line| line.starts_with("path ipam/") || line.starts_with("link ")).collect()
    };
    let address = node.dir().join("ipam/berth-test").join(ip(&node, &pod.id).await?);
    assert!(address.exists(), "{}", address.display());
    node.stop_pod(&pod.id).await?;
    assert!(!address.exists(), "{}", address.display());
    assert!(reserved().is_empty() || !node.is_berth(), "{:?}", reserved());
    let status = node.pod_status(&pod.id).await?;
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    node.finish().await
}

#[tokio::test]
async fn host_ports_lead_to_the_pod() -> Result<()> {
    let node = Node::builder().cni_plugins(PORTMAP).start().await?;
    let mut config = node.pod_config("ports")?;
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18080,
        host_ip: String::new(),
    }];
    let pod = node.run_pod(config).await?;
    let script = "while :; do echo served | nc -l -p 8080; done";
    node.run(&pod, shell("server", script)).await?;
    // From the node's own namespace, by its bridge's address and by its loopback.
    for address in ["10.88.0.1", "127.0.0.1"] {
        let ask = format!("busybox nc -w 2 {address} 18080 < /dev/null");
        eventually(&format!("an answer at {address}"), SOON, async || {
            Ok((node.host().run("sh", &["-c", &ask])? == "served\n").then_some(()))
        })
        .await?;
    }
    node.remove_pod(&pod.id).await?;
    let rules = node.host().run("iptables-save", &["-t", "nat"])?;
    assert!(!rules.contains("18080"), "{rules}");
    node.finish().await
}

#[tokio::test]
async fn the_annotations_of_bandwidth_shape_the_pods_link() -> Result<()> {
    let node = Node::builder().cni_plugins(BANDWIDTH).start().await?;
    let mut config = node.pod_config("shaped")?;
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "5M".into());
    let pod = node.run_pod(config).await?;
    let shaped = node.host().run("tc", &["qdisc", "show"])?;
    assert!(shaped.contains("rate 10Mbit") && shaped.contains("rate 5Mbit"), "{shaped}");
    node.remove_pod(&pod.id).await?;
    node.settled().await?;
    node.finish().await
}

#[tokio::test]
async fn without_a_configuration_it_is_not_ready_until_one_comes() -> Result<()> {
    let node = Node::builder().without_network().start().await?;
    let condition = ready(&node).await?;
    assert!(!condition.status);
    assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
    let error = node.pod("early").await.unwrap_err();
    assert!(!format!("{error:#}").is_empty());
    assert!(node.pods().await?.is_empty() || !node.is_berth());
    node.settled().await?;

    let mut host = node.pod_config("host")?;
    host.hostname = String::new();
    host.namespaces().network = NamespaceMode::Node.into();
    node.run_pod(host).await?;

    node.write_cni("")?;
    true_within("NetworkReady", SOON, async || Ok(ready(&node).await?.status)).await?;
    let pod = node.pod("late").await?;
    assert!(ip(&node, &pod.id).await?.starts_with("10.88.0."));
    node.remove_all().await?;
    if node.is_berth() {
        fs::remove_file(node.dir().join("cni/10-berth-test.conflist"))?;
        true_within("not ready", SOON, async || Ok(!ready(&node).await?.status)).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_broken_configuration_is_told_with_its_file() -> Result<()> {
    let node = Node::builder().without_network().start().await?;
    if node.is_berth() {
        fs::write(node.dir().join("cni/05-broken.conflist"), "{ not json")?;
        true_within("the file's name in the message", SOON, async || {
            Ok(ready(&node).await?.message.contains("05-broken.conflist"))
        })
        .await?;
    }
    node.finish().await
}

/// A plugin of our own in the node's directory; `body` is what it does with the request.
fn plugin(node: &Node, name: &str, body: &str) -> Result<()> {
    let dir = node.dir().join("bin");
    fs::create_dir_all(&dir)?;
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\ncat > /dev/null\n{body}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[tokio::test]
async fn a_plugin_that_fails_leaves_no_address_and_is_quoted() -> Result<()> {
    let node = Node::builder().cni_plugins(r#"{"type": "refuse"}"#).start().await?;
    if node.is_berth() {
        let deleted = node.dir().join("deleted");
        let body = format!(
            "case $CNI_COMMAND in\n\
             ADD) echo '{{\"cniVersion\": \"1.0.0\", \"code\": 111, \"msg\": \"no luck today\"}}'; exit 1;;\n\
             DEL) touch {};;\nesac",
            deleted.display()
        );
        plugin(&node, "refuse", &body)?;
        let error = format!("{:#}", node.pod("refused").await.unwrap_err());
        assert!(error.contains("no luck today") && error.contains("refuse"), "{error}");
        assert!(deleted.exists(), "DEL runs on the failing path");
        assert!(node.pods().await?.is_empty());
        node.settled().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_plugin_that_is_not_there_is_named() -> Result<()> {
    let node = Node::builder().cni_plugins(r#"{"type": "no-such-plugin"}"#).start().await?;
    if node.is_berth() {
        let error = format!("{:#}", node.pod("refused").await.unwrap_err());
        assert!(error.contains("no-such-plugin"), "{error}");
        node.settled().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_failing_del_holds_up_nobody_and_is_tried_until_it_succeeds() -> Result<()> {
    let node = Node::builder().cni_plugins(r#"{"type": "stubborn"}"#).start().await?;
    if node.is_berth() {
        let broken = node.dir().join("broken");
        // A chained plugin answers with the result before it.
        let body = "case $CNI_COMMAND in\n\
                    ADD) echo '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.88.0.99/24\"}]}';;\n\
                    DEL) test ! -e BROKEN || { echo '{\"code\": 112, \"msg\": \"still broken\"}'; exit 1; };;\n\
                    esac"
            .replace("BROKEN", &broken.display().to_string());
        plugin(&node, "stubborn", &body)?;
        let pod = node.pod("stuck").await?;
        fs::write(&broken, "")?;
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        node.cri().stop_pod_sandbox(request).await?;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let status = node.cri().pod_sandbox_status(request).await?;
        let left = status.info.get("info").context("verbose info")?;
        assert!(left.contains("network"), "{left}");
        node.remove_pod(&pod.id).await?;
        assert!(node.pods().await?.is_empty());
        let leases = node.dir().join("ipam/berth-test");
        assert!(leases.exists(), "the address is held until the plugins let it go");
        fs::remove_file(&broken)?;
        node.settled().await?;
    } else {
        plugin(&node, "stubborn", "")?;
    }
    node.finish().await
}

#[tokio::test]
async fn both_address_families_are_told() -> Result<()> {
    let node = Node::builder().without_network().start().await?;
    let list = format!(
        r#"{{"cniVersion": "0.4.0", "name": "dual", "plugins": [{{"type": "bridge",
            "bridge": "berth-test0", "isGateway": true, "ipam": {{"type": "host-local",
            "dataDir": "{}/ipam", "ranges": [[{{"subnet": "10.88.0.0/24"}}],
            [{{"subnet": "fd00:88::/64"}}]]}}}}]}}"#,
        node.dir().display()
    );
    fs::write(node.dir().join("cni/10-dual.conflist"), list)?;
    true_within("NetworkReady", SOON, async || Ok(ready(&node).await?.status)).await?;
    let pod = node.pod("dual").await?;
    let network = node.pod_status(&pod.id).await?.network.context("a network")?;
    assert!(network.ip.starts_with("10.88.0."), "{network:?}");
    let more: Vec<&str> = network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
    assert!(matches!(more.as_slice(), [v6] if v6.starts_with("fd00:88::")), "{more:?}");
    node.finish().await
}

#[tokio::test]
async fn many_pods_at_once_get_addresses_of_their_own() -> Result<()> {
    let node = Node::start().await?;
    let names: Vec<String> = (0..8).map(|index| format!("many{index}")).collect();
    let pods = berth_tests::eventually::all(names.iter().map(|name| node.pod(name))).await?;
    let mut addresses = Vec::new();
    for pod in &pods {
        addresses.push(ip(&node, &pod.id).await?);
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    node.finish().await
}

/// A network of CNI 1.1.0 with one plugin, which notes what it is told in files named after verbs.
fn noting_network(node: &Node) -> Result<()> {
    let dir = node.dir().join("bin");
    fs::create_dir_all(&dir)?;
    let text = format!(
        "#!/bin/sh\ncd {}\ncat > told-$CNI_COMMAND\n\
         case $CNI_COMMAND in\n\
         ADD) echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.88.0.9/24\"}}]}}';;\n\
         STATUS) [ ! -e down ] || {{ echo '{{\"code\": 50, \"msg\": \"no backbone\"}}'; exit 1; }};;\n\
         esac\n",
        node.dir().display()
    );
    let path = dir.join("noting");
    fs::write(&path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    let list = r#"{"cniVersion": "1.1.0", "name": "noted", "plugins": [{"type": "noting"}]}"#;
    Ok(fs::write(node.dir().join("cni/10-noted.conflist"), list)?)
}

#[tokio::test]
async fn a_plugin_that_says_it_is_down_makes_the_node_not_ready() -> Result<()> {
    let node = Node::builder().without_network().start().await?;
    if node.is_berth() {
        fs::write(node.dir().join("down"), "")?;
        noting_network(&node)?;
        true_within("the plugin's words", SOON, async || {
            let condition = ready(&node).await?;
            Ok(!condition.status && condition.message.contains("no backbone"))
        })
        .await?;
        fs::remove_file(node.dir().join("down"))?;
        true_within("NetworkReady", SOON, async || Ok(ready(&node).await?.status)).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn after_a_restart_plugins_look_at_what_they_made_and_collect_the_rest() -> Result<()> {
    let mut node = Node::builder().without_network().start().await?;
    if node.is_berth() {
        noting_network(&node)?;
        let pod = node.pod("kept").await?;
        assert!(!node.dir().join("told-CHECK").exists());
        node.kill()?;
        node.launch().await?;
        eventually("GC", SOON, async || {
            let told = fs::read_to_string(node.dir().join("told-GC")).unwrap_or_default();
            Ok(told.contains(&format!("\"containerID\":\"{}\"", pod.id)).then_some(()))
        })
        .await?;
        let checked = fs::read_to_string(node.dir().join("told-CHECK"))?;
        assert!(checked.contains("prevResult") && checked.contains("10.88.0.9/24"), "{checked}");
    }
    node.finish().await
}
