//! A scratch directory with a busybox root, specs to run in it, and what must not be left behind.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use berth_container::{
    Container, CreateRequest, Error, Exec, ExecRequest, ExitStatus, Layout, PodNamespaces,
    PodOptions, Rootfs, Stdio,
};
use berth_sys::process;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::users;

/// Longer than anything here takes, shorter than a person waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Whether pods that don't say have a user namespace.
pub(crate) static USERS: AtomicBool = AtomicBool::new(false);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One pod's worth of things for one case.
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) pod: PodNamespaces,
    pub(crate) layout: Layout,
    pub(crate) name: String,
}

impl Bench {
    /// With net, ipc and uts namespaces of its own.
    pub(crate) fn new() -> Self {
        Self::with(PodOptions {
            net: true,
            ipc: true,
            uts: true,
            hostname: Some("bench".into()),
            shm_size: Some(1 << 20),
            ..PodOptions::default()
        })
    }

    pub(crate) fn with(mut options: PodOptions) -> Self {
        if USERS.load(Ordering::Relaxed) && options.user.is_none() {
            options.user = Some(users::maps(users::HOST));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-test-{}-{number}", std::process::id());
        let dir = Path::new("/tmp").join(&name);
        let bin = dir.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for tool in [
            "sh", "cat", "ls", "id", "sleep", "true", "mount", "umount", "stat", "tty", "hostname",
            "tr",
        ] {
            symlink("busybox", bin.join(tool)).unwrap();
        }
        let etc = dir.join("rootfs/etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/home/u:\n")
            .unwrap();
        if let Some(maps) = &options.user {
            give(&dir.join("rootfs"), maps.host_uid(0).unwrap());
        }
        Self {
            dir,
            pod: PodNamespaces::create(&options).unwrap(),
            layout: Layout::detect().unwrap(),
            name,
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(crate) fn cgroup(&self) -> String {
        format!("/{}/{}", self.name, "c".repeat(64))
    }

    /// What a daemon would write for a plain pod container running this shell script.
    pub(crate) fn spec(&self, script: &str) -> Value {
        let caps = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "A=b"],
                "cwd": "/",
                "capabilities": {
                    "bounding": caps, "effective": caps, "permitted": caps,
                },
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
                {"destination": "/dev/shm", "type": "bind", "source": "pod:shm",
                 "options": ["rbind", "rprivate"]},
            ],
            "linux": {
                "cgroupsPath": self.cgroup(),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
                    {"type": "ipc", "path": "pod:"}, {"type": "uts", "path": "pod:"},
                    {"type": "network", "path": "pod:"},
                ],
            },
        });
        if self.pod.user().is_some() {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "user", "path": "pod:"}));
        }
        spec
    }

    pub(crate) fn create(&self, spec: &Value, stdio: Stdio<'_>) -> Result<Container, Error> {
        self.create_on(spec, None, stdio)
    }

    pub(crate) fn create_on(
        &self,
        spec: &Value,
        rootfs: Option<&Rootfs>,
        stdio: Stdio<'_>,
    ) -> Result<Container, Error> {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
        let request = CreateRequest {
            id: "c",
            bundle: &self.dir,
            spec: &spec,
            rootfs,
            pod: &self.pod,
            layout: &self.layout,
            stdio,
        };
        Container::create_blocking(&request, LIMIT)
    }

    /// Runs the spec to its end; output of both streams together, and how it ended.
    pub(crate) fn run(&self, spec: &Value) -> (String, ExitStatus) {
        self.run_on(spec, None)
    }

    pub(crate) fn run_on(&self, spec: &Value, rootfs: Option<&Rootfs>) -> (String, ExitStatus) {
        let out = Output::new();
        let mut container = self.create_on(spec, rootfs, out.stdio()).unwrap();
        container.start_blocking(LIMIT).unwrap();
        let text = out.read();
        (text, end(&container))
    }

    /// The script's output; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.sh_with(script, |_| {})
    }

    /// As [`Bench::sh`], with a changed spec.
    pub(crate) fn sh_with(&self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut spec = self.spec(&format!("set -e; {script}"));
        change(&mut spec);
        let (text, status) = self.run(&spec);
        assert_eq!(status, ExitStatus::Code(0), "{script}: {text}");
        text
    }

    /// A container that stays.
    pub(crate) fn idle(&self, change: impl FnOnce(&mut Value)) -> Container {
        let mut spec = self.spec("exec sleep 1000");
        change(&mut spec);
        let mut container = self.create(&spec, Stdio::default()).unwrap();
        container.start_blocking(LIMIT).unwrap();
        container
    }
}

