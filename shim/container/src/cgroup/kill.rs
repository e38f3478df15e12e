//! Who is inside a cgroup directory, and their end.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_sys::{cgroupfs, process};

/// How long a v1 freezer may take to stop everything before we kill what we see anyway.
const FREEZE: Duration = Duration::from_millis(500);
/// Rounds of killing on kernels that can't kill a cgroup at once.
const ROUNDS: usize = 100;

/// Ids of the processes in `dir` and below; none where it is gone.
pub(super) fn pids(dir: &Path) -> io::Result<Vec<u32>> {
    let mut all = Vec::new();
    visit(dir, &mut |dir| {
        let text = match fs::read_to_string(dir.join("cgroup.procs")) {
            // A threaded v2 cgroup lists its processes in its domain instead.
            Err(err) if gone(&err) || err.raw_os_error() == Some(95) => return Ok(()),
            other => other?,
        };
        all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        Ok(())
    })?;
    Ok(all)
}

/// The number after `key` in `file` of `dir`; with `deep` summed over the directories below.
pub(super) fn sum_of(dir: &Path, file: &str, key: &str, deep: bool) -> io::Result<u64> {
    let mut sum = 0;
    let mut add = |dir: &Path| {
        let text = match fs::read_to_string(dir.join(file)) {
            Err(err) if gone(&err) => return Ok(()),
            other => other?,
        };
        sum += number_after(&text, key);
        Ok(())
    };
    if deep {
        visit(dir, &mut add)?
    } else {
        add(dir)?
    }
    Ok(sum)
}

fn number_after(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
}

/// cgroup.kill (kernel 5.14); before that freeze, signal, thaw.
pub(super) fn kill_v2(dir: &Path) -> io::Result<()> {
    match cgroupfs::write(&dir.join("cgroup.kill"), "1") {
        Err(err) if gone(&err) && dir.exists() => {
            kill_frozen(dir, &dir.join("cgroup.freeze"), ("1", "0"), &|| {
                let events = fs::read_to_string(dir.join("cgroup.events"))?;
                Ok(number_after(&events, "frozen ") == 1)
            })
        }
        Err(err) if gone(&err) => Ok(()),
        other => other,
    }
}

/// The freezer hierarchy's way: nothing can fork while it is frozen.
pub(super) fn kill_v1(dir: &Path) -> io::Result<()> {
    let state = dir.join("freezer.state");
    kill_frozen(dir, &state, ("FROZEN", "THAWED"), &|| {
        Ok(fs::read_to_string(&state)?.trim() == "FROZEN")
    })
}

fn kill_frozen(
    dir: &Path,
    file: &Path,
    (freeze, thaw): (&str, &str),
    frozen: &dyn Fn() -> io::Result<bool>,
) -> io::Result<()> {
    for _ in 0..ROUNDS {
        if pids(dir)?.is_empty() {
            return Ok(());
        }
        cgroupfs::write(file, freeze)?;
        let deadline = Instant::now() + FREEZE;
        let stopped = loop {
            if frozen()? {
                break true;
            }
            if Instant::now() >= deadline {
                break false;
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        let signalled = signal_all(dir);
        cgroupfs::write(file, thaw)?;
        signalled?;
        if stopped {
            return Ok(());
        }
    }
    Ok(())
}

fn signal_all(dir: &Path) -> io::Result<()> {
    for pid in pids(dir)? {
        // Gone meanwhile: fine. The id can't be another's while its group is frozen.
        if let Ok(handle) = process::pidfd_open(pid) {
            let _ = process::signal(std::os::fd::AsFd::as_fd(&handle), 9);
        }
    }
    Ok(())
}

fn visit(dir: &Path, each: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    each(dir)?;
    let entries = match fs::read_dir(dir) {
        Err(err) if gone(&err) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), each)?;
        }
    }
    Ok(())
}

/// Absent, or removed while open (ENODEV).
fn gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(19)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Machines without any v2 hierarchy are gone, their freezer isn't.
    #[test]
    fn a_freezer_group_is_killed_whole() {
        let root = Path::new("/sys/fs/cgroup/freezer");
        if !root.join("cgroup.procs").exists() || !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = root.join(format!("berth-test-{}-kill", std::process::id()));
        fs::create_dir_all(dir.join("below")).unwrap();
        // Waits for a line before it spreads, so that it is in the group by then.
        let script = "read x; yes 0.2 | xargs -n 1 -P 30 sleep";
        let mut shells: Vec<_> = [dir.clone(), dir.join("below")]
            .into_iter()
            .map(|dir| {
                let mut shell = Command::new("busybox");
                let shell = shell.args(["sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
                cgroupfs::write(&dir.join("cgroup.procs"), &shell.id().to_string()).unwrap();
                shell
            })
            .collect();
        for shell in &mut shells {
            drop(io::Write::write_all(shell.stdin.as_mut().unwrap(), b"go\n"));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while pids(&dir).unwrap().len() < 40 {
            assert!(Instant::now() < deadline, "it doesn't spread");
        }
        kill_v1(&dir).unwrap();
        for shell in &mut shells {
            shell.wait().unwrap();
        }
        while !pids(&dir).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "something lives on");
        }
        kill_v1(&dir).unwrap();
        fs::remove_dir(dir.join("below")).unwrap();
        fs::remove_dir(&dir).unwrap();
        kill_v1(&dir).unwrap();
        assert_eq!(pids(&dir).unwrap(), Vec::<u32>::new(), "gone");
    }

    #[test]
    fn counters_are_read_from_their_line() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(number_after(text, "oom_kill "), 3);
        assert_eq!(number_after("low 0\noom 1\n", "oom_kill "), 0);
    }
}
