//! One connection to one shim: containerd's Task service and our own on the same socket.
//!
//! The only place of the daemon that names generated shim types. Every call but the wait has a
//! deadline. Dropping a call's future forgets the answer; the shim does the work all the same.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_proto::paths::PodPaths;
use berth_proto::shim as own;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc;
use prost::Message;
use tokio::net::UnixStream;

use super::ShimError;
use crate::pod::Kind;
use crate::pod::spec::{IdMaps, IdRange};

/// For what needs no container to act.
const SHORT: Duration = Duration::from_secs(10);
/// For what makes or ends things in the kernel.
const LONG: Duration = Duration::from_secs(60);
/// Kept bytes of each stream of an ExecSync, as CRI says; the shim reads and drops the surplus.
const MAX_OUTPUT: u64 = 16 << 20;

/// What a pod's namespaces are to be.
#[derive(Debug, Clone)]
pub struct PodRequest {
    /// The pod's id.
    pub id: String,
    /// Where to pin the network namespace; None: the host's network.
    pub netns: Option<PathBuf>,
    /// The host name.
    pub hostname: String,
    /// The rest.
    pub namespaces: Namespaces,
    /// Dotted name to value.
    pub sysctls: BTreeMap<String, String>,
    /// What a user namespace of the pod's own maps; empty: the host's.
    pub ids: IdMaps,
    /// Relative to the hierarchy roots.
    pub cgroup_parent: String,
}

/// Which namespaces a pod has beside the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    /// The host's IPC.
    pub host_ipc: bool,
    /// The host's UTS.
    pub host_uts: bool,
    /// One PID namespace for all containers.
    pub shared_pid: bool,
}

/// An overlay to be the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Topmost first, absolute.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// The kernel's scratch beside it.
    pub work: PathBuf,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct CreateTask {
    /// Its id.
    pub id: String,
    /// The directory of its config.json.
    pub bundle: PathBuf,
    /// Its root.
    pub rootfs: Rootfs,
    /// How the ids of its root's layers are mapped; empty: they are as they lie.
    pub ids: IdMaps,
    /// A terminal of its own.
    pub terminal: bool,
    /// Some(once): keep standard input for an attach.
    pub stdin: Option<bool>,
    /// Absolute; None: discard.
    pub log: Option<PathBuf>,
}

/// How a container ended, as the wait tells it; the exit record has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0-255.
    pub code: u32,
    /// Nanoseconds since the epoch; 0: unknown.
    pub at: i64,
}

/// One command inside a container.
#[derive(Debug, Clone)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// None: no limit.
    pub timeout: Option<Duration>,
    /// By which it can be cancelled; unique on its connection.
    pub key: u64,
}

/// How it went.
#[derive(Debug, Clone)]
pub struct ExecResult {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// 0-255.
    pub exit_code: i32,
    /// The limit struck; everything it started was killed.
    pub timed_out: bool,
}

/// Where a container is in its life, as the shim sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskPhase {
    /// Waits at its gate.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Stopped,
    /// The shim says something this build does not know.
    Unknown,
}

/// A container as the shim sees it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub phase: TaskPhase,
    /// Host process id; 0 when stopped.
    pub pid: u32,
}

/// What a shim holds.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// Empty before CreatePod.
    pub pod: String,
    /// Its containers.
    pub tasks: Vec<Task>,
}

/// A connection to a shim. Clones share it.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    task: TaskClient,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shim")
    }
}

impl Shim {
    /// Connects to the socket in the pod's directory, however long that path is.
    pub async fn connect(paths: &PodPaths) -> Result<Self, ShimError> {
        let stream = dial(paths).await?;
        let client = Client::new(ttrpc::asynchronous::transport::Socket::new(stream));
        Ok(Self { task: TaskClient::new(client.clone()), client })
    }

    /// Makes the pod's namespaces. Some: the process id of the shared PID namespace's init.
    pub async fn create_pod(&self, pod: PodRequest) -> Result<Option<u32>, ShimError> {
        let request = own::CreatePodRequest {
            pod_id: pod.id,
            netns_path: pod.netns.map(|p| text(&p)).unwrap_or_default(),
            hostname: pod.hostname,
            host_ipc: pod.namespaces.host_ipc,
            host_uts: pod.namespaces.host_uts,
            shared_pid: pod.namespaces.shared_pid,
            sysctls: pod.sysctls.into_iter().collect::<HashMap<_, _>>(),
            shm_size: 0,
            cgroup_parent: pod.cgroup_parent,
            uid_mappings: pod.ids.uids.iter().map(id_range).collect(),
            gid_mappings: pod.ids.gids.iter().map(id_range).collect(),
        };
        let made: own::CreatePodResponse = self.own("CreatePod", &request, Some(LONG)).await?;
        Ok((made.init_pid != 0).then_some(made.init_pid))
    }

