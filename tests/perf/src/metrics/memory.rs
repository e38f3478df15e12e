//! Proportional set size: a process's own memory and its share of what it shares.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Target;
use crate::images::APP;

/// The memory of one process in bytes; None when it has ended.
pub(super) fn pss(pid: u32) -> Result<Option<u64>> {
    // proc(5): ENOENT before, ESRCH after the file was opened.
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
        return Ok(None);
    };
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kibibytes = line.context("smaps_rollup lacks Pss")?.trim().trim_end_matches(" kB");
    Ok(Some(kibibytes.parse::<u64>()? * 1024))
}

/// The memory of everything that is the runtime's: daemon, shims, pause processes; not of the
/// program in the containers. In bytes; None where it isn't known which processes those are.
pub(super) fn runtime(target: &Target) -> Result<Option<u64>> {
    let mut processes = match &target.account {
        Some(account) => account.processes()?,
        None if target.programs.is_empty() => return Ok(None),
        None => Vec::new(),
    };
    if !target.programs.is_empty() {
        processes.extend(named(&target.programs)?);
    }
    processes.sort_unstable();
    processes.dedup();
    let mut sum = 0;
    for pid in processes {
        if program(pid).is_none_or(|name| Some(name.as_str()) != APP.strip_prefix('/')) {
            sum += pss(pid)?.unwrap_or(0);
        }
    }
    Ok(Some(sum))
}

/// The processes that run one of these programs.
fn named(programs: &[String]) -> Result<Vec<u32>> {
    let processes = fs::read_dir("/proc")?.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        programs.contains(&program(pid)?).then_some(pid)
    });
    Ok(processes.collect())
}

/// The file name of the program that a process runs.
fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(Path::new(&path).file_name()?.to_string_lossy().into_owned())
}

/// Bytes as tables show a daemon's memory.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    kibibytes(bytes) / 1024.0
}

/// Bytes as tables show a pod's memory.
#[expect(clippy::cast_precision_loss, reason = "no process has 2^53 bytes")]
pub(super) fn kibibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_name() {
        let own = std::process::id();
        assert!(pss(own).unwrap().unwrap() > 100 * 1024);
        let name = program(own).unwrap();
        assert!(named(&[name]).unwrap().contains(&own));
    }
}
