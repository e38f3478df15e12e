//! Volumes, with the machine's mounts private (as this project's are) and shared.

use std::fs;
use std::path::{Path, PathBuf};

use berth_tests::prelude::*;

const MODES: [MountMode; 2] = [MountMode::Private, MountMode::Shared];

fn volume(node: &Node, name: &str) -> Result<PathBuf> {
    let path = node.dir().join(name);
    fs::create_dir(&path)?;
    Ok(path)
}

fn tmpfs(node: &Node, path: &Path) -> Result<()> {
    let path = path.display().to_string();
    node.host().run("mount", &["-t", "tmpfs", "tmpfs", &path]).map(drop)
}

fn unmount(node: &Node, path: &Path) -> Result<()> {
    node.host().run("umount", &[&path.display().to_string()]).map(drop)
}

fn touch(node: &Node, path: &Path) -> Result<()> {
    node.host().run("touch", &[&path.display().to_string()]).map(drop)
}

/// Makes a directory a shared mount, as kubelet's root is on an ordinary machine.
fn share(node: &Node, path: &Path) -> Result<()> {
    let path = path.display().to_string();
    node.host().run("mount", &["--bind", &path, &path])?;
    node.host().run("mount", &["--make-shared", &path]).map(drop)
}

async fn privileged_pod(node: &Node, name: &str) -> Result<Pod> {
    let mut config = node.pod_config(name)?;
    config.linux().security_context.get_or_insert_default().privileged = true;
    node.run_pod(config).await
}

#[tokio::test]
async fn directories_and_files_are_bound_writable_and_readonly() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("bind").await?;
    let dir = volume(&node, "volume")?;
    let file = node.dir().join("file");
    fs::write(&file, "text\n")?;
    let script = "cat /one/file; echo w > /dir/w; echo x >> /one/file 2>/dev/null && exit 1; \
                  echo y > /ro/y 2>/dev/null && exit 2; cat /ro/w /deep/er/w";
    let mut config = shell("main", script);
    config.mounts = vec![
        bind(&dir, "/dir"),
        Mount { readonly: true, ..bind(&dir, "/ro") },
        Mount { readonly: true, ..bind(&file, "/one/file") },
        bind(&dir, "/deep/er"),
    ];
    let mounts = config.mounts.clone();
    let id = node.run(&pod, config).await?;
    let status = node.exited(&id).await?;
    let log = node.log(&pod, "main.log")?;
    assert_eq!(status.exit_code, 0, "{log:?}");
    assert_eq!(stream_text(&log, "stdout"), "text\nw\nw\n");
    assert_eq!(fs::read_to_string(dir.join("w"))?, "w\n");
    for mount in mounts {
        let found = status.mounts.iter().find(|found| found.container_path == mount.container_path);
        let found = found.with_context(|| mount.container_path.clone())?;
        assert_eq!((&found.host_path, found.readonly), (&mount.host_path, mount.readonly));
    }
    node.finish().await
}

#[tokio::test]
async fn a_mount_may_replace_what_the_runtime_provides() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("hosts").await?;
    let hosts = node.dir().join("hosts");
    fs::write(&hosts, "1.2.3.4 mine\n")?;
    let mut config = shell("main", "cat /etc/hosts; echo '# more' >> /etc/hosts");
    config.mounts = vec![bind(&hosts, "/etc/hosts")];
    assert_eq!(node.output(&pod, config).await?, "1.2.3.4 mine\n");
    assert_eq!(fs::read_to_string(&hosts)?, "1.2.3.4 mine\n# more\n");
    node.finish().await
}

