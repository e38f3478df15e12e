//! Pod + container + image + host -> OCI runtime spec. Pure, but for what [`Host`] and
//! [`HostPaths`] look up before.
//!
//! What the engine finds in it beyond the OCI words: a namespace with the path `pod:` is the
//! pod's own, which the shim holds; a mount of `pod:shm` is the pod's /dev/shm.

mod capabilities;
mod devices;
mod host;
mod mounts;
mod process;
mod resources;
mod signal;
mod user;

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Root, Spec};

pub use host::{Host, HostPaths};
pub use signal::stop_signal;
pub use user::Names;

use crate::pod::spec::{ContainerSpec, PodSpec, Scope};
use crate::pod::{Error, Result, User};
use crate::ports::ImageConfig;

/// Stands for a namespace of the pod's own.
const OF_POD: &str = "pod:";

/// What the kernel says about the whole machine, or lets change it.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// All that a container's spec is made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod as asked for.
    pub pod: &'a PodSpec,
    /// The container as asked for; `policy` has let it pass.
    pub container: &'a ContainerSpec,
    /// How the image wants to be run.
    pub image: &'a ImageConfig,
    /// The image's own users and groups.
    pub names: &'a Names,
    /// Mount sources and devices, resolved.
    pub paths: &'a HostPaths,
    /// The machine.
    pub host: &'a Host,
    /// Where the pod's hosts, hostname and resolv.conf lie.
    pub pod_dir: &'a Path,
    /// The pod's host name.
    pub hostname: String,
    /// The container's cgroup, relative to the hierarchy roots.
    pub cgroup: String,
}

/// The OCI spec, and who the first process is.
///
/// # Errors
/// [`Error::Invalid`] for a user that the image does not know, a capability that does not exist,
/// a container without a command.
pub fn build(input: &Input<'_>) -> Result<(Spec, User)> {
    let user = user::resolve(&input.container.security.run_as, &input.image.user, input.names)?;
    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(input.container.security.readonly_rootfs));

    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned());
    spec.set_root(Some(root));
    spec.set_process(Some(process::build(input, &user)?));
    spec.set_mounts(Some(mounts::build(input)));
    spec.set_hostname(None);
    spec.set_annotations(Some(input.container.annotations.clone().into_iter().collect()));
    spec.set_linux(Some(linux(input)));
    Ok((spec, user))
}

fn linux(input: &Input<'_>) -> Linux {
    let asked = input.container;
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(input)));
    linux.set_cgroups_path(Some(input.cgroup.clone().into()));
    linux.set_resources(Some(resources::build(input)));
    linux.set_devices(Some(devices::nodes(&input.paths.devices)));
    linux.set_rootfs_propagation(None);
    linux.set_sysctl(None);
    let hidden = |own: &Option<Vec<String>>, usual: &[&str]| match own {
        _ if asked.privileged => Vec::new(),
        Some(own) => own.clone(),
        None => usual.iter().map(|path| (*path).to_owned()).collect(),
    };
    linux.set_masked_paths(Some(hidden(&asked.masked_paths, MASKED)));
    linux.set_readonly_paths(Some(hidden(&asked.readonly_paths, READONLY)));
    linux
}

fn namespaces(input: &Input<'_>) -> Vec<LinuxNamespace> {
    let own = |kind, path: Option<&str>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path.map(Into::into));
        namespace
    };
    let pod = &input.pod.namespaces;
    let mut all = vec![own(LinuxNamespaceType::Mount, None)];
    if pod.network != Scope::Node {
        all.push(own(LinuxNamespaceType::Network, Some(OF_POD)));
        all.push(own(LinuxNamespaceType::Uts, Some(OF_POD)));
    }
    if pod.ipc != Scope::Node {
        all.push(own(LinuxNamespaceType::Ipc, Some(OF_POD)));
    }
    if pod.user {
        all.push(own(LinuxNamespaceType::User, Some(OF_POD)));
    }
    match input.container.namespaces.pid {
        Scope::Node => {}
        Scope::Pod => all.push(own(LinuxNamespaceType::Pid, Some(OF_POD))),
        // `policy` lets no target pass; on its own is the narrower of the two.
        Scope::Container | Scope::Target(_) => all.push(own(LinuxNamespaceType::Pid, None)),
    }
    if !input.container.privileged {
        all.push(own(LinuxNamespaceType::Cgroup, None));
    }
    all
}

fn refuse(field: &str, value: &str, why: &str) -> Error {
    Error::invalid(field, value, why)
}

#[cfg(test)]
mod tests;
