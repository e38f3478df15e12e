//! The OCI spec as this engine carries it out: checked, refused by field name where it can't be,
//! and turned into plain values before any child exists. Pure, but for the descriptors it names.

pub(crate) mod mounts;
pub(crate) mod process;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use berth_sys::mount::Propagation;
use berth_sys::ns::Kind;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Spec,
};

use crate::container::CreateRequest;
use crate::error::{Error, Result};
use crate::rootfs::Rootfs;
use crate::user::{IdMaps, IdRange, UserNamespace};
use mounts::MountPlan;
use process::ProcessPlan;

/// Namespace path that stands for the pod's own.
const POD: &str = "pod:";

/// Where a namespace to join is found.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// A file on the host.
    Path(PathBuf),
    /// A descriptor of the pod.
    Pod(BorrowedFd<'a>),
}

/// Where a container's user namespace is found.
#[derive(Debug)]
pub(crate) enum UserPlace<'a> {
    /// To be made.
    New(IdMaps),
    /// A file on the host.
    Path(PathBuf),
    /// The pod's.
    Pod(&'a UserNamespace),
}

/// Namespaces of the first process. Kinds in neither list stay the host's. Mount is always new.
#[derive(Debug, Default)]
pub(crate) struct Namespaces<'a> {
    pub(crate) new: Vec<Kind>,
    pub(crate) join: Vec<(Kind, Place<'a>)>,
}

impl Namespaces<'_> {
    pub(crate) fn makes(&self, kind: Kind) -> bool {
        self.new.contains(&kind)
    }

    fn has(&self, kind: Kind) -> bool {
        self.makes(kind) || self.join.iter().any(|(joined, _)| *joined == kind)
    }
}

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What mknod makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// Everything a container's child does.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) rootfs: Rootfs,
    pub(crate) readonly_root: bool,
    pub(crate) root_propagation: Option<(Propagation, bool)>,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) namespaces: Namespaces<'a>,
    pub(crate) user: Option<UserPlace<'a>>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    /// Paths below /proc/sys, and values.
    pub(crate) sysctls: Vec<(PathBuf, String)>,
    pub(crate) devices: Vec<Device>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
    pub(crate) process: ProcessPlan,
    pub(crate) cgroup_path: PathBuf,
}

