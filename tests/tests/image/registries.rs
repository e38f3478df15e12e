//! Asking registries: certificates, mirrors, refusals.

use berth_tests::node::plain_host;
use berth_tests::prelude::*;
use berth_tests::registry::Registry;

use crate::{list, own_image, push, try_pull};

#[tokio::test]
async fn https_needs_the_authority_or_leave_to_skip_it() -> Result<()> {
    let node = Node::start().await?;
    let registry = Registry::https()?;
    let built = own_image("secure")?.build();
    registry.push("secure", "1", &built)?;
    let relay = berth_tests::proxy::Proxy::new(node.host().listen()?, registry.address())?;
    let server = format!("https://{}", relay.address());
    let ca = node.dir().join("ca.pem");
    std::fs::write(&ca, registry.ca().context("an authority")?)?;
    let host = |more: &str| {
        format!(
            "server = \"{server}\"\n[host.\"{server}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n{more}\n"
        )
    };
    let ca_line = format!("ca = \"{}\"", ca.display());
    for (name, more, works) in [
        ("bare.test", "", false),
        ("ca.test", ca_line.as_str(), true),
        ("skip.test", "skip_verify = true", true),
    ] {
        node.write_hosts(name, &host(more))?;
        let outcome = try_pull(&node, &format!("{name}/secure:1")).await;
        assert_eq!(outcome.is_ok(), works, "{name}: {outcome:?}");
    }
    node.finish().await
}

#[tokio::test]
async fn mirrors_are_tried_in_order() -> Result<()> {
    let node = Node::start().await?;
    let mirror = Registry::http()?;
    let built = own_image("mirrored")?.build();
    mirror.push("mirrored", "1", &built)?;
    let fallback = own_image("origin")?.build();
    push(&node, "mirrored", "1", &fallback)?;
    push(&node, "only-origin", "1", &fallback)?;
    let first = berth_tests::proxy::Proxy::new(node.host().listen()?, mirror.address())?;
    // Nothing listens there any more.
    let gone = node.host().listen()?.local_addr()?;
    let (first_at, origin) = (first.address(), node.proxy().address());
    let capable = "capabilities = [\"pull\", \"resolve\"]";
    node.write_hosts(
        "mirrored.test",
        &format!(
            "server = \"http://{origin}\"\n[host.\"http://{gone}\"]\n{capable}\n\
             [host.\"http://{first_at}\"]\n{capable}\n"
        ),
    )?;
    assert_eq!(try_pull(&node, "mirrored.test/mirrored:1").await?, built.config.digest);
    assert!(first.connections() > 0);
    // What no mirror has comes from the server.
    assert_eq!(try_pull(&node, "mirrored.test/only-origin:1").await?, fallback.config.digest);
    node.finish().await
}

#[tokio::test]
async fn a_mirror_that_only_pulls_does_not_resolve() -> Result<()> {
    let node = Node::start().await?;
    let mirror = Registry::http()?;
    let (stale, fresh) = (own_image("stale")?.build(), own_image("fresh")?.build());
    mirror.push("capable", "1", &stale)?;
    push(&node, "capable", "1", &fresh)?;
    let relay = berth_tests::proxy::Proxy::new(node.host().listen()?, mirror.address())?;
    let (mirror_at, origin) = (relay.address(), node.proxy().address());
    node.write_hosts(
        "capable.test",
        &format!(
            "server = \"http://{origin}\"\n[host.\"http://{mirror_at}\"]\n\
             capabilities = [\"pull\"]\n"
        ),
    )?;
    assert_eq!(try_pull(&node, "capable.test/capable:1").await?, fresh.config.digest);
    node.finish().await
}

#[tokio::test]
async fn what_is_not_there_or_not_reachable_is_an_error() -> Result<()> {
    let node = Node::start().await?;
    for name in ["registry.test/absent:1", "registry.test/busybox:absent"] {
        let error = try_pull(&node, name).await.unwrap_err();
        if node.is_berth() {
            assert_eq!(error.code(), Code::NotFound, "{name}: {error}");
            assert!(error.message().contains(name), "{name}: {error}");
        }
    }
    let gone = node.host().listen()?.local_addr()?;
    node.write_hosts("gone.test", &plain_host(gone))?;
    let error = try_pull(&node, "gone.test/busybox:1").await.unwrap_err();
    assert!(!node.is_berth() || error.message().contains("gone.test"), "{error}");
    assert!(
        !list(&node).await?.iter().any(|image| image.repo_tags.iter().any(|t| t.contains("gone")))
    );
    node.finish().await
}
