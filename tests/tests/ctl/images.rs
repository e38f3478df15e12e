//! Pulling, listing, naming, removing.

use berth_tests::image::Image;
use berth_tests::prelude::*;
use serde_json::Value;

use crate::ctl::{file_layer, names, nothing_left, ok, own_image, push, run};

#[tokio::test]
async fn an_image_is_pulled_with_progress_in_lines_and_in_json() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("pulled")?.build();
    let reference = push(&node, "pulled:1", &built)?;
    // Held back, so that there is time to see what is under way.
    node.proxy().hold_after(20_000);
    let mut pull = tokio::task::JoinSet::new();
    for output in ["table", "json"] {
        let mut command = crate::ctl::command(&node, &["--output", output]);
        command.args(["image", "pull", &reference]);
        pull.spawn(async move { (output, command.output().await) });
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        while node.proxy().passed() < 20_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Progress is looked at ten times a second.
        tokio::time::sleep(Duration::from_millis(400)).await;
    })
    .await?;
    node.proxy().mend();
    while let Some(ended) = pull.join_next().await {
        let (format, output) = ended?;
        let output = output?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        assert!(output.status.success(), "{out}{err}");
        if format == "table" {
            assert_eq!(out, format!("{}\n", built.config.digest));
            assert!(err.contains(&format!("{reference}: receiving")), "{err}");
            assert!(err.contains(": receiving from "), "{err}");
            assert!(!err.contains('\x1b'), "{err:?}");
            continue;
        }
        let lines: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let (done, progress) = lines.split_last().context("some lines")?;
        assert_eq!(done["event"], "done");
        assert_eq!(done["id"], built.config.digest.as_str());
        let layers = progress.iter().filter_map(|line| line["layers"].as_array()).flatten();
        let receiving = layers.clone().find(|layer| layer["state"] == "receiving");
        let receiving = receiving.with_context(|| out.clone())?;
        let size = built.blobs.iter().find(|blob| receiving["digest"] == blob.digest.as_str());
        assert_eq!(receiving["size"], size.context("the blob")?.bytes.len());
        assert!(layers.clone().any(|l| l["transferred"].as_u64() > Some(0)), "{out}");
    }
    node.finish().await
}

#[tokio::test]
async fn images_are_listed_inspected_tagged_and_removed() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("listed")?.build();
    let reference = push(&node, "listed:1", &built)?;
    ok(&node, &["-q", "image", "pull", &reference]).await?;
    let id = &built.config.digest;
    let short = id.get(7..19).context("a long id")?;
    let list = ok(&node, &["image", "list"]).await?.text();
    let row = list.lines().find(|line| line.starts_with(&reference)).context("its row")?;
    assert!(row.contains(short) && row.ends_with("kB") | row.ends_with("MB"), "{list}");
    assert_eq!(ok(&node, &["image", "list", "--ids"]).await?.text(), format!("{id}\n"));

    let tagged = ok(&node, &["image", "tag", short, "other/name"]).await?.text();
    assert_eq!(tagged, "docker.io/other/name:latest\n");
    assert_eq!(names(&node).await?, ["docker.io/other/name:latest", &reference]);

    let found = ok(&node, &["image", "inspect", "other/name", id]).await?.text();
    let found: Value = serde_json::from_str(&found)?;
    let [one, two] = found.as_array().context("a list")?.as_slice() else { bail!("{found}") };
    assert_eq!(one, two);
    assert_eq!(one["manifestDigest"], built.manifest.digest.as_str());
    assert_eq!(one["config"]["config"]["Cmd"], serde_json::json!(["sh"]));
    let layers = one["layers"].as_array().context("its layers")?;
    for (layer, blob) in layers.iter().zip(&built.blobs) {
        assert_eq!((&layer["digest"], &layer["images"]), (&blob.digest.as_str().into(), &1.into()));
        let path = layer["path"].as_str().context("its directory")?;
        assert!(std::path::Path::new(path).join("fs").is_dir(), "{path}");
    }
    let removed = ok(&node, &["image", "remove", "other/name"]).await?.text();
    assert!(removed.contains(&format!("removed {reference}\n")), "{removed}");
    assert_eq!(ok(&node, &["image", "list"]).await?.text(), "IMAGE  ID  SIZE\n");
    nothing_left(&node).await?;
    node.finish().await
}

#[tokio::test]
async fn errors_are_clear_and_have_their_codes() -> Result<()> {
    let node = Node::start().await?;
    let missing = node.image("missing:1").image;
    for (args, code, words) in [
        (vec!["image", "pull", "UPPER"], 1, "\"UPPER\""),
        (vec!["image", "pull", &missing], 3, "missing"),
        (vec!["image", "pull", "gone.test/x:1"], 1, "gone.test"),
        (vec!["image", "inspect", "nothing:1"], 3, "no image \"nothing:1\""),
        (vec!["image", "remove", "nothing:1"], 3, "no image \"nothing:1\""),
        (vec!["image", "tag", "nothing:1", "x:1"], 3, "no image \"nothing:1\""),
        (vec!["image", "tag", "nothing:1", "a b"], 1, "tag: image reference \"a b\""),
        (vec!["image", "tag", "nothing:1"], 2, "NAME"),
        (vec!["--address", "berth.sock", "image", "list"], 2, "\"berth.sock\""),
        (
            vec!["--config", "/nonexistent", "--address", "/nonexistent/x", "image", "list"],
            4,
            "/nonexistent/x",
        ),
        (vec!["image", "load", "/nonexistent/file"], 1, "/nonexistent/file: No such file"),
        (vec!["image", "load", "/"], 1, "/: Is a directory"),
    ] {
        let ran = run(&node, &args).await?;
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(ran.err.contains(words), "{args:?}: {words} is not in {}", ran.err);
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
    }
    assert!(names(&node).await?.is_empty());
    nothing_left(&node).await?;
    node.finish().await
}

#[tokio::test]
async fn an_interrupted_pull_ends_at_the_daemon_too() -> Result<()> {
    let node = Node::start().await?;
    let text = "text that packs badly enough to be held back ".repeat(20_000);
    let built =
        Image::new(vec![file_layer("big", &text)?, file_layer("x", "interrupted")?]).build();
    let reference = push(&node, "interrupted:1", &built)?;
    node.proxy().hold_after(1);
    let mut pull = crate::ctl::command(&node, &["image", "pull", &reference]).spawn()?;
    true_within("the pull has begun", Duration::from_secs(10), async || {
        Ok(node.proxy().connections() > 0)
    })
    .await?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pull.id().context("its pid")?)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    assert_eq!(pull.wait().await?.code(), Some(130));
    nothing_left(&node).await?;
    node.proxy().mend();
    assert!(names(&node).await?.is_empty());
    node.finish().await
}
