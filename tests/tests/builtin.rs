//! The daemon's own network, on nodes without a CNI configuration.
#![forbid(unsafe_code)]

use berth_tests::eventually::all;
use berth_tests::prelude::*;

async fn ips(node: &Node, pod: &str) -> Result<Vec<String>> {
    let network = node.pod_status(pod).await?.network.context("a network")?;
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    Ok([network.ip].into_iter().chain(more).collect())
}

fn port(host_port: i32) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port,
        host_ip: String::new(),
    }
}

/// Waits for an answer from the node itself.
async fn served(node: &Node, address: &str, port: &str) -> Result<()> {
    let ask = format!("busybox nc -w 2 {address} {port} < /dev/null");
    eventually(&format!("an answer at {address}:{port}"), SOON, async || {
        Ok((node.host().run("sh", &["-c", &ask])? == "served\n").then_some(()))
    })
    .await
}

const SERVER: &str = "while :; do echo served | nc -l -p 8080; done";

/// The table that the daemon keeps, as nft lists it.
fn table(node: &Node) -> Result<String> {
    node.host().run("nft", &["list", "ruleset"])
}

#[tokio::test]
async fn pods_have_addresses_without_any_configuration() -> Result<()> {
    let node = Node::builder().builtin_network().start().await?;
    if node.is_berth() {
        let (one, two) = (node.pod("one").await?, node.pod("two").await?);
        let (first, second) = (ips(&node, &one.id).await?, ips(&node, &two.id).await?);
        assert!(
            first[0].starts_with("10.85.0.") && first[1].starts_with("fd85:be27:85::"),
            "{first:?}"
        );
        assert!(first.iter().all(|ip| !second.contains(ip)), "{first:?} {second:?}");
        node.run(&one, shell("server", SERVER)).await?;
        let client = node.run(&two, shell("client", "sleep 1000")).await?;
        for address in &first {
            let ask = format!("nc -w 2 {address} 8080 < /dev/null");
            eventually("an answer", SOON, async || {
                Ok((node.sh(&client, &ask).await? == "served\n").then_some(()))
            })
            .await?;
        }
        // The node is the gateway.
        let ping = node.sh(&client, "ping -c 1 -W 2 10.85.0.1").await?;
        assert!(ping.contains("1 packets received"), "{ping}");
    }
    node.finish().await
}

#[tokio::test]
async fn host_ports_lead_to_pods_and_name_who_has_them() -> Result<()> {
    let node = Node::builder().builtin_network().start().await?;
    if node.is_berth() {
        let mut config = node.pod_config("ports")?;
        config.port_mappings = vec![port(18080)];
        let pod = node.run_pod(config).await?;
        node.run(&pod, shell("server", SERVER)).await?;
        for address in ["10.85.0.1", "127.0.0.1", "fd85:be27:85::1"] {
            served(&node, address, "18080").await?;
        }
        let mut config = node.pod_config("same")?;
        config.port_mappings = vec![port(18080)];
        let error = format!("{:#}", node.run_pod(config).await.unwrap_err());
        assert!(error.contains("18080/tcp is in use by") && error.contains(&pod.id), "{error}");
        node.remove_pod(&pod.id).await?;
        assert!(!table(&node)?.contains("18080"));
        node.settled().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn sixty_pods_come_and_go_and_leave_nothing() -> Result<()> {
    let node = Node::builder().builtin_network().start().await?;
    if node.is_berth() {
        for round in 0..6 {
            let configs = (0..10).map(|index| {
                let mut config = node.pod_config(&format!("churn-{round}-{index}"))?;
                config.port_mappings = vec![port(20_000 + index)];
                Ok(config)
            });
            let configs = configs.collect::<Result<Vec<_>>>()?;
            let pods = all(configs.into_iter().map(|config| node.run_pod(config))).await?;
            let mut seen = Vec::new();
            for pod in &pods {
                seen.extend(ips(&node, &pod.id).await?);
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 20, "an address of each family for each: {seen:?}");
            all(pods.iter().map(|pod| node.remove_pod(&pod.id))).await?;
        }
        let rules = table(&node)?;
        assert!(!rules.contains("elements"), "{rules}");
        node.settled().await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_killed_daemon_keeps_what_pods_have() -> Result<()> {
    let mut node = Node::builder().builtin_network().start().await?;
    if node.is_berth() {
        let mut config = node.pod_config("kept")?;
        config.port_mappings = vec![port(18081)];
        let pod = node.run_pod(config).await?;
        node.run(&pod, shell("server", SERVER)).await?;
        let before = ips(&node, &pod.id).await?;
        node.kill()?;
        served(&node, "10.85.0.1", "18081").await?;
        node.launch().await?;
        assert_eq!(ips(&node, &pod.id).await?, before);
        let other = node.pod("other").await?;
        assert!(!before.contains(&ips(&node, &other.id).await?[0]));
        served(&node, "10.85.0.1", "18081").await?;
    }
    node.finish().await
}

#[tokio::test]
async fn a_daemon_killed_while_it_attaches_gives_all_back() -> Result<()> {
    let mut node = Node::builder().builtin_network().start().await?;
    if node.is_berth() {
        for round in 0..5_u64 {
            let starting = all((0..6).map(|index| {
                let name = format!("cut-{round}-{index}");
                let node = &node;
                async move { Ok(node.pod(&name).await.is_ok()) }
            }));
            let cut = tokio::time::timeout(Duration::from_millis(5 + 7 * round), starting).await;
            drop(cut);
            node.kill()?;
            node.launch().await?;
            node.remove_all().await?;
        }
        node.settled().await?;
    }
    node.finish().await
}
