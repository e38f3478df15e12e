//! Images: from a real registry to a root filesystem, and what goes wrong on the way.
#![forbid(unsafe_code)]

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Built, Format, Image, Layer, Packing, index};
use berth_tests::node::{REGISTRY, plain_host};
use berth_tests::prelude::*;
use berth_tests::registry::Registry;
use berth_tests::tar::{Entry, Kind, archive};
use serde_json::json;

fn spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..Default::default() }
}

async fn find(node: &Node, name: &str) -> Result<Option<berth_proto::cri::Image>> {
    let request = ImageStatusRequest { image: Some(spec(name)), verbose: false };
    Ok(node.cri().image_status(request).await?.image)
}

async fn try_pull(node: &Node, name: &str) -> Result<String, tonic::Status> {
    let request = PullImageRequest { image: Some(spec(name)), ..Default::default() };
    Ok(node.cri().pull_image(request).await?.image_ref)
}

async fn remove(node: &Node, name: &str) -> Result<()> {
    node.cri().remove_image(RemoveImageRequest { image: Some(spec(name)) }).await?;
    Ok(())
}

async fn list(node: &Node) -> Result<Vec<berth_proto::cri::Image>> {
    Ok(node.cri().list_images(ListImagesRequest::default()).await?.images)
}

/// A layer with one file.
fn file_layer(path: &str, text: &str) -> Result<Layer> {
    Layer::new(&[Entry::file(path, text)])
}

/// busybox with a file that makes it this test's own.
fn own_image(mark: &str) -> Result<Image> {
    let image = Image::new(vec![busybox_layer()?, file_layer("mark", mark)?]);
    Ok(image.config(json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]})))
}

/// What a shell script prints in a container of this image.
async fn output(node: &Node, image: &str, script: &str) -> Result<String> {
    let pod = node.pod(&format!("p{}", image.replace([':', '/', '@', '.'], "-"))).await?;
    let mut config = shell("main", script);
    config.image = Some(spec(image));
    let text = node.output(&pod, config).await;
    node.remove_pod(&pod.id).await?;
    text
}

fn push(node: &Node, repository: &str, tag: &str, image: &Built) -> Result<String> {
    node.registry().push(repository, tag, image)?;
    Ok(node.image(&format!("{repository}:{tag}")).image)
}

#[tokio::test]
async fn one_image_has_one_id_by_every_name() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("names")?.build();
    let tagged = push(&node, "names", "v1", &built)?;
    let other = push(&node, "names", "v2", &built)?;
    assert!(find(&node, &tagged).await?.is_none(), "absent is an empty answer");

    let id = try_pull(&node, &tagged).await?;
    assert_eq!(id, built.config.digest);
    assert_eq!(try_pull(&node, &other).await?, id);
    let repository = tagged.trim_end_matches(":v1");
    let by_digest = format!("{repository}@{}", built.manifest.digest);
    assert_eq!(try_pull(&node, &by_digest).await?, id);

    let hex = id.trim_start_matches("sha256:");
    let short = hex.get(..12).context("a long id")?;
    for name in [id.as_str(), hex, short, &tagged, &other, &by_digest] {
        let found = find(&node, name).await?.with_context(|| name.to_owned())?;
        assert_eq!(found.id, id, "{name}");
        let mut tags = found.repo_tags;
        tags.sort();
        assert_eq!(tags, [tagged.clone(), other.clone()], "{name}");
        assert_eq!(found.repo_digests, std::slice::from_ref(&by_digest), "{name}");
        assert!(found.size > 0);
    }
    assert_eq!(list(&node).await?.iter().filter(|image| image.id == id).count(), 1);
    node.finish().await
}

#[tokio::test]
async fn without_a_tag_it_is_latest_and_by_digest_it_has_no_tag() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("untagged")?.build();
    let tagged = push(&node, "untagged", "latest", &built)?;
    let bare = tagged.trim_end_matches(":latest").to_owned();
    assert_eq!(try_pull(&node, &bare).await?, built.config.digest);
    let found = find(&node, &bare).await?.context("the image")?;
    assert_eq!(found.repo_tags, [tagged]);

    let built = own_image("digest")?.build();
    push(&node, "digested", "x", &built)?;
    let name = node.image(&format!("digested@{}", built.manifest.digest)).image;
    try_pull(&node, &name).await?;
    let found = find(&node, &name).await?.context("the image")?;
    assert!(found.repo_tags.is_empty(), "{:?}", found.repo_tags);
    assert_eq!(found.repo_digests, [name]);
    node.finish().await
}

