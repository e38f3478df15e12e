//! What a pod and a container were asked to be: parsed, checked, immutable, without wire types.
//!
//! The front door (`cri/`) is the one writer: it refuses what is malformed in itself. What needs
//! the host or another field to be judged is refused by `policy` and the OCI spec builder.
//! Both types go to disk as part of a record, so a field is only ever added, with a serde default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The four things that name a pod sandbox: a retry carries the same ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// How often kubelet has made this pod's sandbox anew.
    pub attempt: u32,
}

/// A pod sandbox as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Who it is.
    pub key: PodKey,
    /// The host name inside; empty: the host's own (a host-network pod).
    pub hostname: String,
    /// Where kubelet wants the container logs; absolute. None: no logs are kept.
    pub log_directory: Option<PathBuf>,
    /// None: the host's resolv.conf is copied.
    pub dns: Option<Dns>,
    /// Ports of the host that lead into the pod.
    pub port_mappings: Vec<PortMapping>,
    /// For selectors in lists.
    pub labels: BTreeMap<String, String>,
    /// Handed back untouched.
    pub annotations: BTreeMap<String, String>,
    /// Empty: the default engine. Others are refused by the front door until they exist.
    pub runtime_handler: String,
    /// Relative to each hierarchy root, with a leading slash. None: `[cgroup] default_parent`.
    pub cgroup_parent: Option<String>,
    /// Dotted name to value; only namespaced ones pass `policy`.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces the pod has of its own.
    pub namespaces: Namespaces,
    /// May hold privileged containers.
    pub privileged: bool,
    /// What the sandbox itself may do; only checked, since no process of ours runs in it.
    pub security: Security,
    /// The pod's limits as kubelet sums them up. Reported back; kubelet sets the pod's cgroup.
    pub resources: Option<Resources>,
    /// What the runtime is thought to cost.
    pub overhead: Option<Resources>,
}

/// Name resolution inside the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// A port of the host that leads into the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port inside, 1-65535.
    pub container_port: u16,
    /// Port on the host; 0: none is opened.
    pub host_port: u16,
    /// Only on this address of the host; None: all.
    pub host_ip: Option<IpAddr>,
}

/// Transport of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in CNI's portMappings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Whose namespace of one kind is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The pod's own, shared by its containers.
    #[default]
    Pod,
    /// Each container's own.
    Container,
    /// The host's.
    Node,
    /// That of the container with this id (an ephemeral debug container).
    Target(String),
}

/// The namespaces of a pod or container. `network` and `ipc` are `Pod` or `Node` only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network.
    pub network: Scope,
    /// Process ids.
    pub pid: Scope,
    /// System V IPC, POSIX queues, /dev/shm.
    pub ipc: Scope,
    /// User ids: true when a namespace of the pod's own was asked for.
    pub user: bool,
    /// What that one maps; empty without one.
    #[serde(default)]
    pub ids: IdMaps,
}

/// A run of ids inside a user namespace, and the host's ids that they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    fn host(self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container).filter(|offset| *offset < self.length)?;
        self.host.checked_add(offset)
    }
}

/// What a user namespace, or a mount, maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// Nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The host's number of a user.
    #[must_use]
    pub fn uid(&self, id: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| range.host(id))
    }

    /// The host's number of a group.
    #[must_use]
    pub fn gid(&self, id: u32) -> Option<u32> {
        self.gids.iter().find_map(|range| range.host(id))
    }
}

/// Who the first process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// Numeric user.
    pub user: Option<u32>,
    /// A name to look up in the image's own passwd; ignored when `user` is set.
    pub username: Option<String>,
    /// Numeric group; only with a user.
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Leave out the groups that the image's own group file gives the user.
    pub strict_groups: bool,
}

/// A profile of seccomp or AppArmor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None at all.
    Unconfined,
    /// A file or a loaded profile of this name.
    Localhost(String),
}

/// An SELinux label's parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabel {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level.
    pub level: String,
}

/// The security context of a pod or a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// User and groups.
    pub run_as: RunAs,
    /// The root filesystem is read-only.
    pub readonly_rootfs: bool,
    /// None when the request says nothing.
    pub seccomp: Option<Profile>,
    /// None when the request says nothing.
    pub apparmor: Option<Profile>,
    /// None when the request says nothing.
    pub selinux: Option<SelinuxLabel>,
}

