//! The daemon dies, a shim dies, the machine starts anew: pods and what is known of them stay.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime};

use berth_tests::node::binaries;
use berth_tests::prelude::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn kill_pid(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// The process id of a pod's shim.
fn shim_pid(node: &Node, pod: &str) -> Result<i32> {
    let path = node.state().join("pods").join(pod).join("shim.pid");
    Ok(fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?.trim().parse()?)
}

/// Counts lines until the volume has the file `end`, then ends with 5.
const COUNT: &str =
    "i=0; while [ ! -e /vol/end ]; do echo $i; i=$((i+1)); usleep 2000; done; exit 5";

fn counter(name: &str, volume: &Path) -> ContainerConfig {
    let mut config = shell(name, COUNT);
    config.mounts = vec![bind(volume, "/vol")];
    config
}

fn volume(node: &Node, name: &str) -> Result<std::path::PathBuf> {
    let dir = node.dir().join(name);
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// The lines of a counter without a gap; answers how many.
fn counted(log: &[LogLine]) -> usize {
    for (index, line) in log.iter().enumerate() {
        assert_eq!(line.text, index.to_string(), "lines are lost or doubled");
    }
    log.len()
}

async fn survives(how: impl AsyncFn(&mut Node) -> Result<()>) -> Result<()> {
    let mut node = Node::start().await?;
    let pod = node.pod("lasting").await?;
    let (stays, ends) = (volume(&node, "stays")?, volume(&node, "ends")?);
    let running = node.run(&pod, counter("running", &stays)).await?;
    let ending = node.run(&pod, counter("ending", &ends)).await?;
    let waiting = node.create(&pod, shell("waiting", "exit 6")).await?;
    let (ended, _) = node.run_to_end(&pod, shell("ended", "exit 3")).await?;
    let before = node.pod_status(&pod.id).await?;
    let was_running = node.container(&running).await?;

    how(&mut node).await?;
    let lines = counted(&node.log(&pod, "running.log")?);
    fs::write(ends.join("end"), "")?;
    true_within("log lines without a daemon", SOON, async || {
        Ok(counted(&node.log(&pod, "running.log")?) > lines + 20)
    })
    .await?;
    // Its end without a daemon shows as an exit record of the shim.
    let record = node.state().join("pods").join(&pod.id).join(format!("exits/{ending}.json"));
    true_within("an exit record", SOON, async || Ok(record.exists())).await?;
    node.launch().await?;

    assert_eq!(node.pod_status(&pod.id).await?, before);
    assert_eq!(node.container(&running).await?, was_running);
    let status = node.container(&ending).await?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5));
    assert!(status.finished_at >= status.started_at && status.started_at > 0);
    assert_eq!(node.container(&ended.id).await?, ended);
    node.start_container(&waiting).await?;
    assert_eq!(node.exited(&waiting).await?.exit_code, 6);
    assert_eq!(node.sh(&running, "echo still").await?, "still\n");
    fs::write(stays.join("end"), "")?;
    assert_eq!(node.exited(&running).await?.exit_code, 5);
    counted(&node.log(&pod, "running.log")?);
    counted(&node.log(&pod, "ending.log")?);
    let (status, _) = node.run_to_end(&pod, shell("new", "exit 8")).await?;
    assert_eq!(status.exit_code, 8);
    node.remove_pod(&pod.id).await?;
    node.settled().await?;
    node.finish().await
}

#[tokio::test]
async fn pods_outlast_a_killed_daemon() -> Result<()> {
    survives(async |node| node.kill()).await
}