#[tokio::test]
async fn a_tag_that_moves_takes_its_name_along() -> Result<()> {
    let node = Node::start().await?;
    let (old, new) = (own_image("old")?.build(), own_image("new")?.build());
    let name = push(&node, "moving", "1", &old)?;
    try_pull(&node, &name).await?;
    push(&node, "moving", "1", &new)?;
    assert_eq!(try_pull(&node, &name).await?, new.config.digest);
    assert_eq!(find(&node, &name).await?.context("the image")?.id, new.config.digest);
    let left = find(&node, &old.config.digest).await?.context("the old image by id")?;
    assert!(left.repo_tags.is_empty(), "{:?}", left.repo_tags);
    assert_eq!(output(&node, &name, "cat /mark").await?, "new");
    node.finish().await
}

#[tokio::test]
async fn the_user_of_an_image_is_told() -> Result<()> {
    let node = Node::start().await?;
    for (user, uid, name) in
        [("1000", Some(1000), ""), ("app:other", None, "app"), ("", Some(0), "")]
    {
        let image = own_image(&format!("user{user}"))?.config(json!({"User": user})).build();
        let tag = format!("u{}", user.replace(':', "-"));
        let reference = push(&node, "told", &tag, &image)?;
        try_pull(&node, &reference).await?;
        let found = find(&node, &reference).await?.context("the image")?;
        let told = found.uid.map(|uid| uid.value);
        assert!(told == uid || (user.is_empty() && told.is_none()), "{user}: {told:?}");
        assert_eq!(found.username, name, "{user}");
    }
    node.finish().await
}

