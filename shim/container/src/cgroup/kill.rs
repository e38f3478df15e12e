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