#[tokio::test]
async fn pods_outlast_a_daemon_that_is_told_to_end() -> Result<()> {
    survives(async |node| {
        let status = node.terminate().await?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_log_is_reopened_and_an_exec_runs_after_a_restart() -> Result<()> {
    let mut node = Node::start().await?;
    let pod = node.pod("after").await?;
    let dir = volume(&node, "volume")?;
    let id = node.run(&pod, counter("main", &dir)).await?;
    node.logged(&pod, "main.log", "5").await?;
    node.kill()?;
    let path = node.log_file(&pod, "main.log");
    let old = path.with_extension("old");
    fs::rename(&path, &old)?;
    node.launch().await?;
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.cri().reopen_container_log(request).await?;
    fs::write(dir.join("end"), "")?;
    assert_eq!(node.exited(&id).await?.exit_code, 5);
    let old = fs::read_to_string(old)?;
    let mut lines: Vec<LogLine> = old.lines().map(LogLine::parse).collect::<Result<_>>()?;
    lines.extend(node.log(&pod, "main.log")?);
    counted(&lines);
    node.finish().await
}

#[tokio::test]
async fn a_stop_under_way_is_taken_up_again() -> Result<()> {
    let mut node = Node::start().await?;
    let pod = node.pod("stopping").await?;
    let script = "trap '' TERM; echo ready; while :; do sleep 1000; done";
    let id = node.run(&pod, shell("main", script)).await?;
    node.logged(&pod, "main.log", "ready").await?;
    let cri = node.cri().clone();
    let request = StopContainerRequest { container_id: id.clone(), timeout: 40 };
    let stop = tokio::spawn(async move { cri.stop_container(request).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.kill()?;
    assert!(stop.await?.is_err());
    node.launch().await?;
    node.stop_container(&id, 1).await?;
    assert_eq!(node.container(&id).await?.exit_code, 137);
    node.finish().await
}

#[tokio::test]
async fn a_killed_shim_ends_its_pod_and_nothing_leaks() -> Result<()> {
    for daemon_down in [false, true] {
        let mut node = Node::start().await?;
        let pod = node.pod("orphaned").await?;
        let other = node.pod("other").await?;
        let deaf = "trap '' TERM HUP; setsid sleep 4715 & while :; do sleep 1000; done";
        let id = node.run(&pod, shell("main", deaf)).await?;
        let safe = node.run(&other, shell("main", "sleep 1000")).await?;
        let (ended, _) = node.run_to_end(&pod, shell("ended", "exit 3")).await?;
        let ip = node.pod_status(&pod.id).await?.network.context("a network")?.ip;
        let shim = shim_pid(&node, &pod.id)?;
        if daemon_down {
            node.kill()?;
        }
        kill_pid(shim)?;
        if daemon_down {
            node.launch().await?;
        }
        let status = node.exited(&id).await?;
        assert_ne!(status.exit_code, 0);
        assert!(!status.reason.is_empty() && status.finished_at > 0, "{status:?}");
        assert_eq!(node.container(&ended.id).await?.exit_code, 3);
        true_within("the pod not ready", SOON, async || {
            Ok(node.pod_status(&pod.id).await?.state() == PodSandboxState::SandboxNotready)
        })
        .await?;
        let address = node.dir().join("ipam/berth-test").join(ip);
        true_within("the address given back", SOON, async || Ok(!address.exists())).await?;
        true_within("its processes gone", SOON, async || {
            let of_pod = format!("pod-{}", "orphaned");
            Ok(!node
                .footprint()?
                .iter()
                .any(|line| line.contains(&of_pod) && line.contains("process")))
        })
        .await?;
        assert_eq!(node.container(&safe).await?.state(), ContainerState::ContainerRunning);
        node.stop_pod(&pod.id).await?;
        node.remove_pod(&pod.id).await?;
        node.remove_all().await?;
        node.settled().await?;
        node.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_shim_may_die_at_any_instant_of_its_work() -> Result<()> {
    let node = Node::start().await?;
    node.pull("busybox:1").await?;
    let mut random = Random::new();
    for round in 0..15 {
        let delay = Duration::from_micros(random.below(60_000));
        let config = node.pod_config(&format!("round{round}"))?;
        let life = async {
            let pod = node.run_pod(config.clone()).await?;
            let id = node.run(&pod, shell("main", "sleep 1000")).await?;
            node.sh(&id, "echo x").await?;
            node.stop_pod(&pod.id).await
        };
        let murder = async {
            tokio::time::sleep(delay).await;
            for entry in fs::read_dir(node.state().join("pods")).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Ok(pid) = shim_pid(&node, &name) {
                    // It may have ended by itself.
                    let _ = kill_pid(pid);
                }
            }
        };
        // Whether it succeeds depends on the instant; what counts is what stays.
        let (_outcome, ()) = tokio::join!(life, murder);
        node.remove_all().await.with_context(|| format!("round {round}, {delay:?}"))?;
        node.settled().await.with_context(|| format!("round {round}, {delay:?}"))?;
    }
    node.finish().await
}

/// The boot id that the node sees, replaced in its own mount namespace.
fn boot(node: &Node, number: u32) -> Result<()> {
    let file = node.dir().join(format!("boot{number}"));
    fs::write(&file, format!("00000000-0000-4000-8000-{number:012}\n"))?;
    let file = file.display().to_string();
    node.host().run("mount", &["--bind", &file, "/proc/sys/kernel/random/boot_id"]).map(drop)
}

#[tokio::test]
async fn after_a_reboot_pods_are_not_ready_and_can_be_removed() -> Result<()> {
    for state_is_kept in [true, false] {
        let mut node = Node::builder().mounts(MountMode::Private).start().await?;
        let pod = node.pod("rebooted").await?;
        let id = node.run(&pod, shell("main", "sleep 1000")).await?;
        let (ended, _) = node.run_to_end(&pod, shell("ended", "exit 3")).await?;
        let created = node.create(&pod, shell("created", "true")).await?;
        let ip = node.pod_status(&pod.id).await?.network.context("a network")?.ip;
        node.power_cut()?;
        if !state_is_kept {
            fs::remove_dir_all(node.state())?;
        }
        boot(&node, 1)?;
        node.launch().await?;

        let status = node.pod_status(&pod.id).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        for id in [&id, &created] {
            let status = node.container(id).await?;
            assert_eq!(status.state(), ContainerState::ContainerExited, "{status:?}");
            assert_ne!(status.exit_code, 0);
            assert!(!status.reason.is_empty());
        }
        assert_eq!(node.container(&ended.id).await?.exit_code, 3);
        // kubelet makes a new attempt, then removes the old one.
        let mut again = pod.config.clone();
        again.metadata.as_mut().context("metadata")?.attempt = 1;
        let again = node.run_pod(again).await?;
        let (status, _) = node.run_to_end(&again, shell("new", "exit 4")).await?;
        assert_eq!(status.exit_code, 4);
        node.remove_pod(&pod.id).await?;
        let address = node.dir().join("ipam/berth-test").join(ip);
        assert!(!address.exists(), "the old address is given back");
        node.remove_pod(&again.id).await?;
        unboot(&node)?;
        node.settled().await?;
        node.finish().await?;
    }
    Ok(())
}

fn unboot(node: &Node) -> Result<()> {
    node.host().run("umount", &["/proc/sys/kernel/random/boot_id"]).map(drop)
}

#[tokio::test]
async fn a_torn_record_does_not_stop_the_start() -> Result<()> {
    let mut node = Node::start().await?;
    let pod = node.pod("torn").await?;
    node.run(&pod, shell("main", "sleep 1000")).await?;
    let whole = node.pod("whole").await?;
    node.kill()?;
    let mut torn = 0;
    for path in files(&node.root()) {
        let text = path.display().to_string();
        if !text.contains("/image/") && text.contains(&pod.id) {
            let bytes = fs::read(&path)?;
            fs::write(&path, bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            torn += 1;
        }
    }
    assert!(torn > 0, "no record of the pod in {:?}", files(&node.root()));
    node.launch().await?;
    assert_eq!(node.pod_status(&whole.id).await?.state(), PodSandboxState::SandboxReady);
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    node.cri().remove_pod_sandbox(request).await?;
    node.remove_all().await?;
    // Kept for people to look at.
    let aside = node.root().join("torn");
    assert!(!files(&aside).is_empty());
    fs::remove_dir_all(aside)?;
    node.settled().await?;
    node.finish().await
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[tokio::test]
async fn a_second_daemon_in_the_same_place_is_refused() -> Result<()> {
    let node = Node::start().await?;
    let berthd = binaries(false).join("berthd");
    let mut second = node.host().command(&berthd.to_string_lossy());
    second.arg("--config").arg(node.dir().join("config.toml")).arg("serve");
    let output = tokio::task::spawn_blocking(move || second.output()).await??;
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
    node.pod("unharmed").await?;
    node.finish().await
}

/// Numbers that can be had again: `BERTH_TEST_SEED`.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("BERTH_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = given.unwrap_or_else(|| now.map_or(1, |now| now.as_secs()));
        eprintln!("BERTH_TEST_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What the daemon has said and must stand by.
#[derive(Debug, Default)]
struct Said {
    pods: HashMap<String, Pod>,
    /// Containers, and the exit code of those that were seen ended.
    containers: HashMap<String, Option<i32>>,
}

impl Said {
    /// Everything said is still so.
    async fn holds(&self, node: &Node) -> Result<()> {
        let listed = node.pods().await?;
        for id in self.pods.keys() {
            let found = listed.iter().find(|pod| pod.id == *id);
            let found = found.with_context(|| format!("pod {id} is gone"))?;
            ensure!(found.state() == PodSandboxState::SandboxReady, "pod {id} is not ready");
        }
        for (id, code) in &self.containers {
            let status = node.container(id).await?;
            match code {
                None => ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}"),
                Some(code) => ensure!(
                    status.state() == ContainerState::ContainerExited && status.exit_code == *code,
                    "{status:?}"
                ),
            }
        }
        let known = node.containers().await?;
        let unknown = known.iter().find(|c| c.state() == ContainerState::ContainerUnknown);
        ensure!(unknown.is_none(), "{unknown:?}");
        Ok(())
    }

    /// One life of a pod; each answer is kept as said, each wish to end taken back before.
    async fn live(&mut self, node: &Node, round: u64) -> Result<()> {
        let mut config = node.pod_config(&format!("pod{}", round % 3))?;
        config.hostname = String::new();
        config.namespaces().network = NamespaceMode::Node.into();
        config.metadata.as_mut().context("metadata")?.attempt = u32::try_from(round)?;
        let pod = node.run_pod(config).await?;
        self.pods.insert(pod.id.clone(), pod.clone());
        let id = node.run(&pod, shell("lasts", "sleep 1000")).await?;
        self.containers.insert(id.clone(), None);
        let code = i32::try_from(round % 200)?;
        let (status, _) = node.run_to_end(&pod, shell("ends", &format!("exit {code}"))).await?;
        self.containers.insert(status.id.clone(), Some(code));
        ensure!(status.exit_code == code, "{status:?}");
        node.exec(&id, &["true"]).await?;
        self.containers.remove(&id);
        node.stop_container(&id, 0).await?;
        self.containers.remove(&status.id);
        self.pods.remove(&pod.id);
        node.remove_pod(&pod.id).await
    }

    /// kubelet's clean-up of what no answer came for, now and then.
    async fn tidy(&mut self, node: &Node) -> Result<()> {
        self.pods.clear();
        self.containers.clear();
        node.remove_all().await
    }
}

#[tokio::test]
async fn two_hundred_kills_at_random_instants() -> Result<()> {
    const KILLS: u64 = 200;
    const LIMIT: Duration = Duration::from_secs(180);
    let mut random = Random::new();
    let begin = Instant::now();
    let mut node = Node::start().await?;
    node.pull("busybox:1").await?;
    let mut said = Said::default();
    for round in 0..KILLS {
        let delay = Duration::from_micros(random.below(150_000));
        let end = Instant::now() + delay;
        let mut lives = round * 10;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            lives += 1;
            match tokio::time::timeout(left, said.live(&node, lives)).await {
                Ok(outcome) => outcome.with_context(|| format!("round {round}, {delay:?}"))?,
                Err(_) => break,
            }
        }
        node.kill()?;
        node.launch().await.with_context(|| format!("round {round}, {delay:?}"))?;
        said.holds(&node).await.with_context(|| format!("round {round}, {delay:?}"))?;
        if round % 8 == 7 {
            said.tidy(&node).await.with_context(|| format!("round {round}, {delay:?}"))?;
        }
        assert!(begin.elapsed() < LIMIT, "{round} kills took {:?}", begin.elapsed());
    }
    said.tidy(&node).await?;
    node.settled().await?;
    node.finish().await
}
