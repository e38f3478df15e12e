//! cgroup v2: OCI resources as control files and as a program for devices; controllers handed down.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use berth_sys::{bpf, cgroupfs};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::Cgroup;
use super::devices::{self, Rule};
use super::limits::{Moment, Setting};
use super::v1::pids_of;
use crate::error::{Error, Result, StepExt};

/// Hands every controller that `dir` has on to its children. One that can't be (its processes use
/// it) stays back; a limit that needs it then fails by its missing file.
pub(super) fn enable_controllers(dir: &Path) -> io::Result<()> {
    let has = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let file = dir.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file)?;
    let missing: Vec<String> = has
        .split_whitespace()
        .filter(|c| !on.split_whitespace().any(|o| o == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() || cgroupfs::write(&file, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    for one in &missing {
        let _ = cgroupfs::write(&file, one);
    }
    Ok(())
}

/// The writes that `resources` mean.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    for (field, asked) in [
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|all| !all.is_empty())),
    ] {
        if asked {
            let field = format!("linux.resources.{field}");
            return Err(Error::InvalidSpec { field, reason: "not supported".into() });
        }
    }
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        all.extend(memory_of(memory)?);
    }
    if let Some(cpu) = resources.cpu() {
        all.extend(cpu_of(cpu));
    }
    if let Some(pids) = resources.pids() {
        all.extend(pids_of("", pids.limit()));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", limit.page_size());
        all.push(Setting::new("", file, limit.limit()).optional());
    }
    if let Some(block_io) = resources.block_io() {
        all.extend(block_io_of(block_io));
    }
    // Sorted, so that equal specs write in equal order. Last: they override what came before.
    let unified: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') {
            let field = format!("linux.resources.unified.{file}");
            return Err(Error::InvalidSpec { field, reason: "not a control file".into() });
        }
        all.push(Setting::new("", file.clone(), value));
    }
    Ok(all)
}

/// Has the kernel ask the spec's device rules, and then what every container may use. Rules stand
/// from the creation on: what is attached cannot be told from what others attached.
pub(super) fn limit_devices(
    cgroup: &Cgroup,
    resources: &LinuxResources,
    moment: Moment,
) -> Result<()> {
    let asked = resources.devices().as_deref().unwrap_or_default();
    if asked.is_empty() {
        return Ok(());
    }
    if moment == Moment::Update {
        let field = "linux.resources.devices".to_owned();
        return Err(Error::InvalidSpec { field, reason: "can't be changed on cgroup v2".into() });
    }
    let mut rules = Rule::all(asked)?;
    rules.extend(devices::ALWAYS);
    let Some(program) = devices::program(&rules) else { return Ok(()) };
    let attach = || {
        let program = bpf::load_device_program(&program)?;
        let dir = cgroup.dir_v2().ok_or(io::ErrorKind::NotFound)?;
        bpf::attach_device_program(File::open(dir)?.as_fd(), program.as_fd())
    };
    attach().step(|| format!("attach device rules to cgroup {}", cgroup.path().display()))
}

fn memory_of(memory: &LinuxMemory) -> Result<Vec<Setting>> {
    let bytes = |file: &str, value: Option<i64>| {
        value.filter(|v| *v != 0).map(|v| Setting::new("", file, bytes_or_max(v)))
    };
    let swap = swap_only(memory.limit().unwrap_or(0), memory.swap().unwrap_or(0))?;
    let settings = [
        bytes("memory.max", memory.limit()),
        swap.map(|value| Setting::new("", "memory.swap.max", value).optional()),
        bytes("memory.low", memory.reservation()),
    ];
    Ok(settings.into_iter().flatten().collect())
}

