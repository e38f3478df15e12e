//! Kubernetes' own clients, against a small API server that hands them on to the streaming server,
//! as kube-apiserver and kubelet do: kubectl (Go, SPDY) and the Python client (WebSocket).

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use berth_tests::cri::Cri;
use berth_tests::stream::split_url;

/// What the clients ask for beside streams.
const DOCUMENTS: &[(&str, &str)] = &[
    ("/api", r#"{"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[]}"#),
    ("/apis", r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[]}"#),
    (
        "/api/v1",
        r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods",
        "singularName":"","namespaced":true,"kind":"Pod","verbs":["get"],"shortNames":["po"]}]}"#,
    ),
    (
        "/api/v1/namespaces/default/pods/p",
        r#"{"kind":"Pod","apiVersion":"v1",
        "metadata":{"name":"p","namespace":"default"},"spec":{"containers":[{"name":"main",
        "image":"x","stdin":true}]},"status":{"phase":"Running"}}"#,
    ),
];

/// The API server: one pod with one container.
struct Api {
    socket: std::path::PathBuf,
    container: String,
    pod: String,
    netns: u32,
}

impl Api {
    /// Serves on a port of the node's loopback for as long as the test program runs.
    fn start(node: &Node, pod: &Pod, container: &str) -> Result<u16> {
        let api = Arc::new(Self {
            socket: node.dir().join("cri.sock"),
            container: container.to_owned(),
            pod: pod.id.clone(),
            netns: node.host().pid(),
        });
        let listener: TcpListener = node.host().listen()?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let api = Arc::clone(&api);
                std::thread::spawn(move || {
                    // A client that goes early is one of the cases.
                    if let Err(error) = api.serve(client) {
                        eprintln!("the API server: {error:#}");
                    }
                });
            }
        });
        Ok(port)
    }

    fn serve(&self, mut client: TcpStream) -> Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte)? == 0 {
                    return Ok(());
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head)?;
            let (line, headers) = head.split_once("\r\n").context("a request")?;
            let target = line.split(' ').nth(1).context("a path")?;
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            if let Some((_, body)) = DOCUMENTS.iter().find(|(known, _)| *known == path) {
                write!(
                    client,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                )?;
                continue;
            }
            let Some(url) = self.url(path, query)? else {
                write!(client, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            };
            return self.hand_on(client, &url, headers);
        }
    }

    /// Where the stream can be had that this path means.
    fn url(&self, path: &str, query: &str) -> Result<Option<String>> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), decode(value)))
            .collect();
        let is = |name: &str| {
            pairs.iter().any(|(n, v)| n == name && ["true", "True", "1"].contains(&v.as_str()))
        };
        let all = |name: &str| -> Vec<String> {
            pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
        };
        let (stdin, stdout, tty) = (is("stdin"), is("stdout"), is("tty"));
        let stderr = is("stderr") && !tty;
        let container_id = self.container.clone();
        let run = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        run.block_on(async {
            let cri = Cri::new(&self.socket)?;
            Ok(match path.rsplit('/').next() {
                Some("exec") => {
                    let cmd = all("command");
                    let request = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
                    Some(cri.runtime().exec(request).await?.into_inner().url)
                }
                Some("attach") => {
                    let request = AttachRequest { container_id, stdin, tty, stdout, stderr };
                    Some(cri.runtime().attach(request).await?.into_inner().url)
                }
                Some("portforward") => {
                    let ports = all("ports").join(",");
                    let ports = ports.split(',').filter(|port| !port.is_empty());
                    let port = ports.map(str::parse).collect::<Result<_, _>>()?;
                    let request = PortForwardRequest { pod_sandbox_id: self.pod.clone(), port };
                    Some(cri.runtime().port_forward(request).await?.into_inner().url)
                }
                _ => None,
            })
        })
    }

    /// The request goes on as it is, and then every byte.
    fn hand_on(&self, client: TcpStream, url: &str, headers: &str) -> Result<()> {
        let (address, path) = split_url(url)?;
        let mut server = berth_tests::host::connect_in(self.netns, address)?;
        write!(server, "POST {path} HTTP/1.1\r\n{headers}")?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let up = std::thread::spawn(move || {
            let _broken = std::io::copy(&mut from_client, &mut to_server);
            let _closed = to_server.shutdown(Shutdown::Write);
        });
        let mut client = client;
        let _broken = std::io::copy(&mut server, &mut client);
        let _closed = client.shutdown(Shutdown::Both);
        let _joined = up.join();
        Ok(())
    }
}

/// `%xx` and `+` as they are meant.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let hex = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a client with this input; its exit code, stdout and stderr.
fn run(mut client: Command, input: &str) -> Result<(Option<i32>, String, String)> {
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn()?;
    client.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = client.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// kubectl, if the machine has it. The tests say so where it does not.
fn kubectl(node: &Node, port: u16, args: &[&str]) -> Option<Command> {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("kubectl (package kubernetes-client) is not here: its cases are left out");
        return None;
    }
    let mut command = node.host().command("kubectl");
    command.args(["--server", &format!("http://127.0.0.1:{port}")]).args(args);
    // No other configuration; SPDY also where the client would try WebSocket first.
    command.env("KUBECONFIG", "/dev/null").env("HOME", node.dir());
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
    Some(command)
}

