//! A runtime's daemon of our own: private directories, a private socket, a cgroup of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_proto::cri::VersionRequest;
use berth_tests::cri::Cri;
use berth_tests::eventually::true_within;
use berth_tests::footprint::{self, Footprint, Scope};
use berth_tests::host::{self, Host, MountMode};

use crate::slice::Slice;

/// Which runtime, and where its programs lie.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `berthd` and its shim.
    Berth { bin: PathBuf },
    /// containerd with its shim and runc; from `PATH` where no directory is given.
    Containerd { bin: Option<PathBuf> },
}

impl Kind {
    /// Berth from this directory, which may be relative.
    pub(crate) fn berth(dist: &Path) -> Result<Self> {
        let bin = dist.canonicalize().with_context(|| format!("find {}", dist.display()))?;
        Ok(Self::Berth { bin })
    }

    /// The runtime's name in tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Berth { .. } => "berth",
            Self::Containerd { .. } => "containerd",
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        match self {
            Self::Berth { bin } | Self::Containerd { bin: Some(bin) } => bin.join(name),
            Self::Containerd { bin: None } => PathBuf::from(name),
        }
    }

    fn daemon(&self) -> PathBuf {
        self.program(match self {
            Self::Berth { .. } => "berthd",
            Self::Containerd { .. } => "containerd",
        })
    }

    /// What the runtime's programs say of their versions.
    pub(crate) fn versions(&self) -> Vec<String> {
        let programs = match self {
            Self::Berth { .. } => vec![self.program("berthd")],
            // It inflates with igzip (package isal) where that is in PATH: twice as fast.
            Self::Containerd { .. } => {
                vec![self.program("containerd"), self.program("runc"), PathBuf::from("igzip")]
            }
        };
        let first_line = |program: &PathBuf| {
            let output = Command::new(program).arg("--version").output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let line = text.unwrap_or_default().lines().next().map(str::to_owned);
            line.unwrap_or_else(|| format!("no {}", program.display()))
        };
        programs.iter().map(first_line).collect()
    }
}

/// What a daemon is started with, beside its own directories.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// The directory of `HOST/hosts.toml` files.
    pub(crate) registries: Option<PathBuf>,
    /// The image of the pause container, for runtimes that need one.
    pub(crate) pause: String,
    /// Archives that are in the store from the start.
    pub(crate) preload: Option<PathBuf>,
    /// Whether the daemon, and with it pods on the host's network, live in a network namespace of
    /// their own: what they do to it is gone with it.
    pub(crate) apart: bool,
}

/// A running daemon. Dropped, it is killed, with what it left running; its directory goes.
#[derive(Debug)]
pub(crate) struct Instance {
    kind: Kind,
    dir: PathBuf,
    slice: Slice,
    baseline: Footprint,
    daemon: Child,
    cri: Cri,
    apart: Option<Host>,
}

impl Instance {
    /// Starts a daemon in a directory of this name below `base` and in a cgroup of the same name,
    /// and waits until it answers.
    pub(crate) async fn start(
        kind: Kind,
        base: &Path,
        name: &str,
        settings: &Settings,
    ) -> Result<Self> {
        let slice = Slice::new(name)?;
        let dir = base.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let config = match &kind {
            Kind::Berth { bin } => berth_config(bin, &dir, settings, &slice),
            Kind::Containerd { .. } => containerd_config(&dir, settings, kind.program("runc")),
        };
        fs::write(dir.join("config.toml"), config)?;
        let apart = settings.apart.then(|| Host::new(MountMode::Host)).transpose()?;
        let daemon = spawn(&kind, &dir, &slice, apart.as_ref())?;
        let cri = Cri::new(&socket(&dir))?;
        let baseline = Footprint::new();
        let mut instance = Self { kind, dir, slice, baseline, daemon, cri, apart };
        instance.answers().await?;
        instance.baseline = instance.footprint()?;
        Ok(instance)
    }

    /// Kills the daemon, as a crash would, and leaves everything else running.
    pub(crate) fn kill(&mut self) {
        host::end(&mut self.daemon);
    }

