//! Exec, attach and port-forward, over SPDY and over WebSocket.
#![forbid(unsafe_code)]

mod attach;
mod clients;
mod exec;
mod forward;
mod server;

use berth_tests::prelude::*;
use berth_tests::stream::{ERROR, RESIZE, Remote, STDERR, STDIN, STDOUT};

/// The newest version of each protocol.
const SPDY: &str = "v4.channel.k8s.io";
const WEBSOCKET: &str = "v5.channel.k8s.io";

/// Both protocols, for what must be the same over either.
#[derive(Debug, Clone, Copy)]
enum Over {
    Spdy,
    WebSocket,
}

const BOTH: [Over; 2] = [Over::Spdy, Over::WebSocket];

/// A pod with a container that waits.
async fn busy(node: &Node) -> Result<(Pod, String)> {
    let pod = node.pod("stream").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    Ok((pod, id))
}

fn exec_request(id: &str, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: id.to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn exec_url(node: &Node, request: ExecRequest) -> Result<String> {
    Ok(node.cri().runtime().exec(request).await?.into_inner().url)
}

/// Opens an exec with the streams that its request names.
async fn open_exec(node: &Node, over: Over, request: ExecRequest) -> Result<Remote> {
    let wanted = [
        (STDIN, request.stdin),
        (STDOUT, request.stdout),
        (STDERR, request.stderr),
        (RESIZE, request.tty),
    ];
    let url = exec_url(node, request).await?;
    open(node, over, &url, &wanted)
}

async fn open_attach(node: &Node, over: Over, request: AttachRequest) -> Result<Remote> {
    let wanted = [
        (STDIN, request.stdin),
        (STDOUT, request.stdout),
        (STDERR, request.stderr),
        (RESIZE, request.tty),
    ];
    let url = node.cri().runtime().attach(request).await?.into_inner().url;
    open(node, over, &url, &wanted)
}

fn open(node: &Node, over: Over, url: &str, wanted: &[(u8, bool)]) -> Result<Remote> {
    let channels: Vec<u8> =
        wanted.iter().filter(|(_, wanted)| *wanted).map(|(channel, _)| *channel).collect();
    match over {
        Over::Spdy => Remote::spdy(node, url, SPDY, &channels),
        Over::WebSocket => Remote::websocket(node, url, WEBSOCKET),
    }
}

/// Runs a script to its end.
async fn run(node: &Node, over: Over, id: &str, script: &str) -> Result<Remote> {
    let mut remote = open_exec(node, over, exec_request(id, script)).await?;
    remote.finish()?;
    Ok(remote)
}

/// Waits until no process of the container has this command line.
async fn gone(node: &Node, id: &str, command: &str) -> Result<()> {
    let seen = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    true_within(&format!("the end of {command:?}"), SOON, async || {
        Ok(!node.sh(id, seen).await?.lines().any(|line| line.starts_with(command)))
    })
    .await
}

/// A line of the daemon's /proc/PID/status, in KiB.
fn daemon_memory(node: &Node, line: &str) -> Result<u64> {
    let pid = node.daemon_pid().context("the daemon's process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)).context("the line")?;
    Ok(value.trim_matches([':', '\t', ' ', 'k', 'B']).parse()?)
}