impl<'a> Plan<'a> {
    /// Reads a request. Errors name the field.
    pub(crate) fn read(request: &CreateRequest<'a>) -> Result<Self> {
        let spec = request.spec;
        let none = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&none);
        refuse(spec, linux)?;
        let namespaces = namespaces(linux, request)?;
        let user = user(linux, request)?;
        let hostname = spec.hostname().clone().filter(|name| !name.is_empty());
        let domainname = spec.domainname().clone().filter(|name| !name.is_empty());
        for (field, name) in [("hostname", &hostname), ("domainname", &domainname)] {
            if name.is_some() && !namespaces.has(Kind::Uts) {
                return Err(invalid(field, "set without a uts namespace"));
            }
        }
        let own = |kind| namespaces.has(kind);
        let sysctls = sysctls(linux.sysctl().iter().flatten(), &own, "linux.sysctl.")?;
        let process = spec.process().as_ref().ok_or_else(|| invalid("process", "missing"))?;
        let paths = |all: &Option<Vec<String>>| all.iter().flatten().map(PathBuf::from).collect();
        Self {
            rootfs: rootfs(request)?,
            readonly_root: spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false),
            root_propagation: linux
                .rootfs_propagation()
                .as_deref()
                .filter(|p| !p.is_empty())
                .map(|p| {
                    mounts::propagation(p)
                        .ok_or_else(|| invalid("linux.rootfsPropagation", format!("{p:?}")))
                })
                .transpose()?,
            mounts: mounts::read(spec.mounts().as_deref().unwrap_or_default())?,
            namespaces,
            user,
            hostname,
            domainname,
            sysctls,
            devices: devices(linux.devices().as_deref().unwrap_or_default())?,
            masked: paths(linux.masked_paths()),
            readonly: paths(linux.readonly_paths()),
            process: ProcessPlan::read(process, "process")?,
            cgroup_path: linux
                .cgroups_path()
                .clone()
                .ok_or_else(|| invalid("linux.cgroupsPath", "missing"))?,
        }
        .refuse_shared()
    }

    /// All kinds of namespaces that aren't the host's, mount included.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let joined = self.namespaces.join.iter().map(|(kind, _)| *kind);
        let all = self.namespaces.new.iter().copied().chain(joined).chain([Kind::Mnt]);
        all.chain(self.user.as_ref().map(|_| Kind::User)).collect()
    }

    /// The mounts of a user namespace can't reach its owner's: the kernel turns shared ones into
    /// slaves on the way.
    fn refuse_shared(self) -> Result<Self> {
        if self.user.is_none() {
            return Ok(self);
        }
        let shared = |(propagation, _): &(Propagation, bool)| *propagation == Propagation::Shared;
        let why = "shared: what is mounted in a user namespace can't be seen outside of it";
        if self.root_propagation.as_ref().is_some_and(shared) {
            return Err(invalid("linux.rootfsPropagation", why));
        }
        match self.mounts.iter().position(|mount| mount.propagation.iter().any(shared)) {
            Some(at) => Err(invalid(format!("mounts[{at}].options"), why)),
            None => Ok(self),
        }
    }

    /// The maps that some mount asks for by itself.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = &IdMaps> {
        let root = match &self.rootfs {
            Rootfs::Overlay(overlay) => overlay.idmap.as_ref(),
            Rootfs::Directory(_) => None,
        };
        let mounts = self.mounts.iter().filter_map(|mount| mount.idmap.as_ref()?.maps.as_ref());
        root.into_iter().chain(mounts)
    }

    /// Refuses what a container with such a user namespace, or none, can't have.
    pub(crate) fn check_ids(&self, maps: Option<&IdMaps>) -> Result<()> {
        self.process.check_ids(maps, "process")?;
        let asks = |mount: &MountPlan| mount.idmap.as_ref().is_some_and(|own| own.maps.is_none());
        match (maps, self.mounts.iter().position(asks)) {
            (None, Some(at)) => {
                let why = "idmap without uidMappings, and without a user namespace";
                Err(invalid(format!("mounts[{at}].options"), why))
            }
            (Some(maps), _) => {
                let field = |name: &str| format!("linux.{name}");
                if maps.host_uid(0).is_none() {
                    return Err(invalid(field("uidMappings"), "0 is not mapped"));
                }
                if maps.host_gid(0).is_none() {
                    return Err(invalid(field("gidMappings"), "0 is not mapped"));
                }
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// Devices and links in /dev are made unless the host's /dev is bound there.
    pub(crate) fn sets_up_dev(&self) -> bool {
        !self.mounts.iter().any(|m| m.destination == Path::new("/dev") && m.is_bind())
    }
}

pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::InvalidSpec { field: field.into(), reason: reason.into() }
}

/// What a later issue brings. Each has its one place: this list becomes a step in `child`.
fn refuse(spec: &Spec, linux: &Linux) -> Result<()> {
    let asked = [
        ("hooks", spec.hooks().as_ref().is_some_and(has_hooks)),
        ("linux.seccomp", linux.seccomp().is_some()),
        ("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|l| !l.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|all| !all.is_empty())),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty())),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(invalid(field, "not supported by this engine yet")),
        None => Ok(()),
    }
}

fn some<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn has_hooks(hooks: &oci_spec::runtime::Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(some)
}

fn rootfs(request: &CreateRequest<'_>) -> Result<Rootfs> {
    if let Some(rootfs) = request.rootfs {
        return Ok(rootfs.clone());
    }
    let root = request.spec.root().as_ref().ok_or_else(|| invalid("root", "missing"))?;
    Ok(Rootfs::Directory(request.bundle.join(root.path())))
}

fn namespaces<'a>(linux: &Linux, request: &CreateRequest<'a>) -> Result<Namespaces<'a>> {
    let mut all = Namespaces::default();
    for (at, entry) in linux.namespaces().iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{at}]");
        if entry.typ() == LinuxNamespaceType::User {
            continue;
        }
        let kind = kind_of(entry.typ()).ok_or_else(|| {
            invalid(&field, format!("type {}: not supported by this engine yet", entry.typ()))
        })?;
        if all.has(kind) {
            return Err(invalid(field, format!("type {} twice", entry.typ())));
        }
        match entry.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
            None => all.new.push(kind),
            Some(_) if kind == Kind::Mnt => {
                return Err(invalid(field, "a mount namespace can't be joined"));
            }
            Some(path) if path == Path::new(POD) => {
                let fd = pod_fd(request, kind)
                    .ok_or_else(|| invalid(field, "the pod has no such namespace of its own"))?;
                all.join.push((kind, Place::Pod(fd)));
            }
            Some(path) => all.join.push((kind, Place::Path(path.to_owned()))),
        }
    }
    if !all.makes(Kind::Mnt) {
        return Err(invalid("linux.namespaces", "no mount namespace"));
    }
    all.new.retain(|kind| *kind != Kind::Mnt);
    Ok(all)
}

fn user<'a>(linux: &Linux, request: &CreateRequest<'a>) -> Result<Option<UserPlace<'a>>> {
    let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
    let maps = IdMaps { uids: ranges(uids), gids: ranges(gids) };
    let given = some(uids) || some(gids);
    let all = linux.namespaces().iter().flatten().enumerate();
    let mut entries = all.filter(|(_, entry)| entry.typ() == LinuxNamespaceType::User);
    let Some((at, entry)) = entries.next() else {
        return match given {
            true => Err(invalid("linux.uidMappings", "set without a user namespace")),
            false => Ok(None),
        };
    };
    if let Some((again, _)) = entries.next() {
        return Err(invalid(format!("linux.namespaces[{again}]"), "type user twice"));
    }
    let field = format!("linux.namespaces[{at}]");
    let place = match entry.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
        None => {
            maps.check(|name| format!("linux.{name}"))?;
            return Ok(Some(UserPlace::New(maps)));
        }
        Some(path) if path == Path::new(POD) => {
            let user = request.pod.user();
            let why = "the pod has no such namespace of its own";
            UserPlace::Pod(user.ok_or_else(|| invalid(field, why))?)
        }
        Some(path) => UserPlace::Path(path.to_owned()),
    };
    match given {
        true => Err(invalid("linux.uidMappings", "set, but the user namespace is joined")),
        false => Ok(Some(place)),
    }
}

