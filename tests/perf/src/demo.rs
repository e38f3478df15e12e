//! One pod through a daemon of its own, from start to finish, each step timed and checked.
//! No registry, no plugin and no other program is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::*;
use berth_tests::eventually::{eventually, true_within};
use berth_tests::footprint;
use berth_tests::work::{LinuxParts, LogLine, Pod};
use clap::Args;

use crate::images;
use crate::instance::{Instance, Kind, Settings};
use crate::pods::{Network, Node};

/// What the demo runs.
#[derive(Args)]
pub(crate) struct Options {
    /// Where berthd, its shim and the test program lie.
    #[arg(long, default_value = "target/dist")]
    dist: PathBuf,
}

/// The image's name in the store.
const IMAGE: &str = "localhost/berth-demo:1";

/// What the second container may have at most, and what it takes, in MiB.
const LIMIT: i64 = 32;
const WANTED: &str = "64";

/// How long a state may take to come about.
const SOON: Duration = Duration::from_secs(20);

/// Shows everything, then checks that nothing is left.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let name = format!("berth-demo-{}", std::process::id());
    let start = Instant::now();
    let preload = Preload::new(&name, &options.dist)?;
    let mut demo = Demo::start(options, &name, &preload).await?;
    let outcome = demo.show().await;
    if outcome.is_err() {
        eprintln!("berthd's log:\n{}", demo.instance.log_tail());
    }
    outcome?;
    demo.end().await?;
    drop(preload);

    let left = footprint::cgroups(&name);
    ensure!(left.is_empty(), "left behind: {left:?}");
    let dir = std::env::temp_dir().join(&name);
    ensure!(!dir.exists(), "left behind: {}", dir.display());
    println!("\nNothing is left: no process, mount, cgroup or directory.");
    println!("The whole took {} ms.", start.elapsed().as_millis());
    Ok(())
}

/// Does one step, and says what came of it and how long it took.
async fn step<T>(title: &str, work: impl Future<Output = Result<(T, String)>>) -> Result<T> {
    let start = Instant::now();
    let (value, told) = Box::pin(work).await.with_context(|| title.to_owned())?;
    println!("{:>8.1} ms  {title:<28} {told}", start.elapsed().as_secs_f64() * 1e3);
    Ok(value)
}

/// A directory of image archives; goes with its value.
struct Preload {
    dir: PathBuf,
}

