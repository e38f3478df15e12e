//! A shim's process, held by a pidfd so that its number cannot come to mean another.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that is not our child.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of the process with this id; `NotFound` when there is none.
    /// Must run inside a tokio runtime.
    pub fn open(pid: u32) -> io::Result<Self> {
        let no_such = || io::Error::from(io::ErrorKind::NotFound);
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_such)?;
        let fd = pidfd_open(number, PidfdFlags::NONBLOCK).map_err(|error| match error {
            rustix::io::Errno::SRCH => no_such(),
            other => other.into(),
        })?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that may swap their fd; \
                                       an OwnedFd never does"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self { pid, fd })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended. Dropping the future is safe.
    pub async fn ended(&self) -> io::Result<()> {
        // A pidfd stays readable once its process has ended, so readiness needs no clearing.
        self.fd.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// SIGKILL, then waits until it has ended.
    pub async fn kill(&self, deadline: Duration) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        match tokio::time::timeout(deadline, self.ended()).await {
            Ok(ended) => ended,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Processes whose working directory is (or was, before its removal) `dir`: shims keep theirs.
/// Finds the one that was born after its daemon died and before it wrote its pid file.
#[must_use]
pub fn find_by_directory(dir: &Path) -> Vec<u32> {
    let gone = format!("{} (deleted)", dir.display());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd == dir || cwd.as_os_str() == gone.as_str())
        })
        .collect()
}

/// When a process began, in clock ticks since boot (field 22 of /proc/PID/stat). With the pid it
/// names one process for the time of a boot.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and brackets; the last bracket ends it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the process that was recorded so still has this id.
#[must_use]
pub fn same_process((pid, started): (u32, u64)) -> bool {
    pid != 0 && start_time(pid) == Some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_process_is_seen_to_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let began = start_time(child.id()).unwrap();
        assert!(same_process((child.id(), began)));
        assert!(!same_process((child.id(), began + 1)));
        process.kill(Duration::from_secs(5)).await.unwrap();
        process.ended().await.unwrap();
        child.wait().unwrap();
        assert_eq!(Process::open(child.id()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_process_is_found_by_its_directory_even_a_removed_one() {
        let dir = std::env::temp_dir().join(format!("berth-test-cwd-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(&dir).spawn().unwrap();
        assert_eq!(find_by_directory(&dir), [child.id()]);
        fs::remove_dir(&dir).unwrap();
        assert_eq!(find_by_directory(&dir), [child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
