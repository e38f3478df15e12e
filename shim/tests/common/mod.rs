//! A pod of its own for each test: a state directory, a shim, a client, a root file system.
//!
//! The client is the ttrpc crate's, with containerd-shim-protos' generated code: an independent
//! peer of the shim's own framing.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness: each test file uses its own part of it, and fails where it fails"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_proto::shim as pb;
use containerd_shim_protos::api::{self, CreateTaskRequest};
use containerd_shim_protos::shim_sync::TaskClient;
use prost::Message;
use serde_json::{Value, json};

/// The program under test; `BERTH_TEST_SHIM` names another build of it.
pub fn shim() -> String {
    std::env::var("BERTH_TEST_SHIM")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_containerd-shim-berth-v1").to_owned())
}
const DEADLINE: Duration = Duration::from_secs(20);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Pod {
    pub root: PathBuf,
    pub dir: PathBuf,
    pub id: String,
    pub pid: u32,
    pub client: ttrpc::Client,
    pub task: TaskClient,
    pub cgroup: String,
    pub gone: bool,
}

pub fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(DEADLINE)
}

impl Pod {
    /// A shim without a pod.
    pub fn bare() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("berth-test-{}-{number}", std::process::id());
        let root = PathBuf::from("/tmp").join(&name);
        let dir = root.join("p");
        fs::create_dir_all(&dir).unwrap();
        rootfs(&root.join("lower"));
        let id = format!("{:064x}", u64::from(std::process::id()) << 16 | u64::from(number));
        let address = start(&dir, &id);
        let pid = fs::read_to_string(dir.join("shim.pid")).unwrap().parse().unwrap();
        let client = ttrpc::Client::connect(&address).unwrap();
        let task = TaskClient::new(client.clone());
        Self { root, dir, id, pid, client, task, cgroup: format!("/{name}"), gone: false }
    }

    /// A shim with a pod on the host's network.
    pub fn new() -> Self {
        let pod = Self::bare();
        pod.create_pod(|_| {}).unwrap();
        pod
    }

    /// A shim with a pod whose request `change` has changed.
    pub fn with(change: impl FnOnce(&mut pb::CreatePodRequest)) -> Self {
        let pod = Self::bare();
        pod.create_pod(change).unwrap();
        pod
    }

    pub fn create_pod(
        &self,
        change: impl FnOnce(&mut pb::CreatePodRequest),
    ) -> ttrpc::Result<pb::CreatePodResponse> {
        let mut request = pb::CreatePodRequest {
            pod_id: self.id.clone(),
            hostname: "berth-test".into(),
            cgroup_parent: self.cgroup.clone(),
            ..Default::default()
        };
        change(&mut request);
        self.call("CreatePod", &request)
    }

    /// Calls the shim's own service.
    pub fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> ttrpc::Result<A> {
        call(&self.client, method, request)
    }

    /// Another connection.
    pub fn connect(&self) -> ttrpc::Client {
        ttrpc::Client::connect(&format!("unix://{}", self.dir.join("shim.sock").display())).unwrap()
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("containers").join(id)
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.root.join("logs").join(id).join("0.log")
    }

    /// A create request of a container that runs `argv`, its bundle written.
    pub fn order(&self, id: &str, argv: &[&str]) -> CreateTaskRequest {
        self.order_with(id, argv, |_| {})
    }

    pub fn order_with(
        &self,
        id: &str,
        argv: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> CreateTaskRequest {
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle).unwrap();
        let mut spec = spec(&format!("{}/{id}", self.cgroup), argv);
        change(&mut spec);
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let (upper, work) = (self.root.join(id).join("upper"), self.root.join(id).join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let mount = api::Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", self.root.join("lower").display()),
                format!("upperdir={}", upper.display()),
                format!("workdir={}", work.display()),
                "volatile".into(),
                "index=off".into(),
                "metacopy=off".into(),
            ],
            ..Default::default()
        };
        CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs: vec![mount],
            stdout: format!("crilog://{}", self.log(id).display()),
            terminal: spec["process"]["terminal"] == json!(true),
            ..Default::default()
        }
    }

    pub fn create(&self, id: &str, argv: &[&str]) -> u32 {
        let answer = self.task.create(context(), &self.order(id, argv));
        answer.unwrap_or_else(|error| panic!("create {id}: {error}\n{}", self.shim_log())).pid
    }

    pub fn start(&self, id: &str) -> ttrpc::Result<u32> {
        let request = api::StartRequest { id: id.into(), ..Default::default() };
        self.task.start(context(), &request).map(|answer| answer.pid)
    }

    /// Create and start.
    pub fn run(&self, id: &str, argv: &[&str]) -> u32 {
        self.create(id, argv);
        self.start(id).unwrap_or_else(|error| panic!("start {id}: {error}\n{}", self.shim_log()))
    }

    /// Exit code.
    pub fn wait(&self, id: &str) -> u32 {
        wait(&self.task, id)
    }

    pub fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let request = api::KillRequest { id: id.into(), signal, ..Default::default() };
        self.task.kill(context(), &request).map(|_| ())
    }

    pub fn delete(&self, id: &str) -> ttrpc::Result<u32> {
        let request = api::DeleteRequest { id: id.into(), ..Default::default() };
        self.task.delete(context(), &request).map(|answer| answer.exit_status)
    }

    pub fn exec(&self, id: &str, argv: &[&str]) -> ttrpc::Result<pb::ExecSyncResponse> {
        self.exec_for(id, argv, 0)
    }

    pub fn exec_for(
        &self,
        id: &str,
        argv: &[&str],
        timeout_ms: u64,
    ) -> ttrpc::Result<pb::ExecSyncResponse> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let container_id = id.to_owned();
        self.call(
            "ExecSync",
            &pb::ExecSyncRequest { container_id, argv, timeout_ms, max_output: 0, key: 0 },
        )
    }

    pub fn inventory(&self) -> pb::InventoryResponse {
        self.call("Inventory", &pb::InventoryRequest {}).unwrap()
    }

    pub fn stop(&self) -> ttrpc::Result<pb::StopPodResponse> {
        self.call("StopPod", &pb::StopPodRequest {})
    }

    pub fn shutdown(&mut self) {
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        self.task.shutdown(context(), &request).unwrap();
        until("the shim ends", || !alive(self.pid));
        self.gone = true;
    }

    pub fn shim_log(&self) -> String {
        fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default()
    }

    /// Stream, tag and content of every line of a container's log.
    pub fn lines(&self, id: &str) -> Vec<(String, char, String)> {
        lines(&self.log(id))
    }

    pub fn exit_record(&self, id: &str) -> berth_proto::exit::ExitRecord {
        let bytes = fs::read(self.dir.join("exits").join(format!("{id}.json"))).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Directories of this pod in any cgroup hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap();
        let mut roots: Vec<PathBuf> = hierarchies.map(|entry| entry.unwrap().path()).collect();
        roots.push("/sys/fs/cgroup".into());
        let name = self.cgroup.trim_start_matches('/');
        roots.into_iter().map(|root| root.join(name)).filter(|path| path.exists()).collect()
    }
}

