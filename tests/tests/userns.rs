//! Pods with user namespaces: ids inside and on the host, idmapped layers and volumes, what root
//! inside can't do, ends of all kinds, refusals.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::{Image, Layer};
use berth_tests::prelude::*;
use berth_tests::tar::Entry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

const LENGTH: u32 = 65_536;
const FIRST: u32 = 10 * LENGTH;
const SECOND: u32 = 11 * LENGTH;

fn mapping(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: LENGTH }]
}

fn user_namespace(host: u32) -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(host), gids: mapping(host) }
}

fn pod_config(node: &Node, name: &str, host: u32) -> Result<PodSandboxConfig> {
    let mut config = node.pod_config(name)?;
    config.namespaces().userns_options = Some(user_namespace(host));
    Ok(config)
}

/// As kubelet has it: the container says the same as its pod.
fn inside(mut config: ContainerConfig, host: u32) -> ContainerConfig {
    let options = config.security().namespace_options.get_or_insert_default();
    options.userns_options = Some(user_namespace(host));
    config
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((meta.uid(), meta.gid()))
}

fn volume(node: &Node, name: &str) -> Result<std::path::PathBuf> {
    let dir = node.dir().join(name);
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// A volume whose ids on disk are those inside.
fn idmapped(host: &Path, container: &str, first: u32) -> Mount {
    let ids = mapping(first);
    Mount { uid_mappings: ids.clone(), gid_mappings: ids, ..bind(host, container) }
}

async fn supported(node: &Node) -> Result<bool> {
    let status = node.cri().status(StatusRequest { verbose: false }).await?;
    let handlers = status.runtime_handlers.iter();
    let able = handlers.filter(|h| h.name.is_empty()).filter_map(|h| h.features);
    let able = able.into_iter().any(|features| features.user_namespaces);
    if !able {
        println!("skipped: this kernel has no id-mapped mounts to give (5.19, for tmpfs 6.3)");
    }
    Ok(able)
}

#[tokio::test]
async fn ids_inside_are_others_on_the_host() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let pod = node.run_pod(pod_config(&node, "ids", FIRST)?).await?;
    let options = node.pod_status(&pod.id).await?.linux.context("linux")?.namespaces;
    let options = options.context("namespaces")?.options.context("options")?;
    assert_eq!(options.userns_options, Some(user_namespace(FIRST)));

    let (plain, mapped) = (volume(&node, "plain")?, volume(&node, "mapped")?);
    fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let script = "set -e; tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; \
        stat -c '%n %u:%g' / /bin/busybox /tmp /home/app /etc/hosts /etc/resolv.conf /mapped /plain; \
        echo '# mine' >> /etc/hosts; tail -n 1 /etc/hosts; echo x > /new; chown 7:8 /new; \
        echo x > /mapped/new; chown 1000:1001 /mapped/new; echo x > /plain/new; hostname; \
        echo out > /dev/stdout; wc -l < /proc/mounts > /dev/null; exec sleep 1000";
    let mut config = inside(shell("main", script), FIRST);
    config.mounts = vec![bind(&plain, "/plain"), idmapped(&mapped, "/mapped", FIRST)];
    let id = node.run(&pod, config).await?;
    node.logged(&pod, "main.log", "out").await?;
    let text = stream_text(&node.log(&pod, "main.log")?, "stdout");
    let want = format!(
        " 0 {FIRST} {LENGTH}\n 0 {FIRST} {LENGTH}\n/ 0:0\n/bin/busybox 0:0\n/tmp 0:0\n\
         /home/app 1000:1001\n/etc/hosts 0:0\n/etc/resolv.conf 0:0\n/mapped 0:0\n\
         /plain 65534:65534\n# mine\nids\nout\n"
    );
    assert_eq!(text, want);
    assert_eq!(owner(&mapped.join("new"))?, (1000, 1001), "as inside");
    assert_eq!(owner(&plain.join("new"))?, (FIRST, FIRST), "the range's root");
    let upper = node.root().join("image/rw").join(&id).join("fs");
    assert_eq!(owner(&upper.join("new"))?, (7, 8), "layers keep the image's numbers");
    let store = fs::metadata(node.root().join("image"))?;
    assert_eq!(store.mode() & 0o7777, 0o700, "no program of a container's root is in reach");
    let log = node.log_file(&pod, "main.log");
    assert_eq!(owner(&log)?, (0, 0), "the log is the host's");

    // Execs and probes enter the same namespace, with their own user's groups.
    let found = node.sh(&id, "id -u; tr -s ' ' < /proc/self/uid_map; stat -c %u:%g /new").await?;
    assert_eq!(found, format!("0\n 0 {FIRST} {LENGTH}\n7:8\n"));
    let mut user =
        shell("user", "id -u; id -G; touch /home/app/mine && stat -c %u:%g /home/app/mine");
    user.security().run_as_user = Some(Int64Value { value: 1000 });
    user.security().supplemental_groups = vec![3000];
    // Says nothing of the user namespace, and is in it all the same.
    let text = node.output(&pod, user).await?;
    assert_eq!(text, "1000\n1001 2000 2001 3000\n1000:1001\n");
    node.finish().await
}

