//! cgroup v1: OCI resources as control files, and the cpuset's inheritance.

use std::fs;
use std::io;
use std::path::Path;

use berth_sys::cgroupfs;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

use super::devices::{self, Rule};
use super::limits::{Moment, Setting};
use crate::error::{Error, Result};

/// A new v1 cpuset is empty and takes no process until it has both.
pub(super) fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(dir.join(file))?;
        if own.trim().is_empty() {
            let above = fs::read_to_string(parent.join(file))?;
            cgroupfs::write(&dir.join(file), above.trim())?;
        }
    }
    Ok(())
}

/// The writes that `resources` mean.
pub(super) fn settings(resources: &LinuxResources, moment: Moment) -> Result<Vec<Setting>> {
    refuse(resources)?;
    let mut all = Vec::new();
    if let Some(devices) = resources.devices().as_ref().filter(|d| !d.is_empty()) {
        all.extend(devices_of(devices, moment)?);
    }
    if let Some(memory) = resources.memory() {
        all.extend(memory_of(memory));
    }
    if let Some(cpu) = resources.cpu() {
        all.extend(cpu_of(cpu));
    }
    if let Some(pids) = resources.pids() {
        all.extend(pids_of("pids", pids.limit()));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size());
        all.push(Setting::new("hugetlb", file, limit.limit()).optional());
    }
    if let Some(block_io) = resources.block_io() {
        all.extend(block_io_of(block_io));
    }
    Ok(all)
}

fn refuse(resources: &LinuxResources) -> Result<()> {
    let asked = [
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|all| !all.is_empty())),
        ("unified", resources.unified().as_ref().is_some_and(|all| !all.is_empty())),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(Error::InvalidSpec {
            field: format!("linux.resources.{field}"),
            reason: "not supported on cgroup v1".into(),
        }),
        None => Ok(()),
    }
}

/// Positive: the number. Negative: none. 0: leave as it is.
pub(super) fn pids_of(controller: &'static str, limit: i64) -> Option<Setting> {
    match limit {
        0 => None,
        ..0 => Some(Setting::new(controller, "pids.max", "max")),
        limit => Some(Setting::new(controller, "pids.max", limit)),
    }
}

fn memory_of(memory: &LinuxMemory) -> Vec<Setting> {
    let bytes = |file: &str, value: Option<i64>| {
        value.filter(|v| *v != 0).map(|v| Setting::new("memory", file, v))
    };
    [
        bytes("memory.limit_in_bytes", memory.limit()),
        bytes("memory.memsw.limit_in_bytes", memory.swap()),
        bytes("memory.soft_limit_in_bytes", memory.reservation()),
        bytes("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp()),
        memory.swappiness().map(|v| Setting::new("memory", "memory.swappiness", v)),
        memory
            .disable_oom_killer()
            .filter(|off| *off)
            .map(|_| Setting::new("memory", "memory.oom_control", 1)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn cpu_of(cpu: &LinuxCpu) -> Vec<Setting> {
    let some = |file: &str, value: Option<String>| {
        value.filter(|v| v != "0").map(|v| Setting::new("cpu", file, v))
    };
    let set = |file: &str, value: &Option<String>| {
        value.as_ref().filter(|v| !v.is_empty()).map(|v| Setting::new("cpuset", file, v))
    };
    [
        some("cpu.shares", cpu.shares().map(|v| v.to_string())),
        some("cpu.cfs_period_us", cpu.period().map(|v| v.to_string())),
        some("cpu.cfs_quota_us", cpu.quota().map(|v| v.to_string())),
        some("cpu.cfs_burst_us", cpu.burst().map(|v| v.to_string())),
        some("cpu.rt_period_us", cpu.realtime_period().map(|v| v.to_string())),
        some("cpu.rt_runtime_us", cpu.realtime_runtime().map(|v| v.to_string())),
        some("cpu.idle", cpu.idle().map(|v| v.to_string())),
        set("cpuset.cpus", cpu.cpus()),
        set("cpuset.mems", cpu.mems()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn block_io_of(io: &LinuxBlockIo) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        let setting = Setting::new("blkio", "blkio.weight", weight);
        all.push(setting.or_file("blkio.bfq.weight").optional());
    }
    let mut throttle = |what: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            all.push(Setting::new("blkio", format!("blkio.throttle.{what}_device"), value));
        }
    };
    throttle("read_bps", io.throttle_read_bps_device());
    throttle("write_bps", io.throttle_write_bps_device());
    throttle("read_iops", io.throttle_read_iops_device());
    throttle("write_iops", io.throttle_write_iops_device());
    for device in io.weight_device().iter().flatten() {
        let Some(weight) = device.weight() else { continue };
        let value = format!("{}:{} {weight}", device.major(), device.minor());
        let setting = Setting::new("blkio", "blkio.weight_device", value);
        all.push(setting.or_file("blkio.bfq.weight_device").optional());
    }
    all
}

/// In order, so that a later rule overrides an earlier one; then what is always allowed.
fn devices_of(rules: &[LinuxDeviceCgroup], moment: Moment) -> Result<Vec<Setting>> {
    let mut rules = Rule::all(rules)?;
    if moment == Moment::Create {
        rules.extend(devices::ALWAYS);
    }
    let write = |rule: &Rule| {
        let file = if rule.allows() { "devices.allow" } else { "devices.deny" };
        Setting::new("devices", file, rule)
    };
    Ok(rules.iter().map(write).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_value(json).unwrap();
        let settings = settings(&resources, Moment::Update).unwrap();
        settings.into_iter().map(|s| (s.files[0].clone(), s.value)).collect()
    }

    #[test]
    fn resources_become_files() {
        let json = serde_json::json!({
            "memory": {"limit": 1000, "swap": 2000, "reservation": 0},
            "cpu": {"shares": 512, "quota": -1, "period": 100_000, "cpus": "0-1", "mems": ""},
            "pids": {"limit": 10},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        });
        let want = [
            ("memory.limit_in_bytes", "1000"),
            ("memory.memsw.limit_in_bytes", "2000"),
            ("cpu.shares", "512"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "-1"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "10"),
            ("hugetlb.2MB.limit_in_bytes", "0"),
            ("blkio.throttle.read_bps_device", "8:0 7"),
        ];
        assert_eq!(of(json), want.map(|(f, v)| (f.to_owned(), v.to_owned())));
    }

    #[test]
    fn device_rules_keep_their_order() {
        let json = serde_json::json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]});
        let want = [("devices.deny", "a *:* rwm"), ("devices.allow", "c 10:229 rw")];
        assert_eq!(of(json), want.map(|(f, v)| (f.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_v1_lacks_is_refused_by_name() {
        let json = serde_json::json!({"unified": {"memory.high": "1"}});
        let resources: LinuxResources = serde_json::from_value(json).unwrap();
        let err = settings(&resources, Moment::Create).unwrap_err();
        assert!(err.to_string().starts_with("linux.resources.unified"), "{err}");
    }
}