impl Drop for Pod {
    /// Ends everything and looks for what is left.
    fn drop(&mut self) {
        if !self.gone {
            let stopped = self.stop();
            let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
            let _ = self.task.shutdown(context(), &request);
            if !std::thread::panicking() {
                stopped.unwrap();
                until("the shim ends", || !alive(self.pid));
                assert!(!self.dir.join("shim.sock").exists(), "the socket stays");
            }
        }
        if std::thread::panicking() {
            eprintln!("shim.log:\n{}", self.shim_log());
            if alive(self.pid) {
                let _ = Command::new("kill").args(["-9", &self.pid.to_string()]).status();
            }
            let bundle = self.dir.display().to_string();
            let _ =
                Command::new(shim()).args(["-id", &self.id, "-bundle", &bundle, "delete"]).output();
        } else {
            let left = self.cgroups();
            assert!(left.is_empty(), "cgroups are left: {left:?}");
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let root = self.root.display().to_string();
            assert!(!mounts.contains(&root), "mounts are left:\n{mounts}");
        }
        fs::remove_dir_all(&self.root).unwrap();
    }
}

/// Runs the start verb in `dir` and gives the address.
pub fn start(dir: &Path, id: &str) -> String {
    let log = fs::File::options().append(true).create(true).open(dir.join("shim.log")).unwrap();
    let output = Command::new(shim())
        .args(["-namespace", "k8s.io", "-id", id, "-address", "", "start"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(log)
        .output()
        .unwrap();
    let said = fs::read_to_string(dir.join("shim.log")).unwrap();
    assert!(output.status.success(), "start: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub fn call<Q: Message, A: Message + Default>(
    client: &ttrpc::Client,
    method: &str,
    request: &Q,
) -> ttrpc::Result<A> {
    let mut envelope = ttrpc::Request::new();
    envelope.service = pb::SERVICE.to_owned();
    envelope.method = method.to_owned();
    envelope.payload = request.encode_to_vec();
    envelope.timeout_nano = i64::try_from(DEADLINE.as_nanos()).unwrap();
    let response = client.request(envelope)?;
    Ok(A::decode(&response.payload[..]).unwrap())
}

pub fn wait(task: &TaskClient, id: &str) -> u32 {
    let request = api::WaitRequest { id: id.into(), ..Default::default() };
    task.wait(context(), &request).unwrap().exit_status
}

/// The status code and the text of a call that failed.
pub fn status<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("not a status: {other:?}"),
    }
}

pub fn lines(path: &Path) -> Vec<(String, char, String)> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end");
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let stamp = parts.next().unwrap();
            assert_eq!(stamp.len(), 30, "{line}");
            assert!(stamp.ends_with('Z'), "{line}");
            let stream = parts.next().unwrap().to_owned();
            let tag = parts.next().unwrap().parse().unwrap();
            (stream, tag, parts.next().unwrap().to_owned())
        })
        .collect()
}

/// Waits for a condition.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// The process exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// A root directory with a static busybox.
fn rootfs(dir: &Path) {
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "cat", "echo", "true", "seq", "dd", "yes", "kill", "hostname", "ps"]
    {
        symlink("busybox", dir.join("bin").join(name)).unwrap();
    }
}

fn spec(cgroup: &str, argv: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": argv,
            "env": ["PATH=/bin", "TERM=dumb"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_SYS_CHROOT"],
                "effective": ["CAP_KILL", "CAP_SYS_CHROOT"],
                "permitted": ["CAP_KILL", "CAP_SYS_CHROOT"],
            },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "bind", "source": "pod:shm",
              "options": ["bind", "rw"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                { "type": "mount" },
                { "type": "pid" },
                { "type": "ipc", "path": "pod:" },
                { "type": "uts", "path": "pod:" },
            ],
        },
    })
}
