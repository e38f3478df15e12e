//! One node: a runtime of its own with its own directories, cgroups, network and registry.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::{ImageSpec, VersionRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::Cri;
use crate::eventually::eventually;
use crate::fixtures;
use crate::footprint::{self, Footprint, Scope};
use crate::host::{self, Host};
use crate::proxy::Proxy;
use crate::registry::Registry;

pub use crate::host::MountMode;

/// The bridge of every node; each has a network namespace of its own.
pub const BRIDGE: &str = "berth-test0";

/// The registry host in image names; `hosts.toml` says where it is.
pub const REGISTRY: &str = "registry.test";

/// How long a runtime may take to answer after its start, and to end.
const READY: Duration = Duration::from_secs(20);
/// How long undoing may take after the answer.
const SETTLED: Duration = Duration::from_secs(10);

/// What runs on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Berth, from these binaries.
    Berth(PathBuf),
    /// Debian's containerd (`BERTH_TEST_PEER=containerd`): proves the suite.
    Containerd,
    /// Whatever listens there (`BERTH_TEST_ENDPOINT`).
    External(PathBuf),
}

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct Builder {
    mounts: MountMode,
    failpoints: Option<String>,
    cni: Option<String>,
    builtin: bool,
    config: String,
    root: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl Builder {
    /// In such a mount namespace.
    #[must_use]
    pub fn mounts(self, mounts: MountMode) -> Self {
        Self { mounts, ..self }
    }

    /// The build with failpoints, armed with these (`name=error;...`) from the start on.
    #[must_use]
    pub fn failpoints(self, failpoints: &str) -> Self {
        Self { failpoints: Some(failpoints.to_owned()), ..self }
    }

    /// Without a CNI configuration.
    #[must_use]
    pub fn without_network(self) -> Self {
        Self { cni: None, ..self }
    }

    /// With the daemon's own network instead of CNI's plugins.
    #[must_use]
    pub fn builtin_network(self) -> Self {
        Self { cni: None, builtin: true, ..self }
    }

    /// With these CNI plugins after the bridge (JSON objects, comma separated).
    #[must_use]
    pub fn cni_plugins(self, plugins: &str) -> Self {
        Self { cni: Some(plugins.to_owned()), ..self }
    }

    /// With its `root` there.
    #[must_use]
    pub fn root(self, root: &Path) -> Self {
        Self { root: Some(root.to_owned()), ..self }
    }

    /// With its `state` there.
    #[must_use]
    pub fn state(self, state: &Path) -> Self {
        Self { state: Some(state.to_owned()), ..self }
    }

    /// With more lines in its configuration.
    #[must_use]
    pub fn config(self, lines: &str) -> Self {
        Self { config: lines.to_owned(), ..self }
    }

    /// Starts the node and waits until it answers.
    pub async fn start(self) -> Result<Node> {
        let mut node = Node::prepare(self)?;
        node.launch().await?;
        node.baseline = node.footprint()?;
        Ok(node)
    }
}

/// A node that runs.
#[derive(Debug)]
pub struct Node {
    instance: String,
    dir: PathBuf,
    kind: Kind,
    setup: Builder,
    daemon: Option<Child>,
    cri: Cri,
    baseline: Footprint,
    finished: bool,
    proxy: Proxy,
    registry: Arc<Registry>,
    host: Host,
}

impl Node {
    /// How a node is by default: on the machine's mounts, with a bridge network.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            mounts: MountMode::Host,
            failpoints: None,
            cni: Some(String::new()),
            builtin: false,
            config: String::new(),
            root: None,
            state: None,
        }
    }

    /// A node as it is by default.
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    fn prepare(setup: Builder) -> Result<Self> {
        let kind = kind(setup.failpoints.is_some())?;
        let dir = fresh_dir("node")?;
        let instance =
            dir.file_name().context("a directory's name")?.to_string_lossy().into_owned();
        let host = Host::new(setup.mounts)?;
        let registry = fixtures::registry()?;
        let proxy = Proxy::new(host.listen()?, registry.address())?;
        let socket = match &kind {
            Kind::External(socket) => socket.clone(),
            _ => dir.join("cri.sock"),
        };
        let cri = Cri::new(&socket)?;
        let node = Self {
            instance,
            dir,
            kind,
            setup,
            daemon: None,
            cri,
            baseline: Footprint::new(),
            finished: false,
            proxy,
            registry,
            host,
        };
        for dir in ["cni", "certs.d", "logs"] {
            fs::create_dir_all(node.dir.join(dir))?;
        }
        node.write_config()?;
        if let Some(plugins) = &node.setup.cni {
            node.write_cni(plugins)?;
        }
        node.write_hosts(REGISTRY, &plain_host(node.proxy.address()))?;
        Ok(node)
    }

    fn write_config(&self) -> Result<()> {
        let text = match &self.kind {
            Kind::Berth(_) => self.berth_config(),
            Kind::Containerd => self.containerd_config(),
            Kind::External(_) => return Ok(()),
        };
        Ok(fs::write(self.dir.join("config.toml"), text)?)
    }

    fn berth_config(&self) -> String {
        format!(
            "root = \"{root}\"\nstate = \"{state}\"\n\
             [cri]\nsocket = \"{dir}/cri.sock\"\n\
             [cgroup]\ndriver = \"cgroupfs\"\ndefault_parent = \"/{instance}\"\n\
             [network]\nconf_dir = \"{dir}/cni\"\nbin_dirs = [\"{dir}/bin\", \"/usr/lib/cni\"]\n\
             builtin = \"{builtin}\"\nbridge_name = \"{BRIDGE}\"\n\
             [registry]\nconfig_path = \"{dir}/certs.d\"\n\
             [shim]\nbinary = \"{shim}/containerd-shim-berth-v1\"\n\
             cgroup = \"/{instance}-shims\"\n\
             [log]\nlevel = \"info,berth=debug\"\n{more}",
            root = self.root().display(),
            state = self.state().display(),
            dir = self.dir.display(),
            instance = self.instance,
            shim = binaries(false).display(),
            builtin = if self.setup.builtin { "bridge" } else { "none" },
            more = self.setup.config,
        )
    }

    fn containerd_config(&self) -> String {
        let unused = [
            "internal.v1.opt",
            "snapshotter.v1.aufs",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.devmapper",
            "snapshotter.v1.zfs",
        ]
        .map(|name| format!("\"io.containerd.{name}\""));
        format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [{unused}]\n\
             [grpc]\naddress = \"{dir}/cri.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{REGISTRY}/{pause}\"\n\
             disable_apparmor = true\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
             bin_dir = \"/usr/lib/cni\"\nconf_dir = \"{dir}/cni\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{dir}/certs.d\"\n",
            root = self.root().display(),
            state = self.state().display(),
            unused = unused.join(", "),
            dir = self.dir.display(),
            pause = fixtures::PAUSE,
        )
    }

    /// Writes the CNI configuration: a bridge, and these plugins (JSON) after it.
    pub fn write_cni(&self, plugins: &str) -> Result<()> {
        let bridge = format!(
            r#"{{"type": "bridge", "bridge": "{BRIDGE}", "isGateway": true, "hairpinMode": true,
               "ipam": {{"type": "host-local", "dataDir": "{}/ipam",
                         "ranges": [[{{"subnet": "10.88.0.0/24"}}]],
                         "routes": [{{"dst": "0.0.0.0/0"}}]}}}}"#,
            self.dir.display()
        );
        let comma = if plugins.is_empty() { "" } else { "," };
        let list = format!(
            r#"{{"cniVersion": "1.0.0", "name": "berth-test", "plugins": [{bridge}{comma}{plugins}]}}"#
        );
        let fresh = self.dir.join("cni/fresh");
        fs::write(&fresh, list)?;
        Ok(fs::rename(fresh, self.dir.join("cni/10-berth-test.conflist"))?)
    }

    /// Writes the `hosts.toml` of a registry host.
    pub fn write_hosts(&self, registry: &str, hosts: &str) -> Result<()> {
        let dir = self.dir.join("certs.d").join(registry);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join("hosts.toml"), hosts)?)
    }

    /// Ends all that a reboot ends: every process, mount, cgroup and interface of the node. Its
    /// files stay.
    pub fn power_cut(&mut self) -> Result<()> {
        self.kill()?;
        let end = Instant::now() + SETTLED;
        loop {
            let found = self.footprint()?;
            let mut left = found.iter().filter(|line| !line.starts_with("path ")).peekable();
            if left.peek().is_none() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "does not go: {left:?}");
            // Deepest first: the names sort by their paths.
            left.collect::<Vec<_>>().into_iter().rev().for_each(|line| self.remove_thing(line));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the runtime (again) and waits until it answers.
    pub async fn launch(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the runtime runs already");
        let log = File::options().create(true).append(true).open(self.daemon_log())?;
        let mut command = match &self.kind {
            Kind::Berth(binaries) => {
                let mut command = self.host.command(&binaries.join("berthd").to_string_lossy());
                command.arg("--config").arg(self.dir.join("config.toml")).arg("serve");
                if let Some(failpoints) = &self.setup.failpoints {
                    command.env("BERTH_FAILPOINTS", failpoints);
                }
                command
            }
            Kind::Containerd => {
                let mut command = self.host.command("containerd");
                command.arg("-c").arg(self.dir.join("config.toml"));
                command
            }
            Kind::External(_) => return self.answers().await,
        };
        command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        self.daemon = Some(host::spawn(command)?);
        self.cri = Cri::new(&self.dir.join("cri.sock"))?;
        self.answers().await
    }

    async fn answers(&mut self) -> Result<()> {
        let end = Instant::now() + READY;
        loop {
            let version = self.cri.version(VersionRequest::default()).await;
            if version.is_ok() {
                return Ok(());
            }
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait()?
            {
                self.daemon = None;
                bail!("the runtime ended: {status}\n{}", self.log_tail());
            }
            ensure!(Instant::now() < end, "the runtime does not answer: {version:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the runtime as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the runtime does not run")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Asks the runtime to end (SIGTERM) and waits for it.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the runtime does not run")?;
        kill(pid(daemon.id())?, Signal::SIGTERM)?;
        let ended = eventually("the runtime's end", READY, async || Ok(daemon.try_wait()?)).await;
        if ended.is_err() {
            host::end(&mut daemon);
        }
        ended
    }

    /// Waits until the runtime ended by itself (a failpoint that aborts).
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the runtime does not run")?;
        let ended = eventually("the runtime's end", READY, async || Ok(daemon.try_wait()?)).await;
        if ended.is_err() {
            self.daemon = Some(daemon);
        }
        ended
    }

    /// Arms other failpoints for the next launch.
    pub fn arm(&mut self, failpoints: &str) {
        self.setup.failpoints = Some(failpoints.to_owned());
    }

    /// Removes every pod of the node, ends the runtime and fails if anything of it is left.
    pub async fn finish(mut self) -> Result<()> {
        self.remove_all().await?;
        self.settled().await?;
        if self.daemon.is_some() {
            let status = self.terminate().await?;
            ensure!(status.success(), "the runtime ended with {status}");
        }
        let nothing_left = async || {
            let left = self.footprint()?;
            let mut left =
                left.iter().filter(|line| !line.starts_with("path ") && !self.kept(line));
            left.next().map_or(Ok(Some(())), |line| bail!("left behind: {line}"))
        };
        eventually("nothing left after the runtime's end", SETTLED, nothing_left).await?;
        self.finished = true;
        Ok(())
    }

    /// Stops and removes every pod of the node.
    pub async fn remove_all(&self) -> Result<()> {
        for pod in self.pods().await? {
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }

    /// Waits until nothing is there that was not there when the node had just started.
    pub async fn settled(&self) -> Result<()> {
        if matches!(self.kind, Kind::External(_)) {
            return Ok(());
        }
        eventually("nothing left behind", SETTLED, async || {
            let now = self.footprint()?;
            let left: Vec<&String> =
                now.difference(&self.baseline).filter(|line| !self.kept(line)).collect();
            if left.is_empty() { Ok(Some(())) } else { bail!("left behind: {left:#?}") }
        })
        .await
    }

    /// What the node has on the machine now.
    pub fn footprint(&self) -> Result<Footprint> {
        let daemon = self.daemon.as_ref().map(Child::id);
        footprint::take(&Scope {
            instance: self.instance.clone(),
            dir: self.dir.clone(),
            holder: self.host.pid(),
            ignored: daemon.into_iter().collect(),
            directories: matches!(self.kind, Kind::Berth(_)),
        })
    }

    /// What may outlast a pod: the cgroup of the shims, and what runc never removes.
    fn kept(&self, line: &str) -> bool {
        let Some(cgroup) = line.strip_prefix("cgroup ") else { return false };
        self.kind == Kind::Containerd || cgroup.ends_with(&format!("{}-shims", self.instance))
    }

    /// The client.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// The node's name, part of all it makes.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The node's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The runtime's `root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.setup.root.clone().unwrap_or_else(|| self.dir.join("root"))
    }

    /// The runtime's `state`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.setup.state.clone().unwrap_or_else(|| self.dir.join("state"))
    }

    /// What runs.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether it is Berth, so that promises beyond the CRI's words hold.
    #[must_use]
    pub fn is_berth(&self) -> bool {
        matches!(self.kind, Kind::Berth(_))
    }

    /// The runtime's process id.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The namespaces it lives in.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The way to the registry.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The full name of an image in the registry, as this node reaches it.
    #[must_use]
    pub fn image(&self, name: &str) -> ImageSpec {
        let host = match self.kind {
            Kind::External(_) => self.registry.address().to_string(),
            _ => REGISTRY.to_owned(),
        };
        ImageSpec { image: format!("{host}/{name}"), ..Default::default() }
    }

    /// Where the runtime's own messages go.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.daemon_log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
    }

    /// Ends and removes whatever is left, so that a failed test disturbs no other.
    fn sweep(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            host::end(&mut daemon);
        }
        let end = Instant::now() + SETTLED;
        while let Ok(found) = self.footprint()
            && let left = found.iter().filter(|line| !line.starts_with("path ")).collect::<Vec<_>>()
            && !left.is_empty()
            && Instant::now() < end
        {
            // Deepest first: the names sort by their paths.
            for line in left.iter().rev() {
                self.remove_thing(line);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.setup.mounts == MountMode::Machine {
            // The plugin keeps its bridge, which is not there where no pod ran.
            let _ = self.host.run("ip", &["link", "del", BRIDGE]);
        }
        // What cannot be removed stays visible in /tmp, which is all that can be said here.
        let _ = fs::remove_dir_all(&self.dir);
    }

    fn remove_thing(&self, line: &str) {
        let Some((kind, thing)) = line.split_once(' ') else { return };
        match kind {
            "process" => {
                let number = thing.split(' ').next().and_then(|pid| pid.parse().ok());
                if let Some(Ok(pid)) = number.map(pid) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            "mount" => {
                let _ = self.host.run("umount", &["-l", thing]);
            }
            "cgroup" => {
                let _ = fs::remove_dir(thing);
            }
            "link" => {
                let _ = self.host.run("ip", &["link", "del", thing]);
            }
            _ => {}
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("--- {} was not finished; its log ends:\n{}", self.instance, self.log_tail());
        }
        if matches!(self.kind, Kind::External(_)) {
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            self.sweep();
        }
    }
}

fn pid(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(id)?))
}

