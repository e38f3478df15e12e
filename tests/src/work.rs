//! Requests as kubelet writes them, and the steps that tests repeat.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::*;

use crate::eventually::eventually;
use crate::node::Node;

/// How long a container may take to end or a state to be reached.
pub const SOON: Duration = Duration::from_secs(20);

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// What it was run with.
    pub config: PodSandboxConfig,
}

/// A container configuration with a log, made by `/bin/sh -c SCRIPT` in busybox.
#[must_use]
pub fn shell(name: &str, script: &str) -> ContainerConfig {
    container(name, crate::fixtures::BUSYBOX, &["/bin/sh", "-c", script])
}

/// A container configuration with a log at `NAME.log`. The image is completed by
/// [`Node::create`].
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// Changes to a container's Linux part, in place.
pub trait LinuxParts {
    /// The resources.
    fn resources(&mut self) -> &mut LinuxContainerResources;
    /// The security context.
    fn security(&mut self) -> &mut LinuxContainerSecurityContext;
}

impl LinuxParts for ContainerConfig {
    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
}

/// Changes to a pod's Linux part, in place.
pub trait PodParts {
    /// The namespace options.
    fn namespaces(&mut self) -> &mut NamespaceOption;
    /// The Linux part.
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig;
}

impl PodParts for PodSandboxConfig {
    fn namespaces(&mut self) -> &mut NamespaceOption {
        let security = self.linux().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default()
    }

    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.linux.get_or_insert_default()
    }
}

/// A bind mount.
#[must_use]
pub fn bind(host: &std::path::Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

/// One line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line goes on in the next one of its stream.
    pub partial: bool,
    /// The text without its line feed.
    pub text: String,
}

impl LogLine {
    /// Reads `TIME STREAM TAG TEXT`; the time must be RFC 3339 with nanoseconds.
    pub fn parse(line: &str) -> Result<Self> {
        let mut parts = line.splitn(4, ' ');
        let mut next = || parts.next().with_context(|| format!("log line {line:?} ends early"));
        let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
        let shape: String =
            time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let zoned = ["Z", "+00:00", "-00:00"].iter().any(|zone| {
            shape
                .strip_prefix("0000-00-00T00:00:00.")
                .and_then(|rest| rest.strip_suffix(zone))
                .is_some_and(|digits| {
                    !digits.is_empty() && digits.len() <= 9 && digits.chars().all(|c| c == '0')
                })
        });
        ensure!(zoned, "log time {time:?} is not RFC 3339 with a fraction");
        ensure!(stream == "stdout" || stream == "stderr", "log stream {stream:?}");
        let partial = match tag {
            "P" => true,
            "F" => false,
            other => bail!("log tag {other:?}"),
        };
        Ok(Self { stream: stream.to_owned(), partial, text: text.to_owned() })
    }
}

/// The text of one stream, partial lines joined.
#[must_use]
pub fn stream_text(lines: &[LogLine], stream: &str) -> String {
    let of_stream = lines.iter().filter(|line| line.stream == stream);
    of_stream.map(|line| format!("{}{}", line.text, if line.partial { "" } else { "\n" })).collect()
}

