//! Starts shims, each born inside `[shim] cgroup`.
//!
//! On cgroup v1 a child is born where the *thread* that forks it is, so one thread sits in that
//! cgroup for the daemon's life and does nothing but start shims. On v2 the resident shim is
//! moved right after its start, before it has a child of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use berth_proto::ids::PodId;
use berth_proto::paths::PodPaths;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::cgroups::{CgroupError, Hierarchies};
use super::{Process, ShimError};

/// How long the start verb may take.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How much of the shim's log goes into an error.
const LOG_TAIL: usize = 2048;

struct Order {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts shims.
#[derive(Debug)]
pub struct Launcher {
    binary: PathBuf,
    cgroup: String,
    cgroups: Hierarchies,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Launcher {
    /// Makes `cgroup` and the thread that sits in it. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When the cgroup cannot be made or joined: shims would be born inside the daemon's own.
    pub fn start(
        binary: PathBuf,
        cgroup: String,
        cgroups: Hierarchies,
    ) -> Result<Self, CgroupError> {
        let (orders, inbox) = mpsc::channel::<Order>();
        let (ready, joined) = mpsc::channel();
        let runtime = tokio::runtime::Handle::current();
        let place = (cgroups.clone(), cgroup.clone());
        let failed = |source| CgroupError::Io {
            what: "start the thread for",
            path: PathBuf::from(&cgroup),
            source,
        };
        let thread = std::thread::Builder::new()
            .name("shim-launcher".to_owned())
            .spawn(move || {
                let outcome = place.0.join_thread(&place.1);
                let stay = outcome.is_ok();
                // The one who waits for this is just below.
                let _ = ready.send(outcome);
                let _guard = runtime.enter();
                while let (true, Ok(mut order)) = (stay, inbox.recv()) {
                    // Nobody waits any more: the child is killed by its drop.
                    let _ = order.reply.send(order.command.spawn());
                }
            })
            .map_err(failed)?;
        joined.recv().map_err(|e| failed(io::Error::other(e)))??;
        Ok(Self { binary, cgroup, cgroups, orders: Some(orders), thread: Some(thread) })
    }

    /// Runs the start verb in the pod's directory, which must be there. Answers when the
    /// resident shim listens. If the future is dropped, a shim may be left: see
    /// [`super::find_by_directory`].
    pub async fn launch(&self, pod: &PodId, paths: &PodPaths) -> Result<Process, ShimError> {
        let child = self.spawn(self.command(pod, paths)).await?;
        let output = match tokio::time::timeout(START_LIMIT, child.wait_with_output()).await {
            Ok(output) => output.map_err(launch("wait for the start verb"))?,
            Err(_) => {
                let seconds = START_LIMIT.as_secs();
                return Err(ShimError::Deadline { method: "start shim", seconds });
            }
        };
        if !output.status.success() {
            let status = output.status.to_string();
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ShimError::Refused { status, stderr });
        }
        let process = resident(paths)?;
        if self.cgroups.unified() {
            let moved = self.cgroups.adopt(&self.cgroup, process.pid());
            moved.map_err(|e| launch("move into [shim] cgroup")(io::Error::other(e)))?;
        }
        Ok(process)
    }

    fn command(&self, pod: &PodId, paths: &PodPaths) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["-namespace", "k8s.io", "-id", pod.as_str(), "-address", "", "start"])
            .current_dir(paths.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn spawn(&self, command: Command) -> Result<Child, ShimError> {
        let gone = || launch("reach the launcher thread")(io::ErrorKind::BrokenPipe.into());
        let (reply, answer) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { command, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(launch("run the start verb"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It only panics if spawning does, which was reported as a broken channel.
            let _ = thread.join();
        }
        // Stays while shims live in it; then the next daemon's end takes it away.
        self.cgroups.remove_if_empty(&self.cgroup);
    }
}

fn launch(what: &'static str) -> impl Fn(io::Error) -> ShimError {
    move |source| ShimError::Launch { what, source }
}

/// Takes hold of the shim that wrote the pid file.
pub(crate) fn resident(paths: &PodPaths) -> Result<Process, ShimError> {
    let text = std::fs::read_to_string(paths.shim_pid()).map_err(launch("read shim.pid"))?;
    let pid = text
        .trim()
        .parse()
        .map_err(|e| launch("read shim.pid")(io::Error::new(io::ErrorKind::InvalidData, e)))?;
    Process::open(pid).map_err(launch("find the process of shim.pid"))
}

/// The end of a shim's log.
pub(crate) fn log_tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let from = text.len().saturating_sub(LOG_TAIL);
    String::from_utf8_lossy(text.get(from..).unwrap_or_default()).trim().to_owned()
}