#[tokio::test]
async fn every_format_and_packing_runs() -> Result<()> {
    let node = Node::start().await?;
    for (name, format, packing) in [
        ("oci-plain", Format::Oci, Packing::Plain),
        ("oci-gzip", Format::Oci, Packing::Gzip),
        ("oci-zstd", Format::Oci, Packing::Zstd),
        ("docker-gzip", Format::Docker, Packing::Gzip),
        ("docker-plain", Format::Docker, Packing::Plain),
    ] {
        let mark = Layer::packed(&archive(&[Entry::file("mark", name)]), packing)?;
        let image = Image::new(vec![busybox_layer()?, mark]).format(format);
        let image = image.config(json!({"Env": ["PATH=/bin"]})).build();
        let reference = push(&node, name, "1", &image)?;
        assert_eq!(output(&node, &reference, "cat /mark").await?, name);
    }
    node.finish().await
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_platform() -> Result<()> {
    let node = Node::start().await?;
    for (name, format) in [("oci-index", Format::Oci), ("docker-list", Format::Docker)] {
        let own = own_image(name)?.format(format);
        let foreign = own_image("foreign")?.format(format).architecture("s390x");
        let built = index(&[foreign.clone(), own.clone()], &own);
        let reference = push(&node, name, "1", &built)?;
        assert_eq!(try_pull(&node, &reference).await?, own.build().config.digest);
        let found = find(&node, &reference).await?.context("the image")?;
        let digest = format!("{}@{}", reference.trim_end_matches(":1"), built.manifest.digest);
        assert_eq!(found.repo_digests, [digest]);
        assert_eq!(output(&node, &reference, "cat /mark").await?, name);

        let built = index(std::slice::from_ref(&foreign), &foreign);
        let reference = push(&node, &format!("{name}-foreign"), "1", &built)?;
        let error = try_pull(&node, &reference).await.unwrap_err();
        assert!(!error.message().is_empty());
        assert!(find(&node, &reference).await?.is_none());
    }
    node.finish().await
}

#[tokio::test]
async fn upper_layers_hide_replace_and_keep_what_is_below() -> Result<()> {
    let node = Node::start().await?;
    let below = Layer::new(&[
        Entry::dir("d"),
        Entry::file("d/gone", "x"),
        Entry::file("d/kept", "kept\n"),
        Entry::dir("opaque"),
        Entry::file("opaque/old", "x"),
        Entry::dir("removed"),
        Entry::file("removed/x", "x"),
        Entry::file("was-file", "x"),
        Entry::dir("was-dir"),
        Entry::file("was-dir/x", "x"),
        Entry::dir("meta").mode(0o700).owner(5, 6),
        Entry::file("meta/x", "x"),
        Entry::dir("again"),
        Entry::file("again/x", "old\n"),
    ])?;
    let above = Layer::new(&[
        Entry::file("d/.wh.gone", ""),
        Entry::dir("opaque"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "x"),
        Entry::file(".wh.removed", ""),
        Entry::dir("was-file"),
        Entry::file("was-file/y", "x"),
        Entry::file("was-dir", "now a file\n"),
        // Its parent is not in this layer: the one below says its mode and owner.
        Entry::file("meta/y", "x"),
        Entry::file(".wh.again", ""),
    ])?;
    let top = Layer::new(&[Entry::dir("again"), Entry::file("again/y", "new\n")])?;
    let image = Image::new(vec![busybox_layer()?, below, above, top])
        .config(json!({"Env": ["PATH=/bin"]}))
        .build();
    let reference = push(&node, "whiteouts", "1", &image)?;
    let script = "ls /d /opaque /was-file; cat /d/kept /was-dir; test -e /removed || echo removed; \
                  stat -c '%a %u %g' /meta; ls /meta /again; find / -xdev -name '.wh.*'";
    let wanted = "/d:\nkept\n\n/opaque:\nnew\n\n/was-file:\ny\nkept\nnow a file\nremoved\n\
                  700 5 6\n/again:\ny\n\n/meta:\nx\ny\n";
    assert_eq!(output(&node, &reference, script).await?, wanted);
    node.finish().await
}

#[tokio::test]
async fn links_modes_owners_devices_and_attributes_are_kept() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::new(&[
        Entry::dir("m").mode(0o1777),
        Entry::file("m/setuid", "x").mode(0o4755).owner(12, 34),
        Entry::file("m/hard", "same\n").mode(0o640).owner(70_000, 65_534),
        Entry::new("m/link", Kind::Hardlink("m/hard".into())).mode(0o640).owner(70_000, 65_534),
        Entry::new("m/soft", Kind::Symlink("hard".into())),
        Entry::new("m/null", Kind::Char(1, 3)).mode(0o666),
        Entry::new("m/fifo", Kind::Fifo),
        Entry::file("m/attr", "x").xattr("user.berth", "value"),
        Entry::file(&format!("m/{}", "long".repeat(50)), "long name\n"),
    ])?;
    let image =
        Image::new(vec![busybox_layer()?, layer]).config(json!({"Env": ["PATH=/bin"]})).build();
    let reference = push(&node, "modes", "1", &image)?;
    let script = "cd /m; stat -c '%n %a %u %g' . setuid hard; stat -c '%n %F %t:%T' null fifo; \
                  readlink soft; test hard -ef link && echo linked; cat link long*; \
                  stat -c %h link";
    let text = output(&node, &reference, script).await?;
    let wanted = ". 1777 0 0\nsetuid 4755 12 34\nhard 640 70000 65534\n\
                  null character special file 1:3\nfifo fifo 0:0\nhard\nlinked\nsame\nlong name\n";
    let (found, links) = text.trim_end().rsplit_once('\n').context("two lines")?;
    assert_eq!(format!("{found}\n"), wanted);
    assert!(links.parse::<u32>()? >= 2, "{links}");
    node.finish().await
}

#[tokio::test]
async fn a_hard_link_to_the_layer_below_is_one() -> Result<()> {
    let node = Node::start().await?;
    if node.is_berth() {
        let below = Layer::new(&[Entry::dir("m"), Entry::file("m/hard", "same\n").mode(0o640)])?;
        let above =
            Layer::new(&[Entry::new("m/across", Kind::Hardlink("m/hard".into())).mode(0o640)])?;
        let image = Image::new(vec![busybox_layer()?, below, above]);
        let built = image.config(json!({"Env": ["PATH=/bin"]})).build();
        let reference = push(&node, "across", "1", &built)?;
        let script = "cat /m/across /m/hard; stat -c %a /m/across; test /m/hard -ef /m/across && \
                      echo linked";
        assert_eq!(output(&node, &reference, script).await?, "same\nsame\n640\nlinked\n");
    }
    node.finish().await
}

