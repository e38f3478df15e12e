//! `process` of the spec: who runs what.

use std::ffi::CString;
use std::path::PathBuf;

use berth_sys::creds::Capabilities;
use oci_spec::runtime::{
    Capabilities as CapabilityNames, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType,
    Process,
};

use super::{c_string, invalid};
use crate::error::Result;
use crate::user::IdMaps;

/// A limit to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RlimitPlan {
    pub(crate) name: &'static str,
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// A program and everything about the process that becomes it.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// Value of PATH in `env`.
    pub(crate) path: Option<String>,
    pub(crate) has_home: bool,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privs: bool,
    pub(crate) rlimits: Vec<RlimitPlan>,
    pub(crate) oom_score_adj: Option<i32>,
    /// Columns and rows where a terminal is asked for; 0: leave.
    pub(crate) terminal: Option<(u16, u16)>,
}

impl ProcessPlan {
    /// Reads `process`; `field` is its name in messages.
    pub(crate) fn read(process: &Process, field: &str) -> Result<Self> {
        refuse(process, field)?;
        let args = process.args().as_deref().unwrap_or_default();
        if args.first().is_none_or(String::is_empty) {
            return Err(invalid(format!("{field}.args"), "no program"));
        }
        let c_strings = |list: &[String], name: &str| -> Result<Vec<CString>> {
            list.iter().map(|text| c_string(text, || format!("{field}.{name}"))).collect()
        };
        let env = process.env().as_deref().unwrap_or_default();
        if let Some(bad) = env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
            return Err(invalid(format!("{field}.env"), format!("{bad:?} is not NAME=value")));
        }
        let cwd = process.cwd().clone();
        if !cwd.is_absolute() {
            return Err(invalid(format!("{field}.cwd"), format!("{cwd:?} is not absolute")));
        }
        let user = process.user();
        let value_of = |name: &str| {
            env.iter()
                .rev()
                .find_map(|e| e.strip_prefix(name)?.strip_prefix('='))
                .map(str::to_owned)
        };
        Ok(Self {
            args: c_strings(args, "args")?,
            env: c_strings(env, "env")?,
            path: value_of("PATH"),
            has_home: value_of("HOME").is_some_and(|home| !home.is_empty()),
            cwd,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022) & 0o777,
            capabilities: capabilities(process.capabilities().as_ref()),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default(), field)?,
            oom_score_adj: process.oom_score_adj(),
            terminal: terminal(process),
        })
    }
}

impl ProcessPlan {
    /// Refuses ids that nobody has in the user namespace.
    pub(crate) fn check_ids(&self, maps: Option<&IdMaps>, field: &str) -> Result<()> {
        let Some(maps) = maps else { return Ok(()) };
        let refuse = |name: &str, id: u32| {
            let field = format!("{field}.user.{name}");
            Err(invalid(field, format!("{id} is not mapped in the user namespace")))
        };
        if maps.host_uid(self.uid).is_none() {
            return refuse("uid", self.uid);
        }
        if maps.host_gid(self.gid).is_none() {
            return refuse("gid", self.gid);
        }
        match self.groups.iter().find(|gid| maps.host_gid(**gid).is_none()) {
            Some(gid) => refuse("additionalGids", *gid),
            None => Ok(()),
        }
    }
}

fn refuse(process: &Process, field: &str) -> Result<()> {
    let text = |value: &Option<String>| value.as_ref().is_some_and(|text| !text.is_empty());
    let asked = [
        ("apparmorProfile", text(process.apparmor_profile())),
        ("selinuxLabel", text(process.selinux_label())),
        ("ioPriority", process.io_priority().is_some()),
        ("scheduler", process.scheduler().is_some()),
        ("execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => {
            Err(invalid(format!("{field}.{name}"), "not supported by this engine yet"))
        }
        None => Ok(()),
    }
}

fn terminal(process: &Process) -> Option<(u16, u16)> {
    process.terminal().filter(|wanted| *wanted)?;
    let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    let size = process.console_size();
    Some(size.map_or((0, 0), |size| (cells(size.width()), cells(size.height()))))
}

fn capabilities(sets: Option<&LinuxCapabilities>) -> Capabilities {
    let mask = |names: &Option<CapabilityNames>| {
        names.iter().flatten().fold(0, |mask, cap| mask | (1_u64 << number(*cap)))
    };
    sets.map_or(Capabilities::default(), |sets| Capabilities {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        permitted: mask(sets.permitted()),
        ambient: mask(sets.ambient()),
    })
}