#[tokio::test]
async fn two_pods_of_different_ranges_share_one_image() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let script = "tr -s ' ' < /proc/self/uid_map; stat -c %u:%g /bin/busybox; \
        kill -0 $VICTIM 2>/dev/null && echo signalled; exec sleep 1000";
    let mut victim = String::from("1");
    for (name, host) in [("one", FIRST), ("two", SECOND)] {
        let mut config = pod_config(&node, name, host)?;
        // Both see the host's processes, and each other's.
        config.namespaces().pid = NamespaceMode::Node.into();
        let pod = node.run_pod(config).await?;
        let mut config = inside(shell("main", script), host);
        config.security().namespace_options.get_or_insert_default().pid =
            NamespaceMode::Node.into();
        config.envs = vec![KeyValue { key: "VICTIM".into(), value: victim.into_bytes() }];
        let id = node.run(&pod, config).await?;
        node.logged(&pod, "main.log", "0:0").await?;
        let text = stream_text(&node.log(&pod, "main.log")?, "stdout");
        assert_eq!(text, format!(" 0 {host} {LENGTH}\n0:0\n"));
        let pid = node.sh(&id, "readlink /proc/self").await?;
        victim = pid.trim().to_owned();
        // Mount points and nothing else: no byte of the image is copied.
        let upper = node.root().join("image/rw").join(&id).join("fs");
        assert_eq!(written(&upper)?, 0);
    }
    node.finish().await
}

/// Bytes in regular files below.
fn written(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = fs::symlink_metadata(entry.path())?;
        bytes += match meta.is_dir() {
            true => written(&entry.path())?,
            false => meta.len(),
        };
    }
    Ok(bytes)
}

#[tokio::test]
async fn fifty_mapped_layers_cost_no_mount_each() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let mut layers = vec![busybox_layer()?];
    for n in 1..50 {
        layers.push(Layer::new(&[Entry::file(&format!("data/{n}"), "x")])?);
    }
    node.registry().push("fifty", "1", &Image::new(layers).build())?;
    let pod = node.run_pod(pod_config(&node, "fifty", FIRST)?).await?;
    let before = mounts_of(&node)?;
    let script = ["/bin/sh", "-c", "ls /data | wc -l; wc -l < /proc/self/mountinfo"];
    let mut counts = Vec::new();
    for (name, image) in [("few", "busybox:1"), ("fifty", "fifty:1")] {
        let begun = Instant::now();
        let config = inside(berth_tests::work::container(name, image, &script), FIRST);
        let text = node.output(&pod, config).await?;
        println!("{name}: {:?} to its end", begun.elapsed());
        counts.push(text.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    assert_eq!(counts[1][0], "49");
    assert_eq!(counts[0][1], counts[1][1], "as many mounts with fifty layers as with one");
    assert_eq!(mounts_of(&node)?, before, "none of them the host's");
    node.finish().await
}

/// The host's mounts that concern this node.
fn mounts_of(node: &Node) -> Result<Vec<String>> {
    let dir = node.dir().display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect())
}