#[tokio::test]
async fn attributes_of_files_are_kept() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::new(&[Entry::file("attr", "x").xattr("user.berth", "value")])?;
    let image = Image::new(vec![busybox_layer()?, layer]).config(json!({"Env": ["PATH=/bin"]}));
    let reference = push(&node, "attributes", "1", &image.build())?;
    let pod = node.pod("attr").await?;
    let mut config = shell("main", "sleep 1000");
    config.image = Some(spec(&reference));
    config.annotations.insert("only".into(), "attr".into());
    let id = node.run(&pod, config).await?;
    // busybox has no getfattr: the kernel is asked from outside, through the process's root.
    let pid = container_pid(&pod, &id)?;
    let path = format!("/proc/{pid}/root/attr");
    let dump = berth_tests::host::run(
        "python3",
        &["-c", &format!("import os; print(os.getxattr({path:?}, 'user.berth').decode())")],
    );
    match dump {
        Ok(value) => assert_eq!(value, "value\n"),
        // Without python3 the file's presence is all that can be seen.
        Err(_) => assert!(std::path::Path::new(&path).exists()),
    }
    node.finish().await
}

/// The first process of a container, from its cgroup.
fn container_pid(pod: &Pod, id: &str) -> Result<u32> {
    let parent = &pod.config.linux.as_ref().context("a Linux part")?.cgroup_parent;
    for root in berth_tests::footprint::hierarchies() {
        let path = root.join(parent.trim_start_matches('/')).join(id).join("cgroup.procs");
        let procs = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(pid) = procs.lines().next() {
            return Ok(pid.parse()?);
        }
    }
    bail!("no process in a cgroup of {id}")
}

#[tokio::test]
async fn images_of_1_20_and_120_layers_run() -> Result<()> {
    let node = Node::start().await?;
    for count in [1, 20, 120] {
        let mut layers = vec![busybox_layer()?];
        for number in 1..count {
            let text = format!("{number}\n");
            layers.push(Layer::new(&[
                Entry::dir("layers"),
                Entry::file(&format!("layers/{number}"), &text),
                Entry::file("layers/top", &text),
            ])?);
        }
        let image = Image::new(layers).config(json!({"Env": ["PATH=/bin"]})).build();
        let reference = push(&node, &format!("deep{count}"), "1", &image)?;
        let text = output(
            &node,
            &reference,
            "ls /layers 2>/dev/null | wc -l; cat /layers/top 2>/dev/null; true",
        )
        .await?;
        let wanted = if count == 1 { "0\n".into() } else { format!("{count}\n{}\n", count - 1) };
        assert_eq!(text, wanted, "{count} layers");
    }
    node.finish().await
}

#[tokio::test]
async fn shared_layers_are_fetched_once() -> Result<()> {
    let node = Node::start().await?;
    let big = Layer::packed(&archive(&[Entry::file("big", &noise(3 << 20))]), Packing::Plain)?;
    for (index, name) in ["share-a", "share-b"].into_iter().enumerate() {
        let layers = vec![busybox_layer()?, big.clone(), file_layer("mark", name)?];
        let reference = push(&node, name, "1", &Image::new(layers).build())?;
        let before = node.proxy().passed();
        try_pull(&node, &reference).await?;
        let passed = node.proxy().passed() - before;
        assert_eq!(passed > 3 << 20, index == 0, "{name}: {passed} bytes");
    }
    node.finish().await
}

/// Text that packs badly, the same each time.
fn noise(bytes: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text.truncate(bytes);
    text
}

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

#[tokio::test]
async fn removing_by_any_name_removes_the_image() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("removed")?.build();
    let one = push(&node, "removed", "1", &built)?;
    let two = push(&node, "removed", "2", &built)?;
    try_pull(&node, &one).await?;
    try_pull(&node, &two).await?;
    remove(&node, &one).await?;
    if node.is_berth() {
        assert!(find(&node, &two).await?.is_none(), "CRI since 1.36: all its tags");
        assert!(find(&node, &built.config.digest).await?.is_none());
    }
    remove(&node, &built.config.digest).await?;
    remove(&node, &one).await?;
    assert!(find(&node, &one).await?.is_none() && find(&node, &two).await?.is_none());
    assert_eq!(try_pull(&node, &one).await?, built.config.digest);
    assert_eq!(output(&node, &one, "cat /mark").await?, "removed");
    node.finish().await
}

