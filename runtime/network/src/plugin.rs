//! One run of one plugin.
//!
//! The plugin gets a process group of its own, which is killed as a whole when the run takes too
//! long or is stopped. It reads its configuration from a file that stands as its standard input;
//! the file is locked, see [`Input`](crate::cache::Input). Its environment holds CNI's variables
//! and PATH, nothing else of the daemon's.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::error::{PluginError, Stderr};
use crate::work::Stop;

/// A result of more than this is no result.
const OUTPUT_MAX: usize = 1 << 20;
/// What is kept of standard error, and shown of a senseless output.
const EXCERPT_MAX: usize = 2048;
/// How long a killed plugin may take to be gone.
const REAP: Duration = Duration::from_secs(2);
/// A plugin being replaced is busy for a moment; libcni waits in the same way.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(5);
/// For a daemon started without one: plugins run iptables, tc and the like by name.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plugin is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Look whether an attachment is as ADD made it.
    Check,
    /// Say whether ADD would work.
    Status,
    /// Free what belongs to no valid attachment.
    Gc,
}

impl Verb {
    /// CNI_COMMAND's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The variables that all plugins of one chain see. STATUS and GC concern no attachment: for them
/// most are empty.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) verb: Verb,
    pub(crate) id: String,
    /// Empty when the namespace is gone.
    pub(crate) netns: PathBuf,
    pub(crate) ifname: String,
    pub(crate) args: String,
    pub(crate) bin_dirs: Vec<PathBuf>,
}

impl Environment {
    fn variables(&self) -> [(&'static str, OsString); 7] {
        let dirs = env::join_paths(&self.bin_dirs).unwrap_or_default();
        [
            ("CNI_COMMAND", self.verb.as_str().into()),
            ("CNI_CONTAINERID", self.id.clone().into()),
            ("CNI_NETNS", self.netns.clone().into()),
            ("CNI_IFNAME", self.ifname.clone().into()),
            ("CNI_ARGS", self.args.clone().into()),
            ("CNI_PATH", dirs),
            ("PATH", env::var_os("PATH").unwrap_or_else(|| PATH.into())),
        ]
    }
}

/// The first file named `kind` in `dirs`.
pub(crate) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let found = dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
    found.ok_or_else(|| PluginError::NotFound { dirs: dirs.to_vec() })
}

/// Runs the plugin at `path` and returns what it wrote to standard output, after it succeeded.
///
/// Not to be dropped half-way: the process group would live on. [`work`](crate::work) sees to it.
pub(crate) async fn run(
    path: &Path,
    environment: &Environment,
    stdin: Stdio,
    deadline: Duration,
    stop: &Stop,
) -> Result<Vec<u8>, PluginError> {
    let failed = |source| PluginError::Run { path: path.to_owned(), source };
    let mut child = spawn(path, environment, stdin).await.map_err(failed)?;
    let mut said = Said::default();
    let outcome = tokio::select! {
        ended = said.until_end(&mut child) => ended.map_err(failed),
        () = sleep(deadline) => Err(PluginError::Deadline { after: deadline, stderr: Stderr::default() }),
        () = stop.asked() => Err(PluginError::Stopped),
    };
    match outcome {
        Ok(status) => said.judge(status),
        Err(error) => {
            kill(&mut child).await;
            Err(match error {
                PluginError::Deadline { after, .. } => {
                    PluginError::Deadline { after, stderr: said.stderr() }
                }
                other => other,
            })
        }
    }
}

async fn spawn(path: &Path, environment: &Environment, stdin: Stdio) -> io::Result<Child> {
    let mut command = Command::new(path);
    command
        .env_clear()
        .envs(environment.variables())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let began = Instant::now();
    loop {
        match command.spawn() {
            Err(e)
                if e.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < BUSY_MAX =>
            {
                sleep(BUSY_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Kills the child's process group and waits for the child. The child has not been reaped, so its
/// group's number is still its own.
async fn kill(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, Signal::KILL)
    {
        tracing::warn!(%error, group = group.as_raw_pid(), "kill a plugin's process group");
    }
    // One stuck in the kernel is left to tokio's reaper.
    if timeout(REAP, child.wait()).await.is_err() {
        tracing::warn!(group = ?group, "a killed plugin does not end");
    }
}

/// What a plugin wrote so far.
#[derive(Debug, Default)]
struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Said {
    /// Reads both streams to their ends, then reaps.
    async fn until_end(&mut self, child: &mut Child) -> io::Result<ExitStatus> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        tokio::try_join!(
            keep(stdout, &mut self.stdout, OUTPUT_MAX + 1),
            keep(stderr, &mut self.stderr, EXCERPT_MAX),
        )?;
        child.wait().await
    }

    fn judge(self, status: ExitStatus) -> Result<Vec<u8>, PluginError> {
        if status.success() {
            if self.stdout.len() <= OUTPUT_MAX {
                return Ok(self.stdout);
            }
            let why = format!("longer than {OUTPUT_MAX} bytes");
            return Err(self.rubbish(why));
        }
        Err(match serde_json::from_slice::<Refusal>(&self.stdout) {
            Ok(Refusal { code, msg, details }) => PluginError::Refused {
                code,
                msg,
                details: details.map_or_else(String::new, |d| text_of(&d)),
                stderr: self.stderr(),
            },
            Err(_) => PluginError::Crashed {
                status,
                output: excerpt(&self.stdout),
                stderr: self.stderr(),
            },
        })
    }

    fn rubbish(&self, why: String) -> PluginError {
        PluginError::Rubbish { why, output: excerpt(&self.stdout), stderr: self.stderr() }
    }

    fn stderr(&self) -> Stderr {
        Stderr(excerpt(&self.stderr).trim_end().to_owned())
    }
}

/// The error object of CNI. Some plugins leave out the code or put an object into the details.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u32,
    msg: String,
    #[serde(default)]
    details: Option<Value>,
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Reads to the end and keeps the first `most` bytes.
async fn keep(
    stream: Option<impl AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    most: usize,
) -> io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut chunk = vec![0; 8192];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let fits = length.min(most.saturating_sub(kept.len()));
        kept.extend(chunk.iter().take(fits));
    }
}

/// The beginning of some output, as text.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let shown = bytes.get(..EXCERPT_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(shown).into_owned()
}