#[tokio::test]
async fn root_inside_rules_the_pod_and_nothing_else() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let mut config = pod_config(&node, "privileged", FIRST)?;
    config.linux().security_context.get_or_insert_default().privileged = true;
    config.linux().sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = node.run_pod(config).await?;
    let disk = "for d in /dev/vd* /dev/sd* /dev/nvme*; do test -b $d && head -c 1 $d 2>/dev/null \
        >/dev/null && echo $d; done; ";
    let script = format!(
        "cat /proc/sys/kernel/shm_rmid_forced; mkdir /m && mount -t tmpfs tmpfs /m && echo mounted; \
         ip link set lo down && ip link set lo up && echo network; hostname mine && hostname; \
         {disk} echo 1 2>/dev/null > /proc/sys/vm/drop_caches && echo host sysctl; \
         mknod /disk b 8 0 2>/dev/null && echo device; \
         echo c 2>/dev/null > /proc/sysrq-trigger && echo sysrq; \
         mount -t cgroup -o devices none /m 2>/dev/null && echo a * 2>/dev/null > /m/devices.allow \
            && echo cgroup; true"
    );
    let mut config = inside(shell("main", &script), FIRST);
    config.security().privileged = true;
    let text = node.output(&pod, config).await?;
    assert_eq!(text, "1\nmounted\nnetwork\nmine\n");
    node.finish().await
}

#[tokio::test]
async fn host_network_and_shared_pids_go_with_a_user_namespace() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let mut config = pod_config(&node, "hostnet", FIRST)?;
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = node.run_pod(config).await?;
    let text = node
        .output(
            &pod,
            inside(
                shell(
                    "main",
                    "tr -s ' ' < /proc/self/uid_map; ls /sys/class/net; \
            ip link set lo down 2>/dev/null && echo changed; true",
                ),
                FIRST,
            ),
        )
        .await?;
    assert_eq!(text, format!(" 0 {FIRST} {LENGTH}\n{}", host_links(&node)?));

    let mut config = pod_config(&node, "shared", FIRST)?;
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = node.run_pod(config).await?;
    let mut main = inside(shell("main", "echo up; exec sleep 1000"), FIRST);
    main.security().namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    let id = node.run(&pod, main).await?;
    node.logged(&pod, "main.log", "up").await?;
    let found = node.sh(&id, "cat /proc/1/comm; tr -s ' ' < /proc/self/uid_map").await?;
    assert_eq!(found, format!("berth-init\n 0 {FIRST} {LENGTH}\n"));
    node.stop_pod(&pod.id).await?;
    node.finish().await
}

/// The interfaces of the node's own network, a line each.
fn host_links(node: &Node) -> Result<String> {
    let names = "ip -o link | cut -d: -f2 | cut -d@ -f1 | tr -d ' ' | sort";
    node.host().run("sh", &["-c", names])
}

#[tokio::test]
async fn ends_of_all_kinds_leave_nothing() -> Result<()> {
    let mut node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let pod = node.run_pod(pod_config(&node, "lasting", FIRST)?).await?;
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 1; done";
    let id = node.run(&pod, inside(shell("main", script), FIRST)).await?;
    node.logged(&pod, "main.log", "up").await?;
    // The daemon dies; the pod stays, and a new daemon execs in it.
    node.kill()?;
    node.launch().await?;
    let found = node.sh(&id, "tr -s ' ' < /proc/self/uid_map").await?;
    assert_eq!(found, format!(" 0 {FIRST} {LENGTH}\n"));
    let text = node.output(&pod, inside(shell("again", "id -u"), FIRST)).await?;
    assert_eq!(text, "0\n");
    node.stop_container(&id, 10).await?;
    assert_eq!(node.exited(&id).await?.exit_code, 7);
    node.stop_pod(&pod.id).await?;
    node.remove_pod(&pod.id).await?;

    // The shim dies.
    let pod = node.run_pod(pod_config(&node, "orphaned", SECOND)?).await?;
    let id = node.run(&pod, inside(shell("main", "exec sleep 1000"), SECOND)).await?;
    let file = node.state().join("pods").join(&pod.id).join("shim.pid");
    let shim: i32 = fs::read_to_string(file)?.trim().parse()?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    assert_ne!(node.exited(&id).await?.exit_code, 0);
    node.stop_pod(&pod.id).await?;
    node.remove_all().await?;
    node.settled().await?;
    node.finish().await
}

