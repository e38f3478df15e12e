//! What layers hold, as containers see it.

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Image, Layer};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, Kind};
use serde_json::json;

use crate::{output, push, spec};

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
