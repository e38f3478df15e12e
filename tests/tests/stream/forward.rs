//! Port-forward.

use std::collections::BTreeMap;

use super::*;
use berth_tests::stream::spdy::{Event, Spdy};
use berth_tests::stream::split_url;
use berth_tests::stream::websocket::WebSocket;

async fn url(node: &Node, pod: &Pod, port: Vec<i32>) -> Result<String> {
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port };
    Ok(node.cri().runtime().port_forward(request).await?.into_inner().url)
}

async fn spdy(node: &Node, pod: &Pod) -> Result<Spdy> {
    let url = url(node, pod, vec![]).await?;
    let (address, path) = split_url(&url)?;
    Spdy::open(node.host().connect(address)?, path, &["portforward.k8s.io"])
}

/// One connection's streams: its error stream and its data.
fn dial(spdy: &mut Spdy, port: u16, request: &str) -> Result<(u32, u32)> {
    let port = port.to_string();
    let mut one =
        |kind| spdy.stream(&[("streamtype", kind), ("port", &port), ("requestid", request)]);
    Ok((one("error")?, one("data")?))
}

/// Takes what comes until these streams have ended; their bytes.
fn collect(spdy: &mut Spdy, streams: &[u32]) -> Result<BTreeMap<u32, String>> {
    let mut got: BTreeMap<u32, String> = streams.iter().map(|s| (*s, String::new())).collect();
    let mut open: Vec<u32> = streams.to_vec();
    while !open.is_empty() {
        match spdy.next()?.context("the connection ended")? {
            Event::Data { stream, bytes, fin } => {
                if let Some(text) = got.get_mut(&stream) {
                    text.push_str(&String::from_utf8(bytes)?);
                }
                open.retain(|one| !fin || *one != stream);
            }
            Event::Reset { stream, .. } => open.retain(|one| *one != stream),
            _ => {}
        }
    }
    Ok(got)
}

/// A container that says which port was asked, and what it was told until the end of input.
fn servers(ports: &[u16]) -> ContainerConfig {
    let one = |port: &u16| {
        format!("(while :; do nc -l -p {port} -e sh -c 'x=$(cat); echo {port} $x'; done) &")
    };
    let script: String = ports.iter().map(one).collect();
    shell("servers", &format!("{script} sleep 1000"))
}

async fn listening(node: &Node, id: &str, port: u16) -> Result<()> {
    true_within("a server", SOON, async || {
        let seen = format!("cat /proc/net/tcp /proc/net/tcp6 | grep -q ':{port:04X} .* 0A '");
        Ok(node.sh(id, &seen).await.is_ok())
    })
    .await
}

#[tokio::test]
async fn many_ports_and_connections_at_once_each_ends_by_halves() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("forward").await?;
    let id = node.run(&pod, servers(&[8081, 8082, 8083])).await?;
    let mut spdy = spdy(&node, &pod).await?;
    for round in 0..3 {
        let mut streams = Vec::new();
        for (index, port) in [8081, 8082, 8083].into_iter().enumerate() {
            listening(&node, &id, port).await?;
            let (error, data) = dial(&mut spdy, port, &format!("{round}-{index}"))?;
            // The end of input reaches the server, whose answer comes after it.
            spdy.data(data, format!("round {round}").as_bytes(), false)?;
            spdy.data(data, b"", true)?;
            streams.push((port, error, data));
        }
        let all: Vec<u32> = streams.iter().flat_map(|(_, error, data)| [*error, *data]).collect();
        let got = collect(&mut spdy, &all)?;
        for (port, error, data) in streams {
            assert_eq!(got[&data], format!("{port} round {round}\n"));
            assert_eq!(got[&error], "");
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_refused_port_is_an_error_of_its_connection_alone() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("refused").await?;
    let id = node.run(&pod, servers(&[8081])).await?;
    listening(&node, &id, 8081).await?;
    let mut spdy = spdy(&node, &pod).await?;
    let (bad_error, bad_data) = dial(&mut spdy, 9, "bad")?;
    let (error, data) = dial(&mut spdy, 8081, "good")?;
    spdy.data(data, b"x", true)?;
    let got = collect(&mut spdy, &[bad_error, bad_data, error, data])?;
    assert!(got[&bad_error].contains("port 9") && got[&bad_error].contains("refused"), "{got:?}");
    assert_eq!((got[&data].as_str(), got[&error].as_str()), ("8081 x\n", ""));
    // Streams without a port or with a wrong type are reset.
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "x"), ("port", "80")],
        &[("streamtype", "data"), ("port", "0")],
    ] {
        let stream = spdy.stream(headers)?;
        loop {
            match spdy.next()?.context("the connection ended")? {
                Event::Reset { stream: of, .. } if of == stream => break,
                _ => {}
            }
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_server_on_ipv6_alone_is_reached() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("six")?;
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let listener = node.host().listen_at("[::1]:0")?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        std::io::Write::write_all(&mut listener.accept()?.0, b"six\n")
    });
    let mut spdy = spdy(&node, &pod).await?;
    let (error, data) = dial(&mut spdy, port, "1")?;
    let got = collect(&mut spdy, &[error, data])?;
    assert_eq!((got[&data].as_str(), got[&error].as_str()), ("six\n", ""));
    assert!(server.join().is_ok_and(|served| served.is_ok()));
    node.finish().await
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_is_reached() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("host")?;
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let id = node.run(&pod, servers(&[8087])).await?;
    listening(&node, &id, 8087).await?;
    let mut spdy = spdy(&node, &pod).await?;
    let (error, data) = dial(&mut spdy, 8087, "1")?;
    spdy.data(data, b"host", true)?;
    let got = collect(&mut spdy, &[error, data])?;
    assert_eq!((got[&data].as_str(), got[&error].as_str()), ("8087 host\n", ""));
    node.finish().await
}