    /// Starts the daemon again and waits until it answers.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.daemon = spawn(&self.kind, &self.dir, &self.slice, self.apart.as_ref())?;
        // The old connection would wait out its back-off first.
        self.cri = Cri::new(&socket(&self.dir))?;
        self.answers().await
    }

    async fn answers(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let Err(error) = self.cri.version(VersionRequest::default()).await else {
                return Ok(());
            };
            let ended = self.daemon.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                bail!("{} does not answer ({error}):\n{}", self.kind.name(), self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Which runtime it is.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The client of its socket.
    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// The cgroup it lives in.
    pub(crate) fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last lines of the daemon's messages.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// Waits until nothing is there that was not there when the daemon had just started;
    /// answers what stays nevertheless.
    pub(crate) async fn left_behind(&self) -> Result<Vec<String>> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left: Vec<String> = self.footprint()?.difference(&self.baseline).cloned().collect();
            if left.is_empty() || Instant::now() > end {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn footprint(&self) -> Result<Footprint> {
        footprint::take(&Scope {
            instance: self.slice.name().to_owned(),
            dir: self.dir.clone(),
            holder: std::process::id(),
            ignored: vec![self.pid()],
            directories: true,
        })
    }

    /// Asks the daemon to end and waits until it did.
    pub(crate) async fn stop(mut self) -> Result<()> {
        host::run("kill", &["-TERM", &self.pid().to_string()])?;
        true_within("the daemon ends", Duration::from_secs(20), async || {
            Ok(self.daemon.try_wait()?.is_some())
        })
        .await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
        // Shims outlive their daemon by design; these are the private slice's, so all are ours.
        for pid in self.slice.account().processes().unwrap_or_default() {
            let _ = host::run("kill", &["-KILL", &pid.to_string()]);
        }
        for path in mounts_below(&self.dir).unwrap_or_default().iter().rev() {
            let _ = host::run("umount", &["-l", path]);
        }
        let end = Instant::now() + Duration::from_secs(5);
        while self.slice.account().processes().is_ok_and(|left| !left.is_empty())
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The mount points below a directory, in the order they were made.
fn mounts_below(dir: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect())
}

/// Where the daemon in this directory looks for CNI configurations.
pub(crate) fn net_dir(dir: &Path) -> PathBuf {
    dir.join("net.d")
}

/// A directory need not exist.
fn registries(dir: &Path, settings: &Settings) -> PathBuf {
    settings.registries.clone().unwrap_or_else(|| dir.join("certs.d"))
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("cri.sock")
}

/// Starts the daemon inside its cgroup: a shell joins and becomes it.
fn spawn(kind: &Kind, dir: &Path, slice: &Slice, apart: Option<&Host>) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("daemon.log"))?;
    let mut command = apart.map_or_else(|| host::tied("sh"), |host| host.command("sh"));
    command
        .args(["-c", r#"while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@""#]);
    command.arg("sh").args(slice.daemon_procs()).arg("--");
    command.arg(kind.daemon()).arg("--config").arg(dir.join("config.toml"));
    command.stdout(log.try_clone()?).stderr(log).env("PATH", path(kind)).env("LC_ALL", "C");
    host::spawn(command).with_context(|| format!("start {}", kind.daemon().display()))
}

/// containerd looks its shim and runc up in `PATH`.
fn path(kind: &Kind) -> OsString {
    let mut path = OsString::new();
    if let Kind::Containerd { bin: Some(bin) } = kind {
        path.push(bin);
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

fn berth_config(bin: &Path, dir: &Path, settings: &Settings, slice: &Slice) -> String {
    let preload = settings.preload.as_ref();
    let preload = preload.map_or(String::new(), |dir| format!("[image]\npreload = {dir:?}\n"));
    format!(
        "root = {:?}\nstate = {:?}\n{preload}\
         [cri]\nsocket = {:?}\n\
         [cgroup]\ndefault_parent = {:?}\n\
         [shim]\nbinary = {:?}\ncgroup = {:?}\n\
         [network]\nconf_dir = {:?}\nbin_dirs = [{CNI_BIN:?}]\n\
         [registry]\nconfig_path = {:?}\n\
         [log]\nlevel = \"warn\"\n",
        dir.join("root"),
        dir.join("state"),
        socket(dir),
        slice.path("pods"),
        bin.join("containerd-shim-berth-v1"),
        slice.path("shims"),
        net_dir(dir),
        registries(dir, settings),
    )
}

/// containerd 2 reads this version of its configuration as well.
fn containerd_config(dir: &Path, settings: &Settings, runc: PathBuf) -> String {
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {:?}\n\
         [debug]\nlevel = \"warn\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = {:?}\n\
         disable_apparmor = true\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {CNI_BIN:?}\nconf_dir = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\
         BinaryName = {runc:?}\nSystemdCgroup = false\n",
        dir.join("root"),
        dir.join("state"),
        socket(dir),
        settings.pause,
        net_dir(dir),
        registries(dir, settings),
    )
}

/// Where Debian puts the plugins.
const CNI_BIN: &str = "/usr/lib/cni";