impl Node {
    /// A pod configuration in the namespace `tests`; names of pods are unique by node.
    pub fn pod_config(&self, name: &str) -> Result<PodSandboxConfig> {
        let log_directory = self.dir().join("logs").join(name);
        fs::create_dir_all(&log_directory)?;
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.instance()),
                namespace: "tests".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.display().to_string(),
            labels: HashMap::from([("app".to_owned(), name.to_owned())]),
            ..Default::default()
        };
        config.linux().cgroup_parent = format!("/{}/pod-{name}", self.instance());
        config.namespaces().pid = NamespaceMode::Container.into();
        Ok(config)
    }

    /// Runs a pod with a network of its own.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        self.run_pod(self.pod_config(name)?).await
    }

    /// Runs a pod of this configuration.
    pub async fn run_pod(&self, config: PodSandboxConfig) -> Result<Pod> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let response = self.cri().run_pod_sandbox(request).await?;
        Ok(Pod { id: response.pod_sandbox_id, config })
    }

    /// Pulls an image by its name in the registry; answers its id.
    pub async fn pull(&self, name: &str) -> Result<String> {
        let image = Some(self.image(name));
        let request = PullImageRequest { image, ..Default::default() };
        Ok(self.cri().pull_image(request).await?.image_ref)
    }

    /// The request that creates this container in this pod.
    #[must_use]
    pub fn create_request(&self, pod: &Pod, mut config: ContainerConfig) -> CreateContainerRequest {
        if let Some(image) = &mut config.image
            && !image.image.starts_with("sha256:")
            && !image.image.contains('/')
        {
            *image = self.image(&image.image);
        }
        CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        }
    }

    /// Creates a container; its image is pulled before if it is absent.
    pub async fn create(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let request = self.create_request(pod, config);
        let image = request.config.as_ref().and_then(|config| config.image.clone());
        let status = ImageStatusRequest { image: image.clone(), ..Default::default() };
        if self.cri().image_status(status).await?.image.is_none() {
            let pull = PullImageRequest { image, ..Default::default() };
            self.cri().pull_image(pull).await?;
        }
        Ok(self.cri().create_container(request).await?.container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.cri().start_container(request).await?;
        Ok(())
    }

    /// Creates and starts a container.
    pub async fn run(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let id = self.create(pod, config).await?;
        self.start_container(&id).await?;
        Ok(id)
    }

    /// Runs a container to its end; answers its status and its log.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        config: ContainerConfig,
    ) -> Result<(ContainerStatus, Vec<LogLine>)> {
        let log_path = config.log_path.clone();
        let id = self.run(pod, config).await?;
        let status = self.exited(&id).await?;
        Ok((status, self.log(pod, &log_path)?))
    }

    /// What a shell script prints in a new container that must succeed.
    pub async fn output(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let (status, log) = self.run_to_end(pod, config).await?;
        ensure!(status.exit_code == 0, "exit {}: {log:?}", status.exit_code);
        Ok(stream_text(&log, "stdout"))
    }

    /// The container's status.
    pub async fn container(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.cri().container_status(request).await?.status.context("a container status")
    }

    /// The pod's status.
    pub async fn pod_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.cri().pod_sandbox_status(request).await?.status.context("a pod status")
    }

    /// Waits for the container's end.
    pub async fn exited(&self, id: &str) -> Result<ContainerStatus> {
        eventually("the container's end", SOON, async || {
            let status = self.container(id).await?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status))
        })
        .await
    }

    /// The log of one of the pod's containers so far.
    pub fn log(&self, pod: &Pod, log_path: &str) -> Result<Vec<LogLine>> {
        let path = self.log_file(pod, log_path);
        let text = fs::read(&path).with_context(|| format!("log {}", path.display()))?;
        String::from_utf8_lossy(&text).lines().map(LogLine::parse).collect()
    }

    /// Where a log lies.
    #[must_use]
    pub fn log_file(&self, pod: &Pod, log_path: &str) -> PathBuf {
        PathBuf::from(&pod.config.log_directory).join(log_path)
    }

    /// Waits until the log holds this text in one of its lines.
    pub async fn logged(&self, pod: &Pod, log_path: &str, text: &str) -> Result<()> {
        eventually(&format!("{text:?} in the log"), SOON, async || {
            let log = self.log(pod, log_path)?;
            Ok(log.iter().any(|line| line.text.contains(text)).then_some(()))
        })
        .await
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 20 };
        Ok(self.cri().exec_sync(request).await?)
    }

    /// The stdout of a shell script in a running container, which must succeed.
    pub async fn sh(&self, id: &str, script: &str) -> Result<String> {
        let answer = self.exec(id, &["/bin/sh", "-c", script]).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(answer.exit_code == 0, "{script}: {}: {}", answer.exit_code, text(&answer.stderr));
        Ok(text(&answer.stdout))
    }

    /// Stops a container.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        self.cri().stop_container(request).await?;
        Ok(())
    }

    /// Removes a container.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.cri().remove_container(request).await?;
        Ok(())
    }

    /// Stops a pod.
    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri().stop_pod_sandbox(request).await?;
        Ok(())
    }

    /// Stops and removes a pod.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        self.stop_pod(id).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri().remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// The ids of all pods whose uid is of this node.
    pub async fn pods(&self) -> Result<Vec<PodSandbox>> {
        let list = self.cri().list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        let own = |pod: &PodSandbox| {
            pod.metadata.as_ref().is_some_and(|meta| meta.uid.starts_with(self.instance()))
        };
        Ok(list.items.into_iter().filter(own).collect())
    }

    /// All containers in the node's pods.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let pods = self.pods().await?;
        let list = self.cri().list_containers(ListContainersRequest::default()).await?;
        let own = |container: &Container| pods.iter().any(|pod| pod.id == container.pod_sandbox_id);
        Ok(list.containers.into_iter().filter(own).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_read_strictly() {
        let line = LogLine::parse("2026-11-23T08:40:00.123456789Z stdout P a b  c").unwrap();
        assert_eq!(
            (line.stream.as_str(), line.partial, line.text.as_str()),
            ("stdout", true, "a b  c")
        );
        assert_eq!(LogLine::parse("2026-11-23T08:40:00.1+00:00 stderr F ").unwrap().text, "");
        for bad in [
            "",
            "2026-11-23T08:40:00Z stdout F no fraction",
            "2026-11-23T08:40:00.1234567890Z stdout F too fine",
            "2026-11-23 08:40:00.1Z stdout F x",
            "2026-11-23T08:40:00.1Z stdin F x",
            "2026-11-23T08:40:00.1Z stdout X x",
            "2026-11-23T08:40:00.1Z stdout F",
        ] {
            assert!(LogLine::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn partial_lines_are_joined() {
        let line = |stream: &str, partial, text: &str| LogLine {
            stream: stream.into(),
            partial,
            text: text.into(),
        };
        let lines =
            [line("stdout", true, "a"), line("stderr", false, "x"), line("stdout", false, "b")];
        assert_eq!(stream_text(&lines, "stdout"), "ab\n");
        assert_eq!(stream_text(&lines, "stderr"), "x\n");
    }
}
