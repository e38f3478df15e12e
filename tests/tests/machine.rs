//! One run on the machine itself, in none of the harness's namespaces: nothing of it is left
//! anywhere. Alone in its program, so that cargo runs nothing beside it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;

use berth_tests::footprint::{hierarchies, pids};
use berth_tests::prelude::*;

/// Everything that the kernel lists, by kind.
fn everything() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        found.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or(line)));
    }
    for root in hierarchies() {
        cgroups(&root, &mut found);
    }
    for pid in pids() {
        if !ours(pid) {
            continue;
        }
        found.insert(format!("process {pid} {}", comm(pid)));
        for namespace in ["net", "mnt", "ipc", "uts", "pid", "cgroup", "user"] {
            if let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/{namespace}")) {
                found.insert(format!("namespace {}", link.display()));
            }
        }
    }
    for line in fs::read_to_string("/proc/self/net/dev")?.lines().skip(2) {
        found.insert(format!("link {}", line.split(':').next().unwrap_or(line).trim()));
    }
    Ok(found)
}

fn cgroups(dir: &std::path::Path, found: &mut BTreeSet<String>) {
    found.insert(format!("cgroup {}", dir.display()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroups(&entry.path(), found);
        }
    }
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Processes that a runtime starts: the machine's others come and go as they like.
fn ours(pid: u32) -> bool {
    let name = comm(pid);
    ["berthd", "containerd-shim", "berth-app", "busybox", "sleep", "bridge", "host-local"]
        .iter()
        .any(|ours| name.starts_with(ours))
}

#[tokio::test]
async fn a_whole_life_leaves_the_machine_as_it_was() -> Result<()> {
    // The registry and what else the harness needs come first.
    let registry = berth_tests::fixtures::registry()?;
    let before = everything()?;
    let mut node = Node::builder().mounts(MountMode::Machine).start().await?;
    for round in 0..2 {
        let pod = node.pod(&format!("cni{round}")).await?;
        let mut host = node.pod_config(&format!("host{round}"))?;
        host.hostname = String::new();
        host.namespaces().network = NamespaceMode::Node.into();
        let host = node.run_pod(host).await?;
        for pod in [&pod, &host] {
            let id = node.run(pod, shell("main", "setsid sleep 1000 & sleep 1000")).await?;
            node.sh(&id, "echo hello").await?;
            node.run_to_end(pod, shell("short", "exit 3")).await?;
        }
        if round == 0 {
            node.kill()?;
            node.launch().await?;
        }
    }
    node.finish().await?;
    eventually("the machine as it was", SOON, async || {
        let now = everything()?;
        // The bridge belongs to the CNI plugin, which keeps it.
        let kept = |line: &&String| line.contains(berth_tests::node::BRIDGE);
        let left: Vec<&String> = now.difference(&before).filter(|line| !kept(line)).collect();
        if left.is_empty() { Ok(Some(())) } else { bail!("left: {left:#?}") }
    })
    .await?;
    drop(registry);
    Ok(())
}