#[tokio::test]
async fn a_link_in_the_image_does_not_lead_a_mount_outside() -> Result<()> {
    use berth_tests::image::{Image, Layer};
    use berth_tests::tar::{Entry, Kind};
    let node = Node::start().await?;
    let pod = node.pod("links").await?;
    let outside = volume(&node, "outside")?;
    let link = Layer::new(&[
        Entry::new("absolute", Kind::Symlink(outside.display().to_string())),
        Entry::new("climbing", Kind::Symlink(format!("../../../../..{}", outside.display()))),
    ])?;
    let image = Image::new(vec![berth_tests::fixtures::busybox_layer()?, link]);
    node.registry().push("links", "1", &image.build())?;
    let data = volume(&node, "data")?;
    let script = "cat /absolute/v/file /climbing/w/file; echo in > /absolute/v/new";
    let mut config = container("main", "links:1", &["/bin/sh", "-c", script]);
    fs::write(data.join("file"), "inside\n")?;
    config.mounts = vec![bind(&data, "/absolute/v"), bind(&data, "/climbing/w")];
    let (status, log) = node.run_to_end(&pod, config).await?;
    assert_eq!(status.exit_code, 0, "{log:?}");
    assert_eq!(stream_text(&log, "stdout"), "inside\ninside\n");
    assert_eq!(fs::read_dir(&outside)?.count(), 0, "made on the host");
    assert!(data.join("new").exists());
    node.finish().await
}