/// Numbers of linux/capability.h.
fn number(cap: Capability) -> u32 {
    match cap {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn rlimits(all: &[PosixRlimit], field: &str) -> Result<Vec<RlimitPlan>> {
    let mut plans: Vec<RlimitPlan> = Vec::new();
    for (at, limit) in all.iter().enumerate() {
        let (name, resource) = resource(limit.typ());
        let (soft, hard) = (limit.soft(), limit.hard());
        let field = || format!("{field}.rlimits[{at}]");
        if soft > hard {
            return Err(invalid(field(), format!("{name}: soft {soft} is above hard {hard}")));
        }
        if plans.iter().any(|p| p.resource == resource) {
            return Err(invalid(field(), format!("{name} twice")));
        }
        plans.push(RlimitPlan { name, resource, soft, hard });
    }
    Ok(plans)
}

/// Numbers of asm-generic/resource.h.
fn resource(typ: PosixRlimitType) -> (&'static str, u32) {
    match typ {
        PosixRlimitType::RlimitCpu => ("RLIMIT_CPU", 0),
        PosixRlimitType::RlimitFsize => ("RLIMIT_FSIZE", 1),
        PosixRlimitType::RlimitData => ("RLIMIT_DATA", 2),
        PosixRlimitType::RlimitStack => ("RLIMIT_STACK", 3),
        PosixRlimitType::RlimitCore => ("RLIMIT_CORE", 4),
        PosixRlimitType::RlimitRss => ("RLIMIT_RSS", 5),
        PosixRlimitType::RlimitNproc => ("RLIMIT_NPROC", 6),
        PosixRlimitType::RlimitNofile => ("RLIMIT_NOFILE", 7),
        PosixRlimitType::RlimitMemlock => ("RLIMIT_MEMLOCK", 8),
        PosixRlimitType::RlimitAs => ("RLIMIT_AS", 9),
        PosixRlimitType::RlimitLocks => ("RLIMIT_LOCKS", 10),
        PosixRlimitType::RlimitSigpending => ("RLIMIT_SIGPENDING", 11),
        PosixRlimitType::RlimitMsgqueue => ("RLIMIT_MSGQUEUE", 12),
        PosixRlimitType::RlimitNice => ("RLIMIT_NICE", 13),
        PosixRlimitType::RlimitRtprio => ("RLIMIT_RTPRIO", 14),
        PosixRlimitType::RlimitRttime => ("RLIMIT_RTTIME", 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: serde_json::Value) -> Result<ProcessPlan> {
        ProcessPlan::read(&serde_json::from_value(json).unwrap(), "process")
    }

    #[test]
    fn a_process_is_read() {
        let plan = plan(serde_json::json!({
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o077},
            "args": ["sh"], "cwd": "/w", "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "env": ["PATH=/a", "A=b=c", "PATH=/b"],
            "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}],
        }))
        .unwrap();
        assert_eq!((plan.uid, plan.gid, plan.groups, plan.umask), (7, 8, vec![9], 0o077));
        assert_eq!(plan.path.as_deref(), Some("/b"));
        assert_eq!(plan.capabilities.bounding, 0b10_0001);
        assert_eq!(plan.capabilities.effective, 0);
        assert_eq!(plan.terminal, Some((80, 24)));
        let nofile = RlimitPlan { name: "RLIMIT_NOFILE", resource: 7, soft: 5, hard: 6 };
        assert_eq!(plan.rlimits, [nofile]);
        assert!(!plan.has_home);
    }

    #[test]
    fn bad_values_name_their_field() {
        let cases = [
            (serde_json::json!({"args": []}), "process.args"),
            (serde_json::json!({"args": [""]}), "process.args"),
            (serde_json::json!({"args": ["a\u{0}b"]}), "process.args"),
            (serde_json::json!({"cwd": "rel"}), "process.cwd"),
            (serde_json::json!({"env": ["NOVALUE"]}), "process.env"),
            (serde_json::json!({"env": ["=x"]}), "process.env"),
            (serde_json::json!({"apparmorProfile": "x"}), "process.apparmorProfile"),
            (serde_json::json!({"selinuxLabel": "x"}), "process.selinuxLabel"),
            (
                serde_json::json!({"rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}),
                "process.rlimits[0]",
            ),
        ];
        for (overlay, field) in cases {
            let mut json = serde_json::json!({
                "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
            });
            let object = json.as_object_mut().unwrap();
            object.extend(overlay.as_object().unwrap().clone());
            let err = plan(json).unwrap_err();
            assert!(err.to_string().starts_with(field), "{err}");
        }
    }
}