#[tokio::test]
async fn removing_an_image_in_use_leaves_its_containers() -> Result<()> {
    let node = Node::start().await?;
    let reference = push(&node, "used", "1", &own_image("used")?.build())?;
    try_pull(&node, &reference).await?;
    let pod = node.pod("user").await?;
    let mut config = shell("main", "sleep 1000");
    config.image = Some(spec(&reference));
    let id = node.run(&pod, config).await?;
    remove(&node, &reference).await?;
    assert_eq!(node.sh(&id, "cat /mark").await?, "used");
    assert!(find(&node, &reference).await?.is_none());
    let status = node.container(&id).await?;
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn a_pull_cut_at_any_byte_is_an_error_and_the_next_one_is_whole() -> Result<()> {
    let node = Node::start().await?;
    let big = Layer::packed(&archive(&[Entry::file("big", &noise(2 << 20))]), Packing::Gzip)?;
    let image =
        Image::new(vec![busybox_layer()?, big]).config(json!({"Env": ["PATH=/bin"]})).build();
    let reference = push(&node, "cut", "1", &image)?;
    for bytes in [0, 100, 2_000, 300_000, 1_000_000, 1_800_000] {
        node.proxy().cut_after(bytes);
        let outcome = try_pull(&node, &reference).await;
        node.proxy().mend();
        // What came before is kept by peers that resume; then the rest may have sufficed.
        if outcome.is_err() || node.is_berth() {
            outcome.unwrap_err();
            assert!(find(&node, &reference).await?.is_none(), "after {bytes} bytes");
        }
    }
    assert_eq!(try_pull(&node, &reference).await?, image.config.digest);
    let sum = output(&node, &reference, "sha256sum < /big | cut -d' ' -f1").await?;
    let wanted = berth_tests::image::digest(noise(2 << 20).as_bytes());
    assert_eq!(format!("sha256:{}", sum.trim()), wanted);
    node.finish().await
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_pull() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::packed(&archive(&[Entry::file("big", &noise(8 << 20))]), Packing::Plain)?;
    let image = Image::new(vec![layer]).build();
    let reference = push(&node, "left", "1", &image)?;
    let early = tokio::time::timeout(Duration::from_millis(1), try_pull(&node, &reference)).await;
    assert!(early.is_err() || early.is_ok_and(|pulled| pulled.is_ok()));
    assert_eq!(try_pull(&node, &reference).await?, image.config.digest);
    node.finish().await
}

#[tokio::test]
async fn content_that_differs_from_its_digest_is_refused() -> Result<()> {
    let node = Node::start().await?;
    let registry = Registry::http()?;
    let relay = berth_tests::proxy::Proxy::new(node.host().listen()?, registry.address())?;
    node.write_hosts("lying.test", &plain_host(relay.address()))?;
    for what in ["layer", "config", "manifest"] {
        let own = file_layer("mark", &format!("lie-{what}"))?;
        let layer_digest = own.blob.digest.clone();
        let built = Image::new(vec![busybox_layer()?, own]).build();
        registry.push(what, "1", &built)?;
        let (digest, size) = match what {
            "layer" => (layer_digest.as_str(), blob_size(&built, &layer_digest)?),
            "config" => (built.config.digest.as_str(), built.config.bytes.len()),
            _ => (built.manifest.digest.as_str(), built.manifest.bytes.len()),
        };
        let mut bytes = built
            .blobs
            .iter()
            .chain([&built.manifest])
            .find(|b| b.digest == digest)
            .context("the blob")?
            .bytes
            .clone();
        // One bit, where every format still parses: the length stays.
        let at = size / 2;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        registry.corrupt(digest, &bytes)?;
        let name = format!("lying.test/{what}:1");
        let error = try_pull(&node, &name).await.unwrap_err();
        assert!(!error.message().is_empty(), "{what}");
        assert!(find(&node, &name).await?.is_none(), "{what}");
    }
    node.finish().await
}

fn blob_size(built: &Built, digest: &str) -> Result<usize> {
    let blob = built.blobs.iter().find(|blob| blob.digest == digest);
    Ok(blob.context("the blob")?.bytes.len())
}

#[tokio::test]
async fn a_layer_that_differs_from_its_diff_id_is_refused() -> Result<()> {
    let node = Node::start().await?;
    let mut layer = file_layer("mark", "diff-id")?;
    layer.diff_id = format!("sha256:{}", "1".repeat(64));
    let image = Image::new(vec![busybox_layer()?, layer]).build();
    let reference = push(&node, "wrong-diff-id", "1", &image)?;
    try_pull(&node, &reference).await.unwrap_err();
    assert!(find(&node, &reference).await?.is_none());
    node.finish().await
}

#[tokio::test]
async fn entries_that_climb_out_of_a_layer_stay_inside_or_fail() -> Result<()> {
    let node = Node::start().await?;
    let outside = node.dir().join("outside");
    std::fs::create_dir(&outside)?;
    let climb = format!("../../../../../../../../..{}/evil", outside.display());
    let through = Entry::new("leave", Kind::Symlink(outside.display().to_string()));
    for (name, entries) in [
        ("dotdot", vec![Entry::file(&climb, "x")]),
        ("symlink", vec![through, Entry::file("leave/evil", "x")]),
        ("hardlink", vec![Entry::new("passwd", Kind::Hardlink("../../../etc/shadow".into()))]),
    ] {
        let image = Image::new(vec![busybox_layer()?, Layer::new(&entries)?]).build();
        let reference = push(&node, &format!("climb-{name}"), "1", &image)?;
        drop(try_pull(&node, &reference).await);
        assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "{name}");
    }
    node.finish().await
}