#[tokio::test]
async fn websocket_carries_channels_per_port_or_spdy_inside() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("socket").await?;
    let script = "(while :; do nc -l -p 8088 -e sh -c 'read x; echo 8088 $x'; done) & \
                  while :; do nc -l -p 8089 -e sh -c 'read x; echo 8089 $x'; done";
    let id = node.run(&pod, shell("main", script)).await?;
    listening(&node, &id, 8088).await?;
    listening(&node, &id, 8089).await?;
    let address = url(&node, &pod, vec![8088, 9, 8089]).await?;
    let (address, path) = split_url(&address)?;
    let mut socket =
        WebSocket::open(node.host().connect(address)?, path, Some("v4.channel.k8s.io"))?;
    socket.send(b"\x00one\n")?;
    socket.send(b"\x04two\n")?;
    let mut got: [Vec<u8>; 6] = Default::default();
    while let Some(message) = socket.next()? {
        let (channel, bytes) = message.split_first().context("a channel")?;
        got[usize::from(*channel)].extend(bytes);
    }
    let with_port = |port: u16, text: &str| [&port.to_le_bytes()[..], text.as_bytes()].concat();
    assert_eq!(
        (&got[0], &got[4]),
        (&with_port(8088, "8088 one\n"), &with_port(8089, "8089 two\n"))
    );
    assert_eq!((&got[1], &got[5]), (&with_port(8088, ""), &with_port(8089, "")));
    assert!(String::from_utf8_lossy(&got[3]).contains("refused"), "{got:?}");

    listening(&node, &id, 8088).await?;
    let address = url(&node, &pod, vec![]).await?;
    let (address, path) = split_url(&address)?;
    let tunnel = Some("SPDY/3.1+portforward.k8s.io");
    let socket = WebSocket::open(node.host().connect(address)?, path, tunnel)?;
    let mut spdy = Spdy::over(Box::new(socket.tunnel()))?;
    let (error, data) = dial(&mut spdy, 8088, "1")?;
    spdy.data(data, b"three\n", false)?;
    let got = collect(&mut spdy, &[error, data])?;
    assert_eq!((got[&data].as_str(), got[&error].as_str()), ("8088 three\n", ""));
    node.finish().await
}

#[tokio::test]
async fn a_client_that_goes_closes_its_connections() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("gone").await?;
    let script = "nc -l -p 8090 -e sh -c 'echo hello; cat; echo closed > /tmp/closed'; sleep 1000";
    let id = node.run(&pod, shell("main", script)).await?;
    listening(&node, &id, 8090).await?;
    let mut spdy = spdy(&node, &pod).await?;
    let (_, data) = dial(&mut spdy, 8090, "1")?;
    loop {
        match spdy.next()?.context("the connection ended")? {
            Event::Data { stream, .. } if stream == data => break,
            _ => {}
        }
    }
    drop(spdy);
    true_within("the connection's end", SOON, async || {
        Ok(node.sh(&id, "cat /tmp/closed").await.is_ok())
    })
    .await?;
    node.finish().await
}