    /// Kills what runs, releases namespaces, unpins, removes cgroups. Idempotent.
    pub async fn stop_pod(&self) -> Result<(), ShimError> {
        let request = own::StopPodRequest {};
        self.own::<_, own::StopPodResponse>("StopPod", &request, Some(LONG)).await.map(drop)
    }

    /// What the shim holds.
    pub async fn inventory(&self) -> Result<Inventory, ShimError> {
        let request = own::InventoryRequest {};
        let found: own::InventoryResponse = self.own("Inventory", &request, Some(SHORT)).await?;
        let tasks = found.containers.into_iter().map(|c| Task {
            phase: match own::Phase::try_from(c.phase) {
                Ok(own::Phase::Created) => TaskPhase::Created,
                Ok(own::Phase::Running) => TaskPhase::Running,
                Ok(own::Phase::Stopped) => TaskPhase::Stopped,
                Ok(own::Phase::Unknown) | Err(_) => TaskPhase::Unknown,
            },
            id: c.id,
            pid: c.pid,
        });
        Ok(Inventory { pod: found.pod_id, tasks: tasks.collect() })
    }

    /// Runs a command and waits for its end.
    pub async fn exec(&self, exec: Exec) -> Result<ExecResult, ShimError> {
        // The shim ends the command at its limit; ours only catches a shim that does not.
        let limit = exec.timeout.map(|t| t.saturating_add(LONG));
        let millis = exec.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let request = own::ExecSyncRequest {
            container_id: exec.id,
            argv: exec.argv,
            timeout_ms: millis,
            max_output: MAX_OUTPUT,
            key: exec.key,
        };
        let done: own::ExecSyncResponse = self.own("ExecSync", &request, limit).await?;
        let mut result = ExecResult {
            stdout: done.stdout,
            stderr: done.stderr,
            exit_code: done.exit_code,
            timed_out: done.timed_out,
        };
        if done.rest_id != 0 {
            self.read_rest(done.rest_id, &mut result).await?;
        }
        Ok(result)
    }

    /// Ends a command whose caller has gone. Ok when it has ended already.
    pub async fn cancel_exec(&self, key: u64) -> Result<(), ShimError> {
        let request = own::CancelExecRequest { key };
        self.own::<_, own::CancelExecResponse>("CancelExec", &request, Some(SHORT)).await.map(drop)
    }

    /// Output that is longer than one message comes in parts.
    async fn read_rest(&self, rest_id: u64, result: &mut ExecResult) -> Result<(), ShimError> {
        let request = own::ReadOutputRequest { rest_id };
        loop {
            let part: own::ReadOutputResponse =
                self.own("ReadOutput", &request, Some(SHORT)).await?;
            result.stdout.extend_from_slice(&part.stdout);
            result.stderr.extend_from_slice(&part.stderr);
            if part.last {
                return Ok(());
            }
        }
    }

    /// Opens the container's log path anew.
    pub async fn reopen_log(&self, id: &str) -> Result<(), ShimError> {
        let request = own::ReopenLogRequest { container_id: id.to_owned() };
        self.own::<_, own::ReopenLogResponse>("ReopenLog", &request, Some(SHORT)).await.map(drop)
    }

    /// Makes a container, up to its gate. Answers the host process id.
    pub async fn create(&self, task: CreateTask) -> Result<u32, ShimError> {
        let mut request = api::CreateTaskRequest::new();
        request.id = task.id;
        request.bundle = text(&task.bundle);
        request.rootfs = vec![overlay(&task.rootfs, &task.ids)];
        request.terminal = task.terminal;
        request.stdin = match task.stdin {
            None => String::new(),
            Some(true) => "attach:?once=1".to_owned(),
            Some(false) => "attach:".to_owned(),
        };
        request.stdout = task.log.map(|p| format!("crilog://{}", text(&p))).unwrap_or_default();
        request.stderr.clone_from(&request.stdout);
        let created = call("create", Some(LONG), self.task.create(within(LONG), &request)).await?;
        Ok(created.pid)
    }

    /// Opens the gate; answers when the program runs, or could not.
    pub async fn start(&self, id: &str) -> Result<u32, ShimError> {
        let mut request = api::StartRequest::new();
        id.clone_into(&mut request.id);
        let started = call("start", Some(LONG), self.task.start(within(LONG), &request)).await?;
        Ok(started.pid)
    }