/// The name and attempt of a container within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerKey {
    /// Container name.
    pub name: String,
    /// How often kubelet has made it anew.
    pub attempt: u32,
}

/// A container as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Who it is within its pod.
    pub key: ContainerKey,
    /// `image.image`: an image id or a reference; looked up in the image store at create.
    pub image: String,
    /// `image.user_specified_image`, handed back in status.
    pub user_specified_image: String,
    /// Annotations of the image spec, handed back in status.
    pub image_annotations: BTreeMap<String, String>,
    /// Replaces the image's entrypoint (and its command) where not empty.
    pub command: Vec<String>,
    /// Replaces the image's command where not empty.
    pub args: Vec<String>,
    /// None: the image's, else `/`.
    pub working_dir: Option<String>,
    /// In the request's order; later ones win, and all win over the image's.
    pub envs: Vec<(String, String)>,
    /// In the request's order.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Names of CDI devices (refused for now).
    pub cdi_devices: Vec<String>,
    /// For selectors in lists.
    pub labels: BTreeMap<String, String>,
    /// Handed back untouched, and put in the OCI spec.
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; clean (no `..`). None: output is discarded.
    pub log_path: Option<PathBuf>,
    /// Keep standard input open for an attach.
    pub stdin: bool,
    /// Close it after the first attach ends.
    pub stdin_once: bool,
    /// A terminal of its own.
    pub tty: bool,
    /// Number of the signal that asks it to end. None: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// Limits.
    pub resources: Resources,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// setuid programs gain nothing.
    pub no_new_privs: bool,
    /// Capabilities on top of, or taken from, the default set.
    pub capabilities: Capabilities,
    /// Namespaces; network and ipc equal the pod's.
    pub namespaces: Namespaces,
    /// None: the usual list. Some(empty): nothing is masked.
    pub masked_paths: Option<Vec<String>>,
    /// None: the usual list.
    pub readonly_paths: Option<Vec<String>>,
    /// User, groups, profiles.
    pub security: Security,
}

/// Changes to the default capability set. Names without `CAP_`, upper case; `ALL` is a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Taken away; wins over `add` for one and the same name.
    pub drop: Vec<String>,
    /// Added to the ambient set too.
    pub add_ambient: Vec<String>,
}

/// A mount of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, inside.
    pub container_path: String,
    /// Absolute, on the host. Empty for an image volume.
    pub host_path: String,
    /// Nothing may be written through it.
    pub readonly: bool,
    /// So for the mounts below it too.
    pub recursive_read_only: bool,
    /// Ask for an SELinux label on the files; ignored on a host without SELinux.
    pub selinux_relabel: bool,
    /// Which mount events pass.
    pub propagation: Propagation,
    /// The image of an image volume.
    pub image: Option<VolumeImage>,
    /// Mapped ids were asked for.
    pub id_mapped: bool,
    /// How they are mapped: from the disk's to the host's.
    #[serde(default)]
    pub ids: IdMaps,
}

/// The image of an image volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeImage {
    /// `image.image`: an image id or a reference; looked up in the image store at create.
    pub image: String,
    /// `image.user_specified_image`, handed back in status.
    pub user_specified_image: String,
    /// `image_sub_path`: what of it is mounted, relative; empty for all.
    pub sub_path: String,
}

/// Which mount events pass between host and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// rslave.
    HostToContainer,
    /// rshared.
    Bidirectional,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Inside.
    pub container_path: String,
    /// On the host; a directory stands for all devices below it.
    pub host_path: String,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// Limits. Zero (or empty) means not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: u64,
    /// Microseconds; -1: none.
    pub cpu_quota: i64,
    /// Relative weight, v1 scale.
    pub cpu_shares: u64,
    /// Bytes; -1: none.
    pub memory_limit: i64,
    /// Bytes, memory and swap together; -1: none.
    pub memory_swap_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// A list such as `0-3,7`.
    pub cpuset_cpus: String,
    /// A list of memory nodes.
    pub cpuset_mems: String,
    /// Page size (`2MB`) to bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// cgroup v2 file to text.
    pub unified: BTreeMap<String, String>,
}
