//! Callers of a pull that run out of time or go away.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use berth_tests::eventually::true_within;
use berth_tests::image::{Built, Image, Layer, Packing};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, archive};
use tokio::task::JoinHandle;
use tonic::codegen::{Bytes, http};
use tonic::{Code, Status};

use crate::{list, noise, push, remove, spec, try_pull};

/// In the node's own network namespace, so that it is free.
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 9464);
/// Of the one layer.
const SIZE: u64 = 8 << 20;
/// Where the registry stops sending.
const HELD: u64 = 4 << 20;
const SOON: Duration = Duration::from_secs(20);

fn large_image() -> Result<Built> {
    let tar = archive(&[Entry::file("large", &noise(8 << 20))]);
    Ok(Image::new(vec![Layer::packed(&tar, Packing::Plain)?]).build())
}

#[tokio::test]
async fn a_deadline_that_passes_is_answered_as_such_and_leaves_nothing() -> Result<()> {
    let node = Node::start().await?;
    let image = large_image()?;
    let reference = push(&node, "late", "1", &image)?;
    // Before the registry has said a word, and in the middle of the layer.
    for (limit, held) in [("1m", 0), ("3S", HELD)] {
        let before = node.proxy().passed();
        node.proxy().hold_after(held);
        let status = pull_within(&node, &reference, limit).await?;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{limit}: {status:?}");
        assert!(node.proxy().passed() - before >= held, "{limit}: the layer was under way");
        assert_eq!(list(&node).await?, [], "{limit}");
        nothing_under_way(&node).await?;
        node.proxy().mend();
    }
    assert_eq!(try_pull(&node, &reference).await?, image.config.digest);
    node.finish().await
}

/// PullImage with this `grpc-timeout` and the server's word on it: a client of tonic would keep
/// the time itself and end the call before the answer is there.
async fn pull_within(node: &Node, reference: &str, limit: &str) -> Result<Status> {
    let socket = tokio::net::UnixStream::connect(node.dir().join("cri.sock")).await?;
    let (client, connection) = h2::client::handshake(socket).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post("http://localhost/runtime.v1.ImageService/PullImage")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", limit)
        .body(())?;
    let (answer, mut body) = client.ready().await?.send_request(request, false)?;
    body.send_data(framed(reference)?, true)?;
    let answer = answer.await?;
    connection.abort();
    Status::from_header_map(answer.headers()).with_context(|| format!("no status: {answer:?}"))
}

/// A request for this image as gRPC sends it.
fn framed(reference: &str) -> Result<Bytes> {
    let image = field(reference.as_bytes())?;
    let message = field(&image)?;
    let header = [0, 0, 0, 0, u8::try_from(message.len())?];
    Ok([&header, &message[..]].concat().into())
}

/// These bytes as field 1 of a message.
fn field(bytes: &[u8]) -> Result<Vec<u8>> {
    ensure!(bytes.len() < 128, "the length does not fit one byte");
    Ok([&[0x0a, u8::try_from(bytes.len())?], bytes].concat())
}

#[tokio::test]
async fn a_download_ends_with_its_last_caller_and_not_before() -> Result<()> {
    let address = SocketAddr::from(METRICS);
    let metrics = format!("[metrics]\naddress = \"{address}\"\n");
    let node = Node::builder().config(&metrics).start().await?;
    if !node.is_berth() {
        println!("skipped: looks into Berth's metrics and directories");
        return node.finish().await;
    }
    let image = large_image()?;
    let reference = push(&node, "left", "1", &image)?;
    let before = node.proxy().passed();
    node.proxy().hold_after(HELD);
    let first = begin_pull(&node, &reference);
    layer_under_way(&node).await?;
    let second = begin_pull(&node, &reference);
    in_flight(&node, 2).await?;
    first.abort();
    in_flight(&node, 1).await?;
    node.proxy().mend();
    assert_eq!(second.await??.image_ref, image.config.digest);
    let passed = node.proxy().passed() - before;
    assert!(passed < SIZE + HELD / 2, "fetched once, not {passed} bytes");

    remove(&node, &reference).await?;
    node.proxy().hold_after(HELD);
    let only = begin_pull(&node, &reference);
    layer_under_way(&node).await?;
    only.abort();
    in_flight(&node, 0).await?;
    // The registry still holds the rest back: nothing but the caller's leaving ends this.
    nothing_under_way(&node).await?;
    node.proxy().mend();
    assert_eq!(list(&node).await?, []);
    node.finish().await
}

fn begin_pull(node: &Node, reference: &str) -> JoinHandle<Result<PullImageResponse, Status>> {
    let (cri, image) = (node.cri().clone(), Some(spec(reference)));
    tokio::spawn(
        async move { cri.pull_image(PullImageRequest { image, ..Default::default() }).await },
    )
}

/// Waits until the daemon has so many requests under way.
async fn in_flight(node: &Node, wanted: usize) -> Result<()> {
    let line = format!("berth_cri_requests_in_flight {wanted}");
    true_within(&line, SOON, async || {
        let mut stream = node.host().connect(METRICS.into())?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.lines().any(|l| l == line))
    })
    .await
}

/// Waits until a layer is being unpacked.
async fn layer_under_way(node: &Node) -> Result<()> {
    let staging = node.root().join("image/staging");
    true_within("a layer in the making", SOON, async || Ok(!entries(&staging)?.is_empty())).await
}

/// Waits until nothing is left of a pull that has ended, but for what a later one may resume.
async fn nothing_under_way(node: &Node) -> Result<()> {
    if !node.is_berth() {
        return Ok(());
    }
    true_within("nothing of the pull", SOON, async || {
        let mut left = Vec::new();
        for dir in ["images", "staging", "trash", "layers"] {
            left.extend(entries(&node.root().join("image").join(dir))?);
        }
        // It stands for no layer at all.
        left.retain(|name| name != "empty");
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(true)
    })
    .await
}

fn entries(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}