    /// Signals the first process, or all.
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let mut request = api::KillRequest::new();
        id.clone_into(&mut request.id);
        request.signal = signal;
        request.all = all;
        call("kill", Some(SHORT), self.task.kill(within(SHORT), &request)).await.map(drop)
    }

    /// Waits for the first process's end, without a deadline.
    pub async fn wait(&self, id: &str) -> Result<Exit, ShimError> {
        let mut request = api::WaitRequest::new();
        id.clone_into(&mut request.id);
        let context = ttrpc::context::Context::default();
        let done = call("wait", None, self.task.wait(context, &request)).await?;
        let at = done.exited_at.as_ref().map_or(0, |t| {
            t.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nanos))
        });
        Ok(Exit { code: done.exit_status, at })
    }

    /// Removes a stopped container's cgroup and forgets it. Ok when it is not there.
    pub async fn delete(&self, id: &str) -> Result<(), ShimError> {
        let mut request = api::DeleteRequest::new();
        id.clone_into(&mut request.id);
        match call("delete", Some(LONG), self.task.delete(within(LONG), &request)).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Tells the shim to end. Ok when it is already gone.
    pub async fn shutdown(&self, pod: &str) -> Result<(), ShimError> {
        let mut request = api::ShutdownRequest::new();
        pod.clone_into(&mut request.id);
        request.now = true;
        match call("shutdown", Some(SHORT), self.task.shutdown(within(SHORT), &request)).await {
            Err(ShimError::Gone { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn own<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        message: &Q,
        limit: Option<Duration>,
    ) -> Result<A, ShimError> {
        let mut request = ttrpc::Request::new();
        own::SERVICE.clone_into(&mut request.service);
        method.clone_into(&mut request.method);
        request.payload = message.encode_to_vec();
        request.timeout_nano = limit.map_or(0, nanos);
        let answer = call(method, limit, self.client.request(request)).await?;
        A::decode(answer.payload.as_slice()).map_err(|_| ShimError::Garbled { method })
    }
}

/// Connects to the socket in the pod's directory, however long that path is.
pub(super) async fn dial(paths: &PodPaths) -> Result<UnixStream, ShimError> {
    // sun_path holds 108 bytes; a path through a descriptor is always short enough.
    let dir = std::fs::File::open(paths.dir()).map_err(ShimError::Connect)?;
    let name = paths.shim_socket();
    let name = name.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    match tokio::time::timeout(SHORT, UnixStream::connect(short)).await {
        Ok(stream) => stream.map_err(ShimError::Connect),
        Err(_) => {
            let seconds = SHORT.as_secs();
            Err(ShimError::Deadline { method: "connect to shim", seconds })
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn nanos(limit: Duration) -> i64 {
    i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)
}

fn within(limit: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_timeout(nanos(limit))
}

fn id_range(range: &IdRange) -> own::IdRange {
    own::IdRange { container_id: range.container, host_id: range.host, length: range.length }
}

/// containerd's form of a mapping among mount options: `uidmap=INSIDE:HOST:LENGTH`.
fn id_option(name: &str, ranges: &[IdRange]) -> Option<String> {
    let text = |r: &IdRange| format!("{}:{}:{}", r.container, r.host, r.length);
    let all: Vec<String> = ranges.iter().map(text).collect();
    (!all.is_empty()).then(|| format!("{name}={}", all.join(",")))
}

fn overlay(rootfs: &Rootfs, ids: &IdMaps) -> api::Mount {
    let lower: Vec<String> = rootfs.lower.iter().map(|p| text(p)).collect();
    let mut mount = api::Mount::new();
    mount.type_ = "overlay".to_owned();
    mount.source = "overlay".to_owned();
    mount.options = vec![
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", text(&rootfs.upper)),
        format!("workdir={}", text(&rootfs.work)),
        "volatile".to_owned(),
        "index=off".to_owned(),
        "metacopy=off".to_owned(),
    ];
    let ids = [id_option("uidmap", &ids.uids), id_option("gidmap", &ids.gids)];
    mount.options.extend(ids.into_iter().flatten());
    mount
}

async fn call<T>(
    method: &'static str,
    limit: Option<Duration>,
    asked: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, ShimError> {
    let answered = match limit {
        None => asked.await,
        Some(limit) => match tokio::time::timeout(limit, asked).await {
            Ok(answered) => answered,
            Err(_) => return Err(ShimError::Deadline { method, seconds: limit.as_secs() }),
        },
    };
    answered.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => {
            ShimError::Answer { kind: kind(status.code()), message: status.message().to_owned() }
        }
        _ => ShimError::Gone { method },
    })
}

pub(super) fn kind(code: ttrpc::Code) -> Kind {
    match code {
        ttrpc::Code::NOT_FOUND => Kind::NotFound,
        ttrpc::Code::ALREADY_EXISTS => Kind::Exists,
        ttrpc::Code::INVALID_ARGUMENT | ttrpc::Code::UNIMPLEMENTED => Kind::Invalid,
        ttrpc::Code::FAILED_PRECONDITION => Kind::NotReady,
        ttrpc::Code::UNAVAILABLE => Kind::Unavailable,
        ttrpc::Code::DEADLINE_EXCEEDED => Kind::Deadline,
        _ => Kind::Internal,
    }
}
