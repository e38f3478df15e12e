//! The door: tokens, versions, addresses, TLS, times.

use super::*;
use berth_tests::stream::{split_url, upgrade};

const ASK: &[(&str, &str)] = &[
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
];

fn ask(node: &Node, url: &str, headers: &[(&str, &str)]) -> Result<(u16, String)> {
    let (address, path) = split_url(url)?;
    let answer = upgrade(&mut node.host().connect(address)?, path, headers)?;
    Ok((answer.code, answer.head))
}

#[tokio::test]
async fn a_url_is_local_unguessable_and_good_once() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let url = exec_url(&node, exec_request(&id, "true")).await?;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let other = exec_url(&node, exec_request(&id, "true")).await?;
    let token = url.rsplit('/').next().context("a token")?;
    assert!(token.len() >= 32 && url != other, "{url}");
    assert_eq!(ask(&node, &url.replace("/exec/", "/attach/"), ASK)?.0, 404, "of another kind");
    assert_eq!(ask(&node, &url, ASK)?.0, 404, "asked for already");
    assert_eq!(ask(&node, &other, ASK)?.0, 101);
    assert_eq!(ask(&node, &other, ASK)?.0, 404);
    assert_eq!(ask(&node, &url.replace(token, "guess"), ASK)?.0, 404);
    node.finish().await
}

#[tokio::test]
async fn a_thousand_may_wait() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let mut first = None;
    for _ in 0..1000 {
        let url = exec_url(&node, exec_request(&id, "true")).await?;
        first.get_or_insert(url);
    }
    let request = exec_request(&id, "true");
    let error = node.cri().runtime().exec(request.clone()).await.expect_err("one too many");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(ask(&node, &first.context("a URL")?, ASK)?.0, 101);
    exec_url(&node, request).await?;
    node.finish().await
}

#[tokio::test]
async fn requests_that_cannot_become_streams_are_refused() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for (headers, code, says) in [
        (&[][..], 400, ""),
        (&[("Connection", "Upgrade"), ("Upgrade", "h2c")], 400, ""),
        (
            &[
                ("Connection", "Upgrade"),
                ("Upgrade", "SPDY/3.1"),
                ("X-Stream-Protocol-Version", "v9.channel.k8s.io"),
            ],
            403,
            "x-accepted-stream-protocol-versions: v4.channel.k8s.io",
        ),
        (&[("Connection", "Upgrade"), ("Upgrade", "websocket")], 400, ""),
    ] {
        let url = exec_url(&node, exec_request(&id, "true")).await?;
        let (got, head) = ask(&node, &url, headers)?;
        assert!(got == code && head.contains(says), "{headers:?}: {head}");
    }
    node.finish().await
}

#[tokio::test]
async fn wrong_requests_are_refused_with_their_field() -> Result<()> {
    let node = Node::start().await?;
    let (pod, id) = busy(&node).await?;
    let mut runtime = node.cri().runtime();
    let exec = exec_request(&id, "true");
    for (request, code, says) in [
        (ExecRequest { tty: true, ..exec.clone() }, Code::InvalidArgument, "stderr"),
        (
            ExecRequest { stdout: false, stderr: false, ..exec.clone() },
            Code::InvalidArgument,
            "stdin, stdout, stderr",
        ),
        (ExecRequest { cmd: vec![], ..exec.clone() }, Code::InvalidArgument, "cmd"),
        (
            ExecRequest { container_id: String::new(), ..exec.clone() },
            Code::InvalidArgument,
            "container_id",
        ),
        (ExecRequest { container_id: "absent".into(), ..exec.clone() }, Code::NotFound, "absent"),
    ] {
        let error = runtime.exec(request).await.expect_err(says);
        assert!(error.code() == code && error.message().contains(says), "{error}");
    }
    let request = AttachRequest { container_id: id.clone(), ..Default::default() };
    let error = runtime.attach(request).await.expect_err("no stream");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80, 65536] };
    let error = runtime.port_forward(request).await.expect_err("port");
    assert!(error.code() == Code::InvalidArgument && error.message().contains("65536"), "{error}");
    node.stop_container(&id, 0).await?;
    let error = runtime.exec(exec).await.expect_err("it has ended");
    assert!(
        error.code() == Code::FailedPrecondition && error.message().contains("exited"),
        "{error}"
    );
    node.stop_pod(&pod.id).await?;
    let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80] };
    let error = runtime.port_forward(request).await.expect_err("it is stopped");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    node.finish().await
}

#[tokio::test]
async fn an_idle_stream_is_ended_and_a_busy_one_is_not() -> Result<()> {
    let config = "[stream]\nidle_timeout_seconds = 2\naddress = \"127.0.0.1:0\"\n";
    let node = Node::builder().config(config).start().await?;
    let (_, id) = busy(&node).await?;
    let mut idle = open_exec(&node, Over::Spdy, exec_request(&id, "sleep 4720")).await?;
    let request = exec_request(&id, "for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo $i; done");
    let mut active = open_exec(&node, Over::WebSocket, request).await?;
    active.finish()?;
    assert_eq!(active.exit_code()?, 0);
    idle.finish()?;
    assert_eq!(idle.error(), "");
    gone(&node, &id, "sleep 4720").await?;
    node.finish().await
}

#[tokio::test]
async fn it_is_served_over_tls() -> Result<()> {
    let dir = berth_tests::node::fresh_dir("tls")?;
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let config = format!("[stream]\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
    let node = Node::builder().config(&config).start().await?;
    let (_, id) = busy(&node).await?;
    let url = exec_url(&node, exec_request(&id, "echo hello")).await?;
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let (address, path) = split_url(&url)?;
    let mut client = node.host().command("openssl");
    client.args(["s_client", "-quiet", "-ign_eof", "-connect", &address.to_string(), "-CAfile"]);
    client.arg(&cert).args(["-verify_return_error"]);
    client.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut client = client.spawn()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    let mut input = client.stdin.take().context("its input")?;
    std::io::Write::write_all(&mut input, request.as_bytes())?;
    let output = client.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 101") && said.contains("hello\n"), "{said}");
    assert!(said.contains("\"status\":\"Success\""), "{said}");
    drop(input);
    std::fs::remove_dir_all(dir)?;
    node.finish().await
}