#[tokio::test]
async fn a_volume_mounted_after_the_sandbox_began_is_seen() -> Result<()> {
    for mode in MODES {
        let node = Node::builder().mounts(mode).start().await?;
        let pod = node.pod("late").await?;
        let dir = volume(&node, "volume")?;
        tmpfs(&node, &dir)?;
        touch(&node, &dir.join("late"))?;
        let mut config = shell("main", "ls /vol; touch /vol/back");
        config.mounts = vec![bind(&dir, "/vol")];
        assert_eq!(node.output(&pod, config).await?, "late\n", "{mode:?}");
        let listing = node.host().run("ls", &[&dir.display().to_string()])?;
        assert_eq!(listing, "back\nlate\n", "{mode:?}");
        node.remove_pod(&pod.id).await?;
        unmount(&node, &dir)?;
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_sub_path_follows_the_host_over_restarts_of_its_container() -> Result<()> {
    for mode in MODES {
        let node = Node::builder().mounts(mode).start().await?;
        let pod = node.pod("subpath").await?;
        let dir = volume(&node, "volume")?;
        let sub = node.dir().join("subpath");
        fs::create_dir(&sub)?;
        for attempt in 0..3 {
            // As kubelet: the sub-path is a bind mount of its own, made anew for each restart.
            let target = dir.join(format!("target{attempt}"));
            fs::create_dir(&target)?;
            fs::write(target.join("file"), format!("{attempt}\n"))?;
            let (from, to) = (target.display().to_string(), sub.display().to_string());
            node.host().run("mount", &["--bind", &from, &to])?;
            let mut config = shell("main", "cat /vol/file");
            config.metadata.as_mut().context("metadata")?.attempt = attempt;
            config.log_path = format!("{attempt}.log");
            config.mounts = vec![bind(&sub, "/vol")];
            assert_eq!(node.output(&pod, config).await?, format!("{attempt}\n"), "{mode:?}");
            unmount(&node, &sub)?;
            // The directory itself is replaced as well.
            fs::remove_dir(&sub)?;
            fs::create_dir(&sub)?;
        }
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn host_to_container_shows_later_mounts_and_private_does_not() -> Result<()> {
    for mode in MODES {
        let node = Node::builder().mounts(mode).start().await?;
        let pod = node.pod("slave").await?;
        let dir = volume(&node, "volume")?;
        share(&node, &dir)?;
        let sub = dir.join("sub");
        fs::create_dir(&sub)?;
        let mut config = shell("main", "sleep 1000");
        config.mounts = vec![
            Mount {
                propagation: MountPropagation::PropagationHostToContainer.into(),
                ..bind(&dir, "/slave")
            },
            bind(&dir, "/private"),
        ];
        let id = node.run(&pod, config).await?;
        tmpfs(&node, &sub)?;
        touch(&node, &sub.join("later"))?;
        assert_eq!(node.sh(&id, "ls /slave/sub").await?, "later\n", "{mode:?}");
        assert_eq!(node.sh(&id, "ls /private/sub").await?, "", "{mode:?}");
        unmount(&node, &sub)?;
        assert_eq!(node.sh(&id, "ls /slave/sub").await?, "", "{mode:?}");
        node.remove_pod(&pod.id).await?;
        unmount(&node, &dir)?;
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn bidirectional_shows_mounts_both_ways() -> Result<()> {
    for mode in MODES {
        let node = Node::builder().mounts(mode).start().await?;
        let pod = privileged_pod(&node, "both").await?;
        let dir = volume(&node, "volume")?;
        share(&node, &dir)?;
        for name in ["in", "out"] {
            let path = dir.join(name).display().to_string();
            node.host().run("mkdir", &["-p", &path])?;
        }
        let mut config = shell("main", "sleep 1000");
        config.security().privileged = true;
        config.mounts = vec![Mount {
            propagation: MountPropagation::PropagationBidirectional.into(),
            ..bind(&dir, "/vol")
        }];
        let id = node.run(&pod, config).await?;
        node.sh(&id, "mount -t tmpfs tmpfs /vol/in && touch /vol/in/inner").await?;
        let seen = node.host().run("ls", &[&dir.join("in").display().to_string()])?;
        assert_eq!(seen, "inner\n", "{mode:?}");
        tmpfs(&node, &dir.join("out"))?;
        touch(&node, &dir.join("out/outer"))?;
        assert_eq!(node.sh(&id, "ls /vol/out").await?, "outer\n", "{mode:?}");
        unmount(&node, &dir.join("out"))?;
        node.remove_pod(&pod.id).await?;
        // What a container mounted on the host is the host's to unmount.
        unmount(&node, &dir.join("in"))?;
        unmount(&node, &dir)?;
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn bidirectional_needs_a_shared_source() -> Result<()> {
    let node = Node::builder().mounts(MountMode::Private).start().await?;
    let pod = privileged_pod(&node, "unshared").await?;
    node.pull("busybox:1").await?;
    let dir = volume(&node, "volume")?;
    let mut config = shell("main", "sleep 1000");
    config.security().privileged = true;
    config.mounts = vec![Mount {
        propagation: MountPropagation::PropagationBidirectional.into(),
        ..bind(&dir, "/vol")
    }];
    let request = node.create_request(&pod, config);
    let error = node.cri().create_container(request).await.unwrap_err();
    assert!(error.message().contains("shared"), "{error}");
    node.finish().await
}

#[tokio::test]
async fn nested_host_mounts_come_along() -> Result<()> {
    let node = Node::builder().mounts(MountMode::Private).start().await?;
    let pod = node.pod("nested").await?;
    let dir = volume(&node, "volume")?;
    fs::create_dir(dir.join("sub"))?;
    tmpfs(&node, &dir.join("sub"))?;
    touch(&node, &dir.join("sub/nested"))?;
    let mut config = shell("main", "ls /vol/sub");
    config.mounts = vec![bind(&dir, "/vol")];
    assert_eq!(node.output(&pod, config).await?, "nested\n");
    node.remove_pod(&pod.id).await?;
    unmount(&node, &dir.join("sub"))?;
    node.finish().await
}

#[tokio::test]
async fn an_absent_source_is_made_or_named() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("absent").await?;
    let (dir, file) = (node.dir().join("made/by/mount"), node.dir().join("file"));
    let mut config = shell("main", "touch /vol/seen; echo done");
    config.mounts = vec![bind(&dir, "/vol")];
    assert_eq!(node.output(&pod, config).await?, "done\n");
    assert!(dir.join("seen").exists());
    fs::write(&file, "")?;
    let mut config = shell("never", "true");
    config.mounts = vec![bind(&file.join("below"), "/vol")];
    let request = node.create_request(&pod, config);
    let error = node.cri().create_container(request).await.unwrap_err();
    assert!(error.message().contains("file/below"), "{error}");
    node.remove_pod(&pod.id).await?;
    fs::remove_dir_all(node.dir().join("made"))?;
    node.finish().await
}
