//! Requests as kubelet writes them, and a pod's life made of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use berth_proto::cri::*;
use berth_tests::cri::Cri;
use berth_tests::work::{self, LinuxParts, Pod, PodParts};

use crate::images::APP;

/// Whose network a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Host,
    Own,
}

/// Where pods are run.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The client of the runtime.
    pub(crate) cri: Cri,
    /// The image whose program is [`APP`].
    pub(crate) image: String,
    /// The pods' cgroup parent; empty leaves it to the runtime.
    pub(crate) cgroup_parent: String,
    /// Where logs go, a directory per pod.
    pub(crate) logs: PathBuf,
}

/// A pod with one container.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) pod: Pod,
    pub(crate) container: String,
}

/// How long each step of bringing a pod up took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Up {
    pub(crate) run: Duration,
    pub(crate) create: Duration,
    pub(crate) start: Duration,
}

/// How long each step of taking it down took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Down {
    pub(crate) stop: Duration,
    pub(crate) stop_pod: Duration,
    pub(crate) remove: Duration,
}

impl Node {
    /// Runs a pod with one container of these arguments.
    pub(crate) async fn up(&self, network: Network, args: &[&str]) -> Result<(Loaded, Up)> {
        let (pod, run) = timed(self.run(network)).await?;
        let config = self.container("main", args);
        let (container, create) = timed(self.create(&pod, config)).await?;
        let ((), start) = timed(self.start(&container)).await?;
        Ok((Loaded { pod, container }, Up { run, create, start }))
    }

    /// Stops and removes the pod, its container first, as kubelet does.
    pub(crate) async fn down(&self, loaded: &Loaded) -> Result<Down> {
        let Loaded { pod, container } = loaded;
        let ((), stop) = timed(self.stop(container, 10)).await?;
        let ((), stop_pod) = timed(self.stop_pod(&pod.id)).await?;
        let ((), remove_container) = timed(self.remove_container(container)).await?;
        let ((), remove_pod) = timed(self.remove_pod(&pod.id)).await?;
        Ok(Down { stop, stop_pod, remove: remove_container + remove_pod })
    }

    /// RunPodSandbox alone.
    pub(crate) async fn run(&self, network: Network) -> Result<Pod> {
        let config = self.pod(network);
        std::fs::create_dir_all(&config.log_directory)?;
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = Box::pin(self.cri.run_pod_sandbox(request)).await.context("RunPodSandbox")?;
        Ok(Pod { id: answer.pod_sandbox_id, config })
    }

    /// CreateContainer alone.
    pub(crate) async fn create(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer =
            Box::pin(self.cri.create_container(request)).await.context("CreateContainer")?;
        Ok(answer.container_id)
    }

    /// StartContainer alone.
    pub(crate) async fn start(&self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        self.cri.start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// StopContainer alone.
    pub(crate) async fn stop(&self, container: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        self.cri.stop_container(request).await.context("StopContainer")?;
        Ok(())
    }

    /// StopPodSandbox alone.
    pub(crate) async fn stop_pod(&self, pod: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.cri.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    /// RemoveContainer alone.
    pub(crate) async fn remove_container(&self, container: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.cri.remove_container(request).await.context("RemoveContainer")?;
        Ok(())
    }

    /// RemovePodSandbox alone.
    pub(crate) async fn remove_pod(&self, pod: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.cri.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    /// ExecSync of the program with these arguments.
    pub(crate) async fn exec(&self, container: &str, args: &[&str]) -> Result<ExecSyncResponse> {
        let cmd = std::iter::once(APP).chain(args.iter().copied()).map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        self.cri.exec_sync(request).await.context("ExecSync")
    }

    /// ContainerStatus, its status part.
    pub(crate) async fn status(&self, container: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.cri.container_status(request).await.context("ContainerStatus")?;
        answer.status.context("ContainerStatus without a status")
    }

    /// PullImage.
    pub(crate) async fn pull(&self, image: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(spec(image)), ..Default::default() };
        Ok(Box::pin(self.cri.pull_image(request)).await.context("PullImage")?.image_ref)
    }

    /// RemoveImage.
    pub(crate) async fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        self.cri.remove_image(request).await.context("RemoveImage")?;
        Ok(())
    }

    /// Stops and removes every pod there is: what is left when a measurement failed half-way.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let answer = self.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        for pod in answer.items {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }

    /// The log of a pod's container.
    pub(crate) fn log(&self, pod: &Pod, container: &str) -> PathBuf {
        Path::new(&pod.config.log_directory).join(format!("{container}.log"))
    }

    fn pod(&self, network: Network) -> PodSandboxConfig {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod{number}");
        let mut config = PodSandboxConfig {
            log_directory: self.logs.join(&name).to_string_lossy().into_owned(),
            metadata: Some(PodSandboxMetadata {
                uid: format!("{number:08x}-0000-4000-8000-{:012x}", std::process::id()),
                namespace: "perf".to_owned(),
                name: name.clone(),
                attempt: 0,
            }),
            ..Default::default()
        };
        config.linux().cgroup_parent.clone_from(&self.cgroup_parent);
        config.namespaces().pid = NamespaceMode::Container.into();
        match network {
            Network::Host => config.namespaces().network = NamespaceMode::Node.into(),
            Network::Own => config.hostname = name,
        }
        config
    }

    /// A container of the program with these arguments, and what kubelet always sends.
    pub(crate) fn container(&self, name: &str, args: &[&str]) -> ContainerConfig {
        let strings = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let mut config = work::container(name, &self.image, &[]);
        config.args = strings(args);
        config.security().masked_paths = strings(MASKED);
        config.security().readonly_paths = strings(READONLY);
        *config.resources() = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_shares: 102,
            oom_score_adj: 1000,
            ..Default::default()
        };
        config
    }
}

/// What kubelet hides of /proc and /sys unless told otherwise.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// The answer, and how long it took.
pub(crate) async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let value = work.await?;
    Ok((value, start.elapsed()))
}