/// A list of mappings; absent means empty.
pub(crate) fn ranges(lines: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |line: &LinuxIdMapping| IdRange {
        container: line.container_id(),
        host: line.host_id(),
        length: line.size(),
    };
    lines.iter().flatten().map(range).collect()
}

fn pod_fd<'a>(request: &CreateRequest<'a>, kind: Kind) -> Option<BorrowedFd<'a>> {
    match kind {
        Kind::Net => request.pod.net(),
        Kind::Ipc => request.pod.ipc(),
        Kind::Uts => request.pod.uts(),
        Kind::Pid => request.pod.pid(),
        Kind::Mnt | Kind::Cgroup | Kind::User => None,
    }
}

fn kind_of(typ: LinuxNamespaceType) -> Option<Kind> {
    match typ {
        LinuxNamespaceType::Mount => Some(Kind::Mnt),
        LinuxNamespaceType::Network => Some(Kind::Net),
        LinuxNamespaceType::Ipc => Some(Kind::Ipc),
        LinuxNamespaceType::Uts => Some(Kind::Uts),
        LinuxNamespaceType::Pid => Some(Kind::Pid),
        LinuxNamespaceType::Cgroup => Some(Kind::Cgroup),
        LinuxNamespaceType::User | LinuxNamespaceType::Time => None,
    }
}

/// Dotted names as paths below /proc/sys. Only those of a namespace that isn't the host's.
pub(crate) fn sysctls<'s>(
    all: impl Iterator<Item = (&'s String, &'s String)>,
    own: &dyn Fn(Kind) -> bool,
    field: &str,
) -> Result<Vec<(PathBuf, String)>> {
    let sorted: BTreeMap<_, _> = all.collect();
    let mut paths = Vec::new();
    for (name, value) in sorted {
        let kind = sysctl_kind(name)
            .ok_or_else(|| invalid(format!("{field}{name}"), "belongs to no namespace"))?;
        if !own(kind) {
            let why = format!("would change the host: no own {} namespace", kind.name());
            return Err(invalid(format!("{field}{name}"), why));
        }
        paths.push((sysctl_path(name), value.clone()));
    }
    Ok(paths)
}

/// `a.b/c.d`: the separator that comes first separates; the other one is part of names
/// (sysctl.d(5)), as in `net.ipv4.conf.eth0/1.forwarding`.
fn sysctl_path(name: &str) -> PathBuf {
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']).and_then(|at| name.as_bytes().get(at)) {
        Some(b'.') => PathBuf::from(name.chars().map(swap).collect::<String>()),
        _ => PathBuf::from(name),
    }
}

fn sysctl_kind(name: &str) -> Option<Kind> {
    let name = sysctl_path(name).to_string_lossy().into_owned();
    if name.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return None;
    }
    match name.as_str() {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => Some(Kind::Ipc),
        "kernel/domainname" | "kernel/hostname" => Some(Kind::Uts),
        name if name.starts_with("fs/mqueue/") => Some(Kind::Ipc),
        name if name.starts_with("net/") => Some(Kind::Net),
        _ => None,
    }
}

fn devices(all: &[LinuxDevice]) -> Result<Vec<Device>> {
    let read = |(at, device): (usize, &LinuxDevice)| {
        let field = |name: &str| format!("linux.devices[{at}].{name}");
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => return Err(invalid(field("type"), "\"a\" is no device file")),
        };
        let number =
            |name: &str, n: i64| u32::try_from(n).map_err(|_| invalid(field(name), format!("{n}")));
        if !device.path().is_absolute() {
            return Err(invalid(field("path"), format!("{:?} is relative", device.path())));
        }
        Ok(Device {
            path: device.path().clone(),
            kind,
            major: number("major", device.major())?,
            minor: number("minor", device.minor())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    };
    all.iter().enumerate().map(read).collect()
}

/// A text as a C string; a NUL byte in it is the field's fault.
pub(crate) fn c_string(text: &str, field: impl FnOnce() -> String) -> Result<CString> {
    CString::new(text).map_err(|_| invalid(field(), format!("{text:?} contains a NUL byte")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_need_a_namespace_of_their_own() {
        let own_net = |kind| kind == Kind::Net;
        let read = |name: &str| {
            let all = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            sysctls(all.iter(), &own_net, "linux.sysctl.")
        };
        let path = |name: &str| read(name).unwrap()[0].0.display().to_string();
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        for bad in [
            "kernel.shm_rmid_forced",
            "kernel.core_pattern",
            "vm.swappiness",
            "net/../kernel/core_pattern",
            "net..x",
            "",
        ] {
            let err = read(bad).unwrap_err();
            assert!(err.to_string().starts_with(&format!("linux.sysctl.{bad}: ")), "{err}");
        }
    }
}