impl Preload {
    fn new(name: &str, dist: &Path) -> Result<Self> {
        let preload = Self { dir: std::env::temp_dir().join(format!("{name}-images")) };
        fs::create_dir_all(&preload.dir)?;
        let image = images::app(&dist.join("berth-app"))?;
        fs::write(preload.dir.join("demo.tar"), images::oci_archive(&image, IMAGE))?;
        Ok(preload)
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        // The demo fails by its own check if this does.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A daemon and the pod on it.
struct Demo {
    instance: Instance,
    node: Node,
}

impl Demo {
    async fn start(options: &Options, name: &str, preload: &Preload) -> Result<Self> {
        let start = async {
            let kind = Kind::berth(&options.dist)?;
            let preload = Some(preload.dir.clone());
            let settings = Settings { preload, apart: true, ..Settings::default() };
            let instance = Instance::start(kind, &std::env::temp_dir(), name, &settings).await?;
            let told = format!("root, state and socket in {}", instance.dir().display());
            Ok((instance, told))
        };
        let instance = step("berthd starts", start).await?;
        let node = Node {
            cri: instance.cri().clone(),
            image: IMAGE.to_owned(),
            cgroup_parent: instance.slice().path("pods"),
            logs: instance.dir().join("logs"),
        };
        Ok(Self { instance, node })
    }

    async fn show(&mut self) -> Result<()> {
        self.greet().await?;
        let pod = step("RunPodSandbox", async {
            let pod = self.node.run(Network::Own).await?;
            let told = format!("pod {}", short(&pod.id));
            Ok((pod, told))
        })
        .await?;
        self.addresses(&pod).await?;
        let clock = self.clock(&pod).await?;
        self.exec(&clock).await?;
        let hungry = self.hungry(&pod).await?;
        self.restart(&pod, &clock, &hungry).await?;
        self.take_down(&pod, &[&clock, &hungry]).await
    }

    async fn greet(&self) -> Result<()> {
        step("Version, ImageStatus", async {
            let version = self.node.cri.version(VersionRequest::default()).await?;
            let image = ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
            let request = ImageStatusRequest { image: Some(image), verbose: false };
            let image = self.node.cri.image_status(request).await?.image;
            let image = image.context("the preloaded image is not in the store")?;
            let id = image.id.trim_start_matches("sha256:");
            let runtime = format!("{} {}", version.runtime_name, version.runtime_version);
            Ok(((), format!("{runtime}; {IMAGE} is {}, {} bytes", short(id), image.size)))
        })
        .await
    }

    /// No CNI configuration is there: the daemon's own network gives them.
    async fn addresses(&self, pod: &Pod) -> Result<()> {
        step("its addresses", async {
            let id = pod.id.clone();
            let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false };
            let status = self.node.cri.pod_sandbox_status(request).await?.status;
            let network = status.and_then(|status| status.network).context("a network")?;
            ensure!(!network.ip.is_empty(), "the pod has no address");
            let more = network.additional_ips.into_iter().map(|ip| ip.ip);
            let all: Vec<String> = [network.ip].into_iter().chain(more).collect();
            Ok(((), format!("{}, from the built-in network", all.join(", "))))
        })
        .await
    }

    /// The first container counts, a line every few milliseconds.
    async fn clock(&self, pod: &Pod) -> Result<String> {
        let config = self.node.container("clock", &["tick", "5"]);
        let id = self.create_and_start(pod, config).await?;
        step("its log", async {
            let log = eventually("three lines", SOON, async || {
                let log = self.log(pod)?;
                Ok((log.len() >= 3).then_some(log))
            })
            .await?;
            let texts: Vec<&str> = log.iter().take(3).map(|line| line.text.as_str()).collect();
            Ok(((), format!("{:?} ...", texts.join(", "))))
        })
        .await?;
        Ok(id)
    }

    async fn create_and_start(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let told = format!("{:?}", config.args.join(" "));
        let id = step("CreateContainer", async {
            let id = self.node.create(pod, config).await?;
            let told = format!("{} to run {told}", short(&id));
            Ok((id, told))
        })
        .await?;
        step("StartContainer", async { Ok((self.node.start(&id).await?, String::new())) }).await?;
        Ok(id)
    }

    async fn exec(&self, container: &str) -> Result<()> {
        step("ExecSync id", async {
            let answer = self.node.exec(container, &["id"]).await?;
            ensure!(answer.exit_code == 0, "{answer:?}");
            Ok(((), String::from_utf8_lossy(&answer.stdout).trim().to_owned()))
        })
        .await?;
        step("ExecSync exit 3", async {
            let code = self.node.exec(container, &["exit", "3"]).await?.exit_code;
            ensure!(code == 3, "exit code {code}");
            Ok(((), format!("exit code {code}")))
        })
        .await
    }

    /// The second container takes more memory than it may have.
    async fn hungry(&self, pod: &Pod) -> Result<String> {
        let mut config = self.node.container("hungry", &["alloc", WANTED]);
        config.resources().memory_limit_in_bytes = LIMIT << 20;
        config.resources().memory_swap_limit_in_bytes = LIMIT << 20;
        let id = self.create_and_start(pod, config).await?;
        step("its end", async {
            let status = self.ended(&id).await?;
            ensure!(status.reason == "OOMKilled", "reason {:?}, not OOMKilled", status.reason);
            ensure!(status.exit_code == 137, "exit code {}, not 137", status.exit_code);
            let told = format!("{}, exit code {}", status.reason, status.exit_code);
            Ok(((), format!("{told}: {WANTED} MiB do not fit the limit of {LIMIT}")))
        })
        .await?;
        Ok(id)
    }

    async fn ended(&self, container: &str) -> Result<ContainerStatus> {
        eventually("the container ends", SOON, async || {
            let status = self.node.status(container).await?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    /// kill -9 of the daemon, a while without one, a new one: the pod notices nothing.
    async fn restart(&mut self, pod: &Pod, clock: &str, hungry: &str) -> Result<()> {
        let before = self.node.status(clock).await?;
        self.instance.kill();
        step("kill -9 of berthd", async {
            let lines = self.log(pod)?.len();
            true_within("the log grows", SOON, async || Ok(self.log(pod)?.len() >= lines + 20))
                .await?;
            Ok(((), "20 more lines in the log meanwhile".to_owned()))
        })
        .await?;
        step("berthd starts again", async {
            self.instance.restart().await?;
            Ok(((), String::new()))
        })
        .await?;
        self.node.cri = self.instance.cri().clone();
        step("ContainerStatus", async {
            let after = self.node.status(clock).await?;
            ensure!(after.state() == ContainerState::ContainerRunning, "{after:?}");
            ensure!(after.started_at == before.started_at, "{after:?}");
            let ended = self.node.status(hungry).await?;
            ensure!(ended.reason == "OOMKilled" && ended.exit_code == 137, "{ended:?}");
            Ok(((), "both as before, the first still running".to_owned()))
        })
        .await?;
        let log = self.log(pod)?;
        let gap = log.iter().enumerate().find(|(index, line)| line.text != format!("tick {index}"));
        ensure!(gap.is_none(), "a line of the log is missing: {gap:?}");
        self.exec(clock).await
    }

    async fn take_down(&self, pod: &Pod, containers: &[&str]) -> Result<()> {
        let cri = &self.node.cri;
        for container in containers {
            step("StopContainer", async {
                self.node.stop(container, 0).await?;
                let code = self.ended(container).await?.exit_code;
                Ok(((), format!("{}: exit code {code}", short(container))))
            })
            .await?;
        }
        step("StopPodSandbox", async { Ok((self.node.stop_pod(&pod.id).await?, String::new())) })
            .await?;
        for container in containers {
            let remove = self.node.remove_container(container);
            step("RemoveContainer", async { Ok((remove.await?, String::new())) }).await?;
        }
        let remove = self.node.remove_pod(&pod.id);
        step("RemovePodSandbox", async { Ok((remove.await?, String::new())) }).await?;
        step("lists", async {
            let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
            let left = cri.list_containers(ListContainersRequest::default()).await?.containers;
            ensure!(pods.is_empty() && left.is_empty(), "{pods:?} {left:?}");
            Ok(((), "no pod, no container".to_owned()))
        })
        .await?;
        step("RemoveImage", async { Ok((self.node.remove_image(IMAGE).await?, String::new())) })
            .await
    }

    /// The end of the daemon, which must have nothing left to it.
    async fn end(self) -> Result<()> {
        fs::remove_dir_all(&self.node.logs)?;
        step("everything is gone", async {
            let left = self.instance.left_behind().await?;
            ensure!(left.is_empty(), "left behind: {left:#?}");
            Ok(((), "mounts, cgroups, processes and directories of the pod".to_owned()))
        })
        .await?;
        step("berthd ends", async { Ok((self.instance.stop().await?, String::new())) }).await
    }

    /// The first container's log.
    fn log(&self, pod: &Pod) -> Result<Vec<LogLine>> {
        let text = fs::read_to_string(self.node.log(pod, "clock"))?;
        // The last line may be half there.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(LogLine::parse).collect()
    }
}

/// The start of an id, as people read it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