#[tokio::test]
async fn equal_pulls_at_once_all_get_the_image() -> Result<()> {
    let node = Node::start().await?;
    let layer = Layer::packed(&archive(&[Entry::file("big", &noise(4 << 20))]), Packing::Plain)?;
    let image = Image::new(vec![layer]).build();
    let reference = push(&node, "at-once", "1", &image)?;
    let before = node.proxy().passed();
    let pulls = (0..5).map(|_| async { Ok(try_pull(&node, &reference).await?) });
    let ids = berth_tests::eventually::all(pulls).await?;
    assert!(ids.iter().all(|id| *id == image.config.digest), "{ids:?}");
    let passed = node.proxy().passed() - before;
    assert!(!node.is_berth() || passed < 6 << 20, "fetched once, not {passed} bytes");
    node.finish().await
}

#[tokio::test]
async fn disk_use_is_told() -> Result<()> {
    let node = Node::start().await?;
    node.pull("busybox:1").await?;
    eventually("a use of the disk", SOON, async || {
        let info = node.cri().image_fs_info(ImageFsInfoRequest {}).await?;
        let usage = info.image_filesystems.first().context("an image filesystem")?.clone();
        let mountpoint = usage.fs_id.context("an id")?.mountpoint;
        ensure!(std::path::Path::new(&mountpoint).exists(), "{mountpoint}");
        let bytes = usage.used_bytes.map_or(0, |bytes| bytes.value);
        let inodes = usage.inodes_used.map_or(0, |inodes| inodes.value);
        Ok((usage.timestamp > 0 && bytes > 1_000_000 && inodes > 50).then_some(()))
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn images_outlast_a_restart() -> Result<()> {
    let mut node = Node::start().await?;
    let reference = push(&node, "lasting", "1", &own_image("lasting")?.build())?;
    let id = try_pull(&node, &reference).await?;
    let before = find(&node, &reference).await?;
    if node.daemon_pid().is_some() {
        node.kill()?;
        node.launch().await?;
    }
    assert_eq!(find(&node, &reference).await?, before);
    let passed = node.proxy().passed();
    assert_eq!(try_pull(&node, &reference).await?, id);
    assert!(node.proxy().passed() - passed < 64 << 10, "nothing was fetched again");
    assert_eq!(output(&node, &reference, "cat /mark").await?, "lasting");
    assert!(reference.starts_with(REGISTRY) || !node.is_berth());
    node.finish().await
}