/// Makes a tree a user's own.
pub(crate) fn give(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Adds a mount to a spec.
pub(crate) fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// Waits for the end, reaps, deletes.
pub(crate) fn end(container: &Container) -> ExitStatus {
    assert!(process::wait_readable(&[container.pidfd()], Some(LIMIT)).unwrap());
    let peeked = container.exit_status().unwrap();
    let status = container.reap().unwrap();
    assert_eq!(peeked, status);
    container.delete(LIMIT).unwrap();
    status.unwrap()
}

/// Kills, and as [`end`].
pub(crate) fn kill(container: &Container) -> ExitStatus {
    container.kill_all().unwrap();
    end(container)
}

/// A process spec for an exec.
pub(crate) fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]})
}

/// Runs an exec to its end.
pub(crate) fn exec(container: &Container, process: &Value) -> Result<(String, ExitStatus), Error> {
    let process: Process = serde_json::from_value(process.clone()).unwrap();
    let out = Output::new();
    let request = ExecRequest { id: "e", process: &process, stdio: out.stdio() };
    let exec = Exec::spawn_blocking(container, &request, LIMIT)?;
    let text = out.read();
    assert!(process::wait_readable(&[exec.pidfd()], Some(LIMIT)).unwrap());
    Ok((text, exec.reap().unwrap().unwrap()))
}

/// One pipe for both streams.
pub(crate) struct Output {
    reader: std::io::PipeReader,
    writer: OwnedFd,
}

impl Output {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self { reader, writer: writer.into() }
    }

    pub(crate) fn stdio(&self) -> Stdio<'_> {
        let fd = Some(self.writer.as_fd());
        Stdio { stdin: None, stdout: fd, stderr: fd }
    }

    /// All of it, to the end of the last writer.
    pub(crate) fn read(mut self) -> String {
        drop(self.writer);
        let mut text = String::new();
        self.reader.read_to_string(&mut text).unwrap();
        text
    }
}

/// What a container could leave behind.
pub(crate) struct Machine {
    mounts: String,
    fds: usize,
    cgroups: Vec<PathBuf>,
}

impl Machine {
    pub(crate) fn now() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            fds: fs::read_dir("/proc/self/fd").unwrap().count(),
            cgroups: own_cgroups(),
        }
    }

    /// Ends what a failed case left, so that the next one starts clean.
    pub(crate) fn clean() {
        let layout = Layout::detect().unwrap();
        for dir in own_cgroups() {
            let name = Path::new("/").join(dir.file_name().unwrap());
            let cgroup = berth_container::Cgroup::at(&layout, &name).unwrap();
            cgroup.kill().unwrap();
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
            let _ = cgroup.remove(LIMIT);
        }
    }

    pub(crate) fn left_behind(&self) -> Vec<String> {
        let now = Self::now();
        let mut left = Vec::new();
        if now.mounts != self.mounts {
            let (was, is): (Vec<_>, Vec<_>) =
                (self.mounts.lines().collect(), now.mounts.lines().collect());
            left.extend(is.iter().filter(|l| !was.contains(l)).map(|l| format!("mount {l}")));
            left.extend(was.iter().filter(|l| !is.contains(l)).map(|l| format!("no mount {l}")));
        }
        if now.fds != self.fds {
            left.push(format!("{} descriptors instead of {}", now.fds, self.fds));
        }
        if now.cgroups != self.cgroups {
            left.push(format!("cgroups {:?}", now.cgroups));
        }
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => {}
            other => left.push(format!("a child: {other:?}")),
        }
        left
    }
}

/// Cgroups of this test process, in all hierarchies.
fn own_cgroups() -> Vec<PathBuf> {
    let mine = format!("berth-test-{}-", std::process::id());
    let mut found = Vec::new();
    let roots = fs::read_dir("/sys/fs/cgroup").unwrap().map(|e| e.unwrap().path());
    for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]).filter(|p| p.is_dir()) {
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with(&mine) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