fn refused(error: &anyhow::Error, word: &str) -> Result<()> {
    let status = error.downcast_ref::<Status>().context("a status")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{word}: {status}");
    assert!(status.message().contains(word), "{word:?} not in {:?}", status.message());
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    let both = |ids: Vec<IdMapping>| UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids,
    };
    let range = |container_id: u32, length: u32| IdMapping { host_id: FIRST, container_id, length };
    let mode = |mode: NamespaceMode| UserNamespace { mode: mode.into(), ..Default::default() };
    let unequal = UserNamespace { gids: mapping(SECOND), ..user_namespace(FIRST) };
    let cases = [
        (both(vec![range(0, 10), range(20, 10)]), "exactly one"),
        (both(Vec::new()), "exactly one"),
        (both(vec![range(1, 10)]), "id 0 must be mapped"),
        (both(vec![range(0, 0)]), "length"),
        (both(vec![range(0, u32::MAX)]), "length"),
        (unequal, "differs"),
        (mode(NamespaceMode::Container), "CONTAINER"),
        (mode(NamespaceMode::Target), "TARGET"),
        (UserNamespace { mode: NamespaceMode::Node.into(), ..user_namespace(FIRST) }, "NODE"),
    ];
    for (asked, word) in cases {
        let mut config = node.pod_config("refused")?;
        config.namespaces().userns_options = Some(asked);
        let Err(error) = node.run_pod(config).await else { bail!("{word}: the pod ran") };
        refused(&error, word)?;
    }
    node.finish().await
}

#[tokio::test]
async fn containers_that_do_not_fit_their_pod_are_refused() -> Result<()> {
    let node = Node::start().await?;
    if !supported(&node).await? {
        return node.finish().await;
    }
    // NODE is the host's, as nothing is.
    let mut config = node.pod_config("node")?;
    let host = UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    config.namespaces().userns_options = Some(host);
    let pod = node.run_pod(config).await?;
    let text = node.output(&pod, shell("main", "tr -s ' ' < /proc/self/uid_map")).await?;
    assert_eq!(text, " 0 0 4294967295\n");
    let error = node.create(&pod, inside(shell("other", "true"), FIRST)).await.err();
    refused(&error.context("created")?, "maps ids in another way")?;

    let pod = node.run_pod(pod_config(&node, "mapped", FIRST)?).await?;
    let volume = volume(&node, "volume")?;
    let with = |change: &dyn Fn(&mut ContainerConfig)| {
        let mut config = inside(shell("bad", "true"), FIRST);
        change(&mut config);
        config
    };
    let id = i64::from(LENGTH);
    let configs = [
        (with(&|c| c.security().run_as_user = Some(Int64Value { value: id })), "run_as_user"),
        (with(&|c| c.security().supplemental_groups = vec![id]), "supplemental_groups"),
        (inside(shell("bad", "true"), SECOND), "maps ids in another way"),
        (
            with(&|c| {
                let propagation = MountPropagation::PropagationBidirectional.into();
                c.mounts = vec![Mount { propagation, ..bind(&volume, "/v") }];
            }),
            "propagation",
        ),
        (
            with(&|c| {
                let uid_mappings = mapping(FIRST);
                c.mounts = vec![Mount { uid_mappings, ..bind(&volume, "/v") }];
            }),
            "gidMappings",
        ),
    ];
    for (config, word) in configs {
        let error = node.create(&pod, config).await.err();
        refused(&error.with_context(|| format!("{word}: created"))?, word)?;
    }
    // A file system that can't map ids is named with its mount.
    let config = with(&|c| c.mounts = vec![idmapped(Path::new("/proc/sys"), "/v", FIRST)]);
    let error = node.create(&pod, config).await.err().context("created")?;
    let text = error.to_string();
    assert!(
        text.contains("mount /v (bind from /proc/sys)") && text.contains("can't map ids"),
        "{text}"
    );
    assert!(node.containers().await?.iter().all(|c| c.pod_sandbox_id != pod.id));
    node.finish().await
}