#[tokio::test]
async fn kubectl_execs_and_attaches_over_spdy() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("kubectl").await?;
    let mut config = shell("main", "while read x; do echo got $x; done; sleep 1000");
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    let port = Api::start(&node, &pod, &id)?;
    let exec = ["exec", "-i", "p", "-c", "main", "--"];
    let script = ["sh", "-c", "cat; echo err >&2; exit 9"];
    let Some(command) = kubectl(&node, port, &[&exec[..], &script].concat()) else {
        return node.finish().await;
    };
    let long = "0123456789abcde\n".repeat(20_000);
    let (code, stdout, stderr) = run(command, &long)?;
    assert_eq!(code, Some(9), "{stderr}");
    assert!(stdout == long && stderr.starts_with("err\n"), "{} bytes, {stderr}", stdout.len());
    let attach = ["attach", "-i", "p", "-c", "main"];
    let command = kubectl(&node, port, &attach).context("kubectl")?;
    let mut command = command;
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = command.spawn()?;
    let mut input = client.stdin.take().context("its input")?;
    let mut output = client.stdout.take().context("its output")?;
    input.write_all(b"hello\n")?;
    let mut got = [0; 10];
    output.read_exact(&mut got)?;
    assert_eq!(&got, b"got hello\n");
    berth_tests::host::end(&mut client);
    node.finish().await
}

#[tokio::test]
async fn kubectl_forwards_ports_over_spdy() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("ports").await?;
    let id =
        node.run(&pod, shell("main", "while :; do nc -l -p 8095 -e echo served; done")).await?;
    let port = Api::start(&node, &pod, &id)?;
    let Some(mut command) = kubectl(&node, port, &["port-forward", "pod/p", ":8095"]) else {
        return node.finish().await;
    };
    let mut client = command.stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let mut output = client.stdout.take().context("its output")?;
    while !said.contains('\n') {
        let mut byte = [0];
        ensure!(output.read(&mut byte)? == 1, "kubectl ended: {said}");
        said.push(char::from(byte[0]));
    }
    // "Forwarding from 127.0.0.1:41234 -> 8095"
    let address = said.split_whitespace().nth(2).context("an address")?.parse()?;
    for _ in 0..5 {
        let text = eventually("an answer", SOON, async || {
            let mut text = String::new();
            node.host().connect(address)?.read_to_string(&mut text)?;
            Ok((!text.is_empty()).then_some(text))
        })
        .await?;
        assert_eq!(text, "served\n");
    }
    berth_tests::host::end(&mut client);
    node.finish().await
}

const PYTHON: &str = r#"
import sys
from kubernetes import client
from kubernetes.stream import stream, portforward
configuration = client.Configuration()
configuration.host = sys.argv[1]
api = client.CoreV1Api(client.ApiClient(configuration))
shell = stream(api.connect_get_namespaced_pod_exec, "p", "default", container="main",
               command=["sh", "-c", "read x; echo got $x; echo err >&2; exit 6"],
               stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
shell.write_stdin("hello\n")
shell.run_forever(timeout=20)
print(shell.read_stdout(), shell.read_stderr(), shell.returncode)
big = stream(api.connect_get_namespaced_pod_exec, "p", "default", container="main",
             command=["sh", "-c", "yes 0123456789abcde | head -c 3000000"],
             stdin=False, stdout=True, stderr=False, tty=False)
print(len(big))
forward = portforward(api.connect_get_namespaced_pod_portforward, "p", "default", ports="8096")
socket = forward.socket(8096)
socket.setblocking(True)
socket.sendall(b"ping\n")
print(socket.recv(100).decode(), forward.error(8096))
"#;

#[tokio::test]
async fn the_python_client_execs_and_forwards_over_websocket() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("python").await?;
    let script = "while :; do nc -l -p 8096 -e sh -c 'read x; echo pong $x; cat'; done";
    let id = node.run(&pod, shell("main", script)).await?;
    let port = Api::start(&node, &pod, &id)?;
    let mut command = node.host().command("timeout");
    command.args(["40", "/usr/bin/python3", "-c", PYTHON, &format!("http://127.0.0.1:{port}")]);
    let (code, stdout, stderr) = run(command, "")?;
    assert!(!stderr.contains("No module named"), "package python3-kubernetes: {stderr}");
    let words: Vec<&str> = stdout.split_whitespace().collect();
    assert_eq!(words, ["got", "hello", "err", "6", "3000000", "pong", "ping", "None"], "{stderr}");
    assert_eq!(code, Some(0), "{stderr}");
    node.finish().await
}