/// A `hosts.toml` that names one HTTP host.
#[must_use]
pub fn plain_host(address: SocketAddr) -> String {
    format!(
        "server = \"http://{address}\"\n\
         [host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    )
}

/// A directory of its own below /tmp, named `berth-test-PID-NUMBER`.
pub fn fresh_dir(what: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // What is not a node has another prefix, lest a node's name be part of it.
    let prefix = if what == "node" { "berth-test" } else { "berth-fixture" };
    let name = format!("{prefix}-{}-{number:03}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn kind(failpoints: bool) -> Result<Kind> {
    if let Some(endpoint) = std::env::var_os("BERTH_TEST_ENDPOINT") {
        let endpoint = endpoint.to_string_lossy().into_owned();
        let path = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
        return Ok(Kind::External(PathBuf::from(path)));
    }
    match std::env::var("BERTH_TEST_PEER").as_deref() {
        Ok("containerd") => return Ok(Kind::Containerd),
        Ok(other) => bail!("BERTH_TEST_PEER={other}: only containerd is known"),
        Err(_) => {}
    }
    let dir = binaries(failpoints);
    let berthd = dir.join("berthd");
    ensure!(berthd.exists(), "{} is missing: `cargo xtask test` builds it", berthd.display());
    Ok(Kind::Berth(dir))
}

/// Where the built binaries lie.
#[must_use]
pub fn binaries(failpoints: bool) -> PathBuf {
    let (variable, default) = if failpoints {
        ("BERTH_DIST_FAILPOINTS", "target/dist-failpoints")
    } else {
        ("BERTH_DIST", "target/dist")
    };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::env::var_os(variable).map_or_else(|| workspace.join(default), PathBuf::from)
}

/// The static test program.
#[must_use]
pub fn app_binary() -> PathBuf {
    let given = std::env::var_os("BERTH_APP").map(PathBuf::from);
    given.unwrap_or_else(|| binaries(false).join("berth-app"))
}
