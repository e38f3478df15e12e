//! Throughput of streams: what a command writes, and what a server in a pod sends, through SPDY as
//! kubelet asks for it.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ExecRequest, PortForwardRequest};
use berth_tests::eventually::eventually;
use berth_tests::stream::spdy::Spdy;
use berth_tests::stream::split_url;

use super::{Clock, Scale, Target};
use crate::images::APP;
use crate::pods::Network;
use crate::samples::{Metric, Samples};

const EXEC: Metric = Metric::rate("Stream: exec's output", "MB/s");
const EXEC_CPU: Metric = Metric::cost("Stream: CPU per GB of exec's output", "s");
const FORWARD: Metric = Metric::rate("Stream: through a forwarded port", "MB/s");
const FORWARD_CPU: Metric = Metric::cost("Stream: CPU per GB through a forwarded port", "s");

/// How long a server may take to listen.
const SOON: Duration = Duration::from_secs(20);

/// The URL of a stream, asked for at once.
fn open(url: &str, versions: &[&str]) -> Result<Spdy> {
    let (address, path) = split_url(url)?;
    Spdy::open(TcpStream::connect(address)?, path, versions)
}

pub(super) async fn measure(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let bytes = scale.stream.to_string();
    let (pod, _) = target.node.up(Network::Host, &["pour", &port, &bytes]).await?;
    let gigabytes = super::log::decimal(scale.stream) / 1e9;
    for _ in 0..scale.repeats {
        for (rate, cpu, forward) in [(EXEC, EXEC_CPU, false), (FORWARD, FORWARD_CPU, true)] {
            let clock = Clock::start(target).await?;
            let time = if forward {
                forwarded(target, &pod.pod.id, &port, scale.stream).await?
            } else {
                written(target, &pod.container, scale.stream).await?
            };
            if let Some(used) = clock.used().await? {
                samples.push(cpu, used.as_secs_f64() / gigabytes);
            }
            samples.push(rate, gigabytes * 1e3 / time.as_secs_f64());
        }
    }
    target.node.down(&pod).await?;
    Ok(samples)
}

/// A command's output, from its request to its last byte.
async fn written(target: &Target, container: &str, bytes: u64) -> Result<Duration> {
    let cmd = [APP, "flood", &bytes.to_string(), "65536"].map(str::to_owned).to_vec();
    let container_id = container.to_owned();
    let request = ExecRequest { container_id, cmd, stdout: true, ..Default::default() };
    let begin = Instant::now();
    let url = target.node.cri.runtime().exec(request).await?.into_inner().url;
    let count = tokio::task::spawn_blocking(move || -> Result<u64> {
        let mut spdy = open(&url, &["v4.channel.k8s.io"])?;
        spdy.stream(&[("streamtype", "error")])?;
        let stdout = spdy.stream(&[("streamtype", "stdout")])?;
        spdy.drain(stdout)
    })
    .await??;
    // Whole blocks, and the last line.
    ensure!(count + 65536 > bytes, "{count} of {bytes} bytes came");
    Ok(begin.elapsed())
}

/// What a server sends, from the request to its last byte.
async fn forwarded(target: &Target, pod: &str, port: &str, bytes: u64) -> Result<Duration> {
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![] };
    eventually("the server", SOON, async || {
        Ok(TcpStream::connect(format!("127.0.0.1:{port}")).ok())
    })
    .await?;
    let begin = Instant::now();
    let url = target.node.cri.runtime().port_forward(request).await?.into_inner().url;
    let port = port.to_owned();
    let count = tokio::task::spawn_blocking(move || -> Result<u64> {
        let mut spdy = open(&url, &["portforward.k8s.io"])?;
        let mut one =
            |kind| spdy.stream(&[("streamtype", kind), ("port", &port), ("requestid", "0")]);
        let (_, data) = (one("error")?, one("data")?);
        spdy.drain(data)
    })
    .await?
    .context("read a forwarded port")?;
    ensure!(count == bytes, "{count} of {bytes} bytes came");
    Ok(begin.elapsed())
}