fn bytes_or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// OCI (as v1) limits memory and swap together; v2 limits swap alone.
fn swap_only(limit: i64, both: i64) -> Result<Option<String>> {
    match (limit, both) {
        (_, 0) => Ok(None),
        (_, ..0) => Ok(Some("max".into())),
        (limit, both) if limit > 0 && both >= limit => Ok(Some((both - limit).to_string())),
        (limit, both) => Err(Error::InvalidSpec {
            field: "linux.resources.memory.swap".into(),
            reason: format!("{both} with a memory limit of {limit}"),
        }),
    }
}

fn cpu_of(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        all.push(Setting::new("", "cpu.weight", weight_of(shares)));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota = if quota > 0 { quota.to_string() } else { "max".into() };
        let period = if period == 0 { 100_000 } else { period };
        all.push(Setting::new("", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        all.push(Setting::new("", "cpu.max.burst", burst));
    }
    if let Some(idle) = cpu.idle() {
        all.push(Setting::new("", "cpu.idle", idle));
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            all.push(Setting::new("", file, value));
        }
    }
    all
}

/// v1 shares (2 to 262144, 1024 normal) as v2 weight (1 to 10000, 100 normal), by the curve runc
/// and crun use since 2025, which keeps the three fixed points
/// (<https://github.com/kubernetes/kubernetes/issues/131216>).
fn weight_of(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let shares = u32::try_from(shares).map_or(f64::from(u32::MAX), f64::from);
            let log = shares.log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            let weight = 10_f64.powf(exponent).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10000 by the bounds above"
            )]
            let weight = weight as u64;
            weight
        }
    }
}

fn block_io_of(io: &LinuxBlockIo) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(weight) = io.weight().filter(|w| *w >= 10) {
        // 10..1000 as 1..10000; BFQ's own file takes the OCI value's range.
        let weight = 1 + (u64::from(weight) - 10) * 9999 / 990;
        all.push(Setting::new("", "io.weight", weight).optional());
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            all.push(Setting::new("", "io.max", value));
        }
    };
    throttle("rbps", io.throttle_read_bps_device());
    throttle("wbps", io.throttle_write_bps_device());
    throttle("riops", io.throttle_read_iops_device());
    throttle("wiops", io.throttle_write_iops_device());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_value(json).unwrap();
        let settings = settings(&resources).unwrap();
        settings.into_iter().map(|s| (s.files[0].clone(), s.value)).collect()
    }

    #[test]
    fn resources_become_files() {
        let json = serde_json::json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 10},
            "cpu": {"shares": 1024, "quota": 50_000, "cpus": "0"},
            "pids": {"limit": -1},
            "unified": {"memory.high": "900"},
            "blockIO": {"weight": 1000, "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        });
        let want = [
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("memory.low", "10"),
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "0"),
            ("pids.max", "max"),
            ("io.weight", "10000"),
            ("io.max", "8:0 wiops=7"),
            ("memory.high", "900"),
        ];
        assert_eq!(of(json), want.map(|(f, v)| (f.to_owned(), v.to_owned())));
    }

    #[test]
    fn shares_meet_weight_at_the_fixed_points() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight_of(shares), weight, "{shares}");
        }
        assert!((3..=262_143).step_by(997).all(|s| (1..=10_000).contains(&weight_of(s))));
    }

    #[test]
    fn impossible_values_name_their_field() {
        for (json, field) in [
            (
                serde_json::json!({"memory": {"limit": 10, "swap": 5}}),
                "linux.resources.memory.swap",
            ),
            (serde_json::json!({"unified": {"../x": "1"}}), "linux.resources.unified"),
        ] {
            let resources: LinuxResources = serde_json::from_value(json).unwrap();
            let err = settings(&resources).unwrap_err();
            assert!(err.to_string().starts_with(field), "{err}");
        }
    }

    #[test]
    fn missing_controllers_are_handed_down() {
        let dir = std::env::temp_dir().join(format!("berth-v2-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "memory\n").unwrap();
        enable_controllers(&dir).unwrap();
        let written = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
        assert!(written.starts_with("+cpu +pids"), "{written}");
        fs::remove_dir_all(dir).unwrap();
    }
}
