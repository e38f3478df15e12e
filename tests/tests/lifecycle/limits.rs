//! Limits of the request in the container's cgroup, and the cgroups' coming and going.

use std::fs;
use std::path::PathBuf;

use berth_tests::footprint::hierarchies;
use berth_tests::prelude::*;

/// The file of a container's cgroup: version 1 in its controller's hierarchy, version 2.
fn read(parent: &str, id: &str, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let all = hierarchies();
    let (root, file) = match all.as_slice() {
        [root] => (root.clone(), v2),
        _ => (PathBuf::from("/sys/fs/cgroup").join(controller), v1),
    };
    let path = root.join(parent.trim_start_matches('/')).join(id).join(file);
    Ok(fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?.trim().to_owned())
}

fn is_v2() -> bool {
    hierarchies().len() == 1
}

#[tokio::test]
async fn limits_stand_in_the_cgroup() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("limits").await?;
    let mut config = shell("main", "sleep 1000");
    *config.resources() = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        oom_score_adj: 500,
        ..Default::default()
    };
    let id = node.run(&pod, config).await?;
    let parent = &pod.config.linux.as_ref().context("a Linux part")?.cgroup_parent;
    let file = |controller: &str, v1: &str, v2: &str| read(parent, &id, controller, v1, v2);
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max")?, "67108864");
    assert_eq!(file("cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    assert_eq!(file("cpuset", "cpuset.mems", "cpuset.mems")?, "0");
    if is_v2() {
        assert_eq!(file("", "", "cpu.max")?, "25000 50000");
    } else {
        assert_eq!(file("cpu", "cpu.cfs_quota_us", "")?, "25000");
        assert_eq!(file("cpu", "cpu.cfs_period_us", "")?, "50000");
        assert_eq!(file("cpu", "cpu.shares", "")?, "512");
    }
    assert_eq!(node.sh(&id, "cat /proc/1/oom_score_adj").await?, "500\n");
    if node.is_berth() {
        let resources = node.container(&id).await?.resources.context("resources")?;
        let linux = resources.linux.context("Linux resources")?;
        assert_eq!((linux.memory_limit_in_bytes, linux.cpu_quota), (64 << 20, 25_000));
    }
    node.finish().await
}

#[tokio::test]
async fn the_process_and_its_execs_are_in_the_containers_cgroup() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("inside").await?;
    let id = node.run(&pod, shell("main", "sleep 4714")).await?;
    let parent = &pod.config.linux.as_ref().context("a Linux part")?.cgroup_parent;
    for controller in ["memory", "cpu", "pids", "freezer"] {
        let procs = read(parent, &id, controller, "cgroup.procs", "cgroup.procs")?;
        assert_eq!(procs.lines().count(), 1, "{controller}: {procs}");
        let pid = procs.lines().next().context("a process")?;
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        assert!(command.contains("4714"), "{command}");
    }
    node.finish().await
}

#[tokio::test]
async fn parents_that_kubelet_made_stay_and_others_go() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("made")?;
    let parent = format!("{}/kubepods/made", node.instance());
    config.linux().cgroup_parent = format!("/{parent}");
    let made: Vec<PathBuf> = hierarchies().iter().map(|root| root.join(&parent)).collect();
    for path in &made {
        fs::create_dir_all(path)?;
        inherit_cpuset(path)?;
    }
    let pod = node.run_pod(config).await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    assert!(made.iter().any(|path| path.join(&id).exists()));
    node.remove_pod(&pod.id).await?;
    for path in &made {
        assert!(path.exists(), "{} is kubelet's", path.display());
        let left = fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(left, 0, "{}", path.display());
        fs::remove_dir(path)?;
        fs::remove_dir(path.parent().context("kubepods")?)?;
        // Another pod of the instance may have put its own below.
        let _ = fs::remove_dir(path.ancestors().nth(2).context("the instance")?);
    }
    node.finish().await
}

/// What kubelet does in version 1: an empty cpuset takes no process.
fn inherit_cpuset(path: &std::path::Path) -> Result<()> {
    if is_v2() || !path.starts_with("/sys/fs/cgroup/cpuset") {
        return Ok(());
    }
    let levels: Vec<_> = path.ancestors().take(3).collect();
    for level in levels.iter().rev() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(level.parent().context("a parent")?.join(file))?;
            fs::write(level.join(file), value)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_lower_oom_score_than_allowed_is_held_at_the_nearest() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("score").await?;
    let mut config = shell("main", "cat /proc/self/oom_score_adj");
    config.resources().oom_score_adj = -900;
    let score: i32 = node.output(&pod, config).await?.trim().parse()?;
    assert!((-900..=0).contains(&score), "{score}");
    node.finish().await
}

#[tokio::test]
async fn fork_bombs_hit_the_limit_of_processes() -> Result<()> {
    let node = Node::start().await?;
    let mut config = node.pod_config("pids")?;
    let parent = format!("{}/limited", node.instance());
    config.linux().cgroup_parent = format!("/{parent}");
    // kubelet limits processes on the pod's cgroup.
    for root in hierarchies() {
        let path = root.join(&parent);
        fs::create_dir_all(&path)?;
        hand_down(&path)?;
        if path.join("pids.max").exists() {
            fs::write(path.join("pids.max"), "20")?;
        }
    }
    let pod = node.run_pod(config).await?;
    let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let (status, log) = node.run_to_end(&pod, shell("main", script)).await?;
    assert_ne!(status.exit_code, 0, "{log:?}");
    node.remove_pod(&pod.id).await?;
    for root in hierarchies() {
        fs::remove_dir(root.join(&parent))?;
        let _ = fs::remove_dir(root.join(node.instance()));
    }
    node.finish().await
}

/// As kubelet prepares a pod's cgroup: controllers handed down on v2, cpuset filled in on v1.
fn hand_down(path: &std::path::Path) -> Result<()> {
    let node = path.parent().context("a parent")?;
    if is_v2() {
        for level in [node.parent().context("a root")?, node] {
            fs::write(level.join("cgroup.subtree_control"), "+pids")?;
        }
        return Ok(());
    }
    if !path.starts_with("/sys/fs/cgroup/cpuset") {
        return Ok(());
    }
    for level in [node, path] {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(level.parent().context("a parent")?.join(file))?;
            fs::write(level.join(file), value)?;
        }
    }
    Ok(())
}
