//! Figures of a cgroup, on either layout. What a kernel does not tell is absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::shim::Hierarchies;

/// Limits from here on are none: v1 writes the largest number of pages.
const UNLIMITED: u64 = 1 << 62;

/// What a cgroup has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// CPU time since it was made, in nanoseconds.
    pub cpu: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Bytes in swap, and the limit on them.
    pub swap: Option<(u64, Option<u64>)>,
    /// Pressure on CPU, memory and I/O.
    pub pressure: [Option<Pressure>; 3],
}

/// In bytes but the faults, which are counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged.
    pub usage: u64,
    /// Usage without inactive file pages.
    pub working_set: u64,
    /// Absent without a limit.
    pub limit: Option<u64>,
    /// Anonymous pages.
    pub rss: u64,
    /// Since it was made.
    pub faults: u64,
    /// Those that read the disk.
    pub major_faults: u64,
}

/// Pressure stall information.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// All tasks at once.
    pub full: Stall,
    /// At least one.
    pub some: Stall,
}

/// A line of a pressure file: percent, and microseconds in total.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stall {
    /// Of the last 10 seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Since it was made.
    pub total: u64,
}

/// Reads all figures; an error of kind `NotFound` if the cgroup is not there (any more). Blocks.
pub fn read(hierarchies: &Hierarchies, cgroup: &str) -> io::Result<Figures> {
    if let Some(dir) = hierarchies.directory("memory", cgroup) {
        let cpu = hierarchies.directory("cpuacct", cgroup);
        return v1(&dir, cpu.as_deref());
    }
    match hierarchies.unified_directory(cgroup) {
        Some(dir) => v2(&dir),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The processes in a cgroup and below it. Blocks.
pub fn processes(hierarchies: &Hierarchies, cgroup: &str) -> u64 {
    let of_v1 = ["pids", "memory"].iter().find_map(|name| hierarchies.directory(name, cgroup));
    let dir = of_v1.or_else(|| hierarchies.unified_directory(cgroup));
    dir.map_or(0, |dir| count(&dir))
}

fn count(dir: &Path) -> u64 {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    below.iter().fold(procs.lines().count() as u64, |sum, dir| sum.saturating_add(count(dir)))
}

fn number(path: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A line `NAME VALUE`.
fn named(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.trim().parse().ok()
}

fn limit(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value < UNLIMITED)
}

fn v1(memory: &Path, cpu: Option<&Path>) -> io::Result<Figures> {
    let stat = fs::read_to_string(memory.join("memory.stat"))?;
    let of = |name: &str| named(&stat, name).unwrap_or(0);
    let usage = number(&memory.join("memory.usage_in_bytes"))?.unwrap_or(0);
    let memory_limit = limit(number(&memory.join("memory.limit_in_bytes"))?);
    let both_limit = limit(number(&memory.join("memory.memsw.limit_in_bytes"))?);
    let swap_limit = both_limit.zip(memory_limit).map(|(both, memory)| both.saturating_sub(memory));
    Ok(Figures {
        cpu: cpu.map(|dir| number(&dir.join("cpuacct.usage"))).transpose()?.flatten(),
        memory: Some(Memory {
            usage,
            working_set: usage.saturating_sub(of("total_inactive_file")),
            limit: memory_limit,
            rss: of("total_rss"),
            faults: of("total_pgfault"),
            major_faults: of("total_pgmajfault"),
        }),
        swap: named(&stat, "total_swap").map(|used| (used, swap_limit)),
        pressure: [None, None, None],
    })
}

fn v2(dir: &Path) -> io::Result<Figures> {
    let cpu = fs::read_to_string(dir.join("cpu.stat"))?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let of = |name: &str| named(&stat, name).unwrap_or(0);
    let memory = number(&dir.join("memory.current"))?.map(|usage| -> io::Result<Memory> {
        Ok(Memory {
            usage,
            working_set: usage.saturating_sub(of("inactive_file")),
            limit: limit(number(&dir.join("memory.max"))?),
            rss: of("anon"),
            faults: of("pgfault"),
            major_faults: of("pgmajfault"),
        })
    });
    let swap_limit = limit(number(&dir.join("memory.swap.max"))?);
    let pressure = ["cpu.pressure", "memory.pressure", "io.pressure"];
    Ok(Figures {
        cpu: named(&cpu, "usage_usec").map(|micros| micros.saturating_mul(1000)),
        memory: memory.transpose()?,
        swap: number(&dir.join("memory.swap.current"))?.map(|used| (used, swap_limit)),
        pressure: pressure
            .map(|name| fs::read_to_string(dir.join(name)).ok().and_then(|text| stalls(&text))),
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn stalls(text: &str) -> Option<Pressure> {
    let line = |word: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
        let value = |name: &str| {
            line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Stall {
            avg10: value("avg10")?.parse().ok()?,
            avg60: value("avg60")?.parse().ok()?,
            avg300: value("avg300")?.parse().ok()?,
            total: value("total")?.parse().ok()?,
        })
    };
    // Of a CPU, "full" is there from kernel 5.13 on.
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_dir::TestDir;

    fn files(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn both_layouts_are_read() {
        let dir = TestDir::new("stats-v1");
        let stat = "rss 1\ntotal_rss 4096\ntotal_inactive_file 1000\ntotal_pgfault 7\n\
                    total_pgmajfault 2\ntotal_swap 5\n";
        let v1_files = [
            ("memory.stat", stat),
            ("memory.usage_in_bytes", "5000\n"),
            ("memory.limit_in_bytes", "9000\n"),
            ("memory.memsw.limit_in_bytes", "10000\n"),
            ("cpuacct.usage", "123\n"),
        ];
        files(dir.path(), &v1_files);
        let memory = Memory {
            usage: 5000,
            working_set: 4000,
            limit: Some(9000),
            rss: 4096,
            faults: 7,
            major_faults: 2,
        };
        let expected = Figures {
            cpu: Some(123),
            memory: Some(memory.clone()),
            swap: Some((5, Some(1000))),
            pressure: [None, None, None],
        };
        assert_eq!(v1(dir.path(), Some(dir.path())).unwrap(), expected);
        files(dir.path(), &[("memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(v1(dir.path(), None).unwrap().memory.unwrap().limit, None);

        let dir = TestDir::new("stats-v2");
        let psi = "some avg10=1.50 avg60=0.20 avg300=0.00 total=99\n\
                   full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let v2_files = [
            ("cpu.stat", "usage_usec 2\nuser_usec 1\n"),
            ("memory.current", "5000\n"),
            ("memory.max", "9000\n"),
            ("memory.stat", "anon 4096\ninactive_file 1000\npgfault 7\npgmajfault 2\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "max\n"),
            ("memory.pressure", psi),
        ];
        files(dir.path(), &v2_files);
        let read = v2(dir.path()).unwrap();
        assert_eq!((read.cpu, read.memory, read.swap), (Some(2000), Some(memory), Some((5, None))));
        let [None, Some(pressure), None] = read.pressure else { panic!("{:?}", read.pressure) };
        assert_eq!((pressure.some.avg10, pressure.some.total, pressure.full.total), (1.5, 99, 3));
    }

    #[test]
    fn a_cgroup_that_is_gone_is_not_found() {
        let gone = Path::new("/nonexistent/cgroup");
        assert_eq!(v1(gone, Some(gone)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(v2(gone).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
