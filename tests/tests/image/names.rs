//! Images go by many names.

use berth_tests::node::REGISTRY;
use berth_tests::prelude::*;
use serde_json::json;

use crate::{find, list, output, own_image, push, remove, spec, try_pull};

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
async fn images_are_pinned_by_their_names() -> Result<()> {
    let config = "[image]\npinned = [\"registry.test/pinned/*\", \"registry.test/one:1\"]\n";
    let node = Node::builder().config(config).start().await?;
    for (repository, tag, pinned) in
        [("pinned/a", "1", true), ("one", "1", true), ("one", "2", false), ("other", "1", false)]
    {
        let image = own_image(&format!("{repository}:{tag}"))?.build();
        let reference = push(&node, repository, tag, &image)?;
        let id = try_pull(&node, &reference).await?;
        let found = find(&node, &reference).await?.context("the image")?;
        assert_eq!(found.pinned, pinned, "{reference}");
        let listed = list(&node).await?.into_iter().find(|image| image.id == id);
        assert_eq!(listed.context("a row")?.pinned, pinned, "{reference}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_filter_lists_one_image_by_any_of_its_names() -> Result<()> {
    let node = Node::start().await?;
    let one = push(&node, "one", "1", &own_image("one")?.build())?;
    let other = push(&node, "other", "1", &own_image("other")?.build())?;
    let id = try_pull(&node, &one).await?;
    try_pull(&node, &other).await?;
    let short = id.trim_start_matches("sha256:").get(..12).context("a long id")?;
    for (name, ids) in [
        (one.as_str(), vec![id.clone()]),
        (id.as_str(), vec![id.clone()]),
        (short, vec![id.clone()]),
        ("registry.test/none:1", vec![]),
    ] {
        let filter = Some(ImageFilter { image: Some(spec(name)) });
        let answer = node.cri().list_images(ListImagesRequest { filter }).await?;
        let found: Vec<String> = answer.images.into_iter().map(|image| image.id).collect();
        assert_eq!(found, ids, "{name}");
    }
    assert_eq!(list(&node).await?.len(), 2);
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
