//! The configuration as the daemon uses it: complete and checked.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use berth_network::Subnet;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::limits::{self, ImageLimits};
use super::policy::{self, ImagePolicy};
use super::raw::Raw;
use super::registry::{self, Registry};
use super::stream::{self, Stream};

/// The longest file name that a socket may have: with it the name `/proc/self/fd/N/NAME`, by
/// which a socket in a deep directory is bound, still fits `sun_path` (unix(7)).
const MAX_SOCKET_NAME: usize = 80;

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What survives a reboot.
    pub root: PathBuf,
    /// What lives as long as the machine runs.
    pub state: PathBuf,
    /// The CRI endpoint.
    pub cri: Cri,
    /// Cgroups.
    pub cgroup: Cgroup,
    /// CNI.
    pub network: Network,
    /// Registries.
    pub registry: Registry,
    /// Images.
    pub image: Image,
    /// Shims.
    pub shim: Shim,
    /// Metrics.
    pub metrics: Metrics,
    /// Exec, attach and port-forward.
    pub stream: Stream,
    /// What may change while the daemon runs.
    #[serde(flatten)]
    pub reloadable: Reloadable,
}

/// The CRI endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cri {
    /// The unix socket.
    pub socket: PathBuf,
}

/// Cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// Who makes cgroups.
    pub driver: CgroupDriver,
    /// Where a pod goes whose request names no parent; relative to each hierarchy's root.
    pub default_parent: String,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Daemon and shims, through the cgroup filesystem.
    Cgroupfs,
}

/// CNI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Where network configurations lie.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in this order; not empty.
    pub bin_dirs: Vec<PathBuf>,
    /// How often plugins collect what no pod has; 0: never.
    pub gc_minutes: u64,
    /// What pods get while `conf_dir` holds no configuration.
    pub builtin: Builtin,
    /// The bridge of the built-in network.
    pub bridge_name: String,
    /// Where its addresses come from; not empty.
    pub bridge_subnets: Vec<Subnet>,
}

/// The network of pods while there is no CNI configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// A bridge of the daemon's own.
    Bridge,
    /// None: pods with a network of their own have to wait for a configuration.
    None,
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Where images and layers lie, if not below `root`; writable layers stay there.
    pub root: Option<PathBuf>,
    /// A directory whose `*.tar` files are imported at start.
    pub preload: Option<PathBuf>,
    /// Keep the compressed layers of all images.
    pub keep_blobs: bool,
    /// What all layers together may be unpacked at; 0: no bound.
    pub write_mib_per_second: u64,
    /// The cgroup of the threads that unpack, relative to each hierarchy's root.
    pub pull_cgroup: Option<String>,
    /// Names of images that kubelet's garbage collection must leave, with `*` for any text.
    pub pinned: Vec<String>,
    /// What each container may write, on top of its image; `None`: no limit.
    pub rw_quota_mib: Option<u64>,
    /// Files and directories that each container may make; `None`: no limit.
    pub rw_quota_inodes: Option<u64>,
    /// What one layer may ask of the machine.
    pub limits: ImageLimits,
    /// Which images may be used.
    pub policy: ImagePolicy,
}

/// Shims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shim {
    /// The program that runs once per pod.
    pub binary: PathBuf,
    /// The shims' own cgroup, relative to each hierarchy's root.
    pub cgroup: String,
}

/// Metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Where they are served over HTTP; None: nowhere.
    pub address: Option<SocketAddr>,
}

/// What may change while the daemon runs (a later reload swaps this part alone).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloadable {
    /// Logging.
    pub log: Log,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// A level or a list of directives of [`EnvFilter`].
    pub level: String,
}

/// Why a value can't be used. Names the key as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// A path that doesn't start at the root or that climbs.
    #[error("{key}: {value:?} is not an absolute path without \"..\"")]
    Path {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A cgroup path that doesn't start with "/", is the root, or climbs.
    #[error(
        "{key}: {value:?} is not a cgroup path (absolute, below the root, without \".\" or \"..\")"
    )]
    Cgroup {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The driver is one that this build can't use.
    #[error(
        "cgroup.driver: {value:?} is not supported: only \"cgroupfs\" is \
         (and kubelet must use it too: cgroupDriver: cgroupfs)"
    )]
    Driver {
        /// The value.
        value: String,
    },
    /// Not a built-in network that there is.
    #[error("network.builtin: {value:?} is neither \"bridge\" nor \"none\"")]
    Builtin {
        /// The value.
        value: String,
    },
    /// Not the name of an interface.
    #[error("network.bridge_name: {value:?} is no name of an interface (1 to 15 bytes)")]
    Interface {
        /// The value.
        value: String,
    },
    /// Not the subnets of a network.
    #[error("network.bridge_subnets: {reason}")]
    Subnets {
        /// What is wrong with which.
        reason: String,
    },
    /// A list that needs an entry has none.
    #[error("{key}: at least one entry is needed")]
    Empty {
        /// The key.
        key: &'static str,
    },
    /// The socket's file name leaves no room in a socket address.
    #[error("cri.socket: the file name of {value:?} is longer than {MAX_SOCKET_NAME} bytes")]
    SocketName {
        /// The value.
        value: String,
    },
    /// Two keys name the same directory.
    #[error("root and state are both {value:?}")]
    SameDirectory {
        /// The value.
        value: String,
    },
    /// Not an address and a port.
    #[error("{key}: {value:?} is not ADDRESS:PORT, such as \"127.0.0.1:9464\"")]
    Address {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// A value of the image policy that can't be used.
    #[error("{key}: {value:?}: {why}")]
    Policy {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A limit that would refuse everything.
    #[error("{key}: 0 would refuse every layer")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// A quota that leaves no room, or more than any disk has.
    #[error("{key}: {value} is not from {least} to {most}")]
    Quota {
        /// The key.
        key: &'static str,
        /// The value.
        value: u64,
        /// The least that is of use.
        least: u64,
        /// The most.
        most: u64,
    },
    /// An address that no URL can name.
    #[error("stream.address: {value:?} is no address that clients can be sent to")]
    AnyAddress {
        /// The value.
        value: String,
    },
    /// A certificate without a key, or a key without a certificate.
    #[error("stream.tls_cert and stream.tls_key: one is set without the other ({value:?})")]
    HalfTls {
        /// The one that is set.
        value: String,
    },
    /// A time that is none.
    #[error("stream.idle_timeout_seconds: {value} is not from 1 to 604800 (a week)")]
    Idle {
        /// The value.
        value: u64,
    },
    /// Not a log level.
    #[error("log.level: {value:?}: {reason}")]
    Level {
        /// The value.
        value: String,
        /// What the parser says.
        reason: String,
    },
}

pub(super) fn resolve(raw: Raw) -> Result<Config, InvalidValue> {
    let config = Config {
        root: directory("root", raw.root, "/var/lib/berth")?,
        state: directory("state", raw.state, "/run/berth")?,
        cri: Cri { socket: socket(raw.cri.socket)? },
        cgroup: Cgroup {
            driver: driver(raw.cgroup.driver)?,
            default_parent: cgroup("cgroup.default_parent", raw.cgroup.default_parent, "/berth")?,
        },
        network: Network {
            conf_dir: path("network.conf_dir", raw.network.conf_dir, "/etc/cni/net.d")?,
            bin_dirs: bin_dirs(raw.network.bin_dirs)?,
            gc_minutes: raw.network.gc_minutes.unwrap_or(60),
            builtin: builtin(raw.network.builtin)?,
            bridge_name: bridge_name(raw.network.bridge_name)?,
            bridge_subnets: bridge_subnets(raw.network.bridge_subnets)?,
        },
        registry: registry::resolve(raw.registry)?,
        image: Image {
            root: raw.image.root.map(|p| directory("image.root", Some(p), "")).transpose()?,
            preload: raw.image.preload.map(|p| absolute("image.preload", p)).transpose()?,
            keep_blobs: raw.image.keep_blobs.unwrap_or(false),
            write_mib_per_second: raw.image.write_mib_per_second.unwrap_or(0),
            pull_cgroup: match raw.image.pull_cgroup {
                None => None,
                given => Some(cgroup("image.pull_cgroup", given, "")?),
            },
            pinned: raw.image.pinned.unwrap_or_default(),
            rw_quota_mib: limits::quota("image.rw_quota_mib", raw.image.rw_quota_mib, 1)?,
            rw_quota_inodes: limits::quota("image.rw_quota_inodes", raw.image.rw_quota_inodes, 16)?,
            limits: limits::resolve(&raw.image.limits)?,
            policy: policy::resolve(raw.image.policy)?,
        },
        shim: Shim {
            binary: path(
                "shim.binary",
                raw.shim.binary,
                "/usr/local/bin/containerd-shim-berth-v1",
            )?,
            cgroup: cgroup("shim.cgroup", raw.shim.cgroup, "/berth-shims")?,
        },
        metrics: Metrics {
            address: raw.metrics.address.map(|v| address("metrics.address", v)).transpose()?,
        },
        stream: stream::resolve(raw.stream)?,
        reloadable: Reloadable { log: Log { level: level(raw.log.level)? } },
    };
    if config.root == config.state {
        return Err(InvalidValue::SameDirectory { value: config.root.display().to_string() });
    }
    Ok(config)
}

fn path(key: &'static str, value: Option<PathBuf>, default: &str) -> Result<PathBuf, InvalidValue> {
    value.map_or_else(|| Ok(PathBuf::from(default)), |value| absolute(key, value))
}

/// A path that must not be "/" itself: the daemon owns it.
fn directory(
    key: &'static str,
    value: Option<PathBuf>,
    default: &str,
) -> Result<PathBuf, InvalidValue> {
    let path = path(key, value, default)?;
    if path.parent().is_none() {
        return Err(InvalidValue::Path { key, value: path.display().to_string() });
    }
    Ok(path)
}

/// Normalises slashes; keeps symlinks as they are.
pub(super) fn absolute(key: &'static str, value: PathBuf) -> Result<PathBuf, InvalidValue> {
    let climbs = value.components().any(|c| c == Component::ParentDir);
    let nul = value.as_os_str().as_encoded_bytes().contains(&0);
    if !value.is_absolute() || climbs || nul {
        return Err(InvalidValue::Path { key, value: value.display().to_string() });
    }
    Ok(value.components().collect())
}

fn socket(value: Option<PathBuf>) -> Result<PathBuf, InvalidValue> {
    let path = directory("cri.socket", value, "/run/berth/berth.sock")?;
    let name = Path::file_name(&path).map_or(0, std::ffi::OsStr::len);
    if name > MAX_SOCKET_NAME {
        return Err(InvalidValue::SocketName { value: path.display().to_string() });
    }
    Ok(path)
}

fn driver(value: Option<String>) -> Result<CgroupDriver, InvalidValue> {
    match value.as_deref() {
        None | Some("cgroupfs") => Ok(CgroupDriver::Cgroupfs),
        Some(other) => Err(InvalidValue::Driver { value: other.to_owned() }),
    }
}

fn cgroup(key: &'static str, value: Option<String>, default: &str) -> Result<String, InvalidValue> {
    let Some(value) = value else { return Ok(default.to_owned()) };
    let parts: Vec<&str> = value.split('/').filter(|part| !part.is_empty()).collect();
    let bad = |part: &&str| matches!(*part, "." | "..") || part.contains(['\0', '\n']);
    if !value.starts_with('/') || parts.is_empty() || parts.iter().any(bad) {
        return Err(InvalidValue::Cgroup { key, value });
    }
    Ok(format!("/{}", parts.join("/")))
}

fn bin_dirs(value: Option<Vec<PathBuf>>) -> Result<Vec<PathBuf>, InvalidValue> {
    let key = "network.bin_dirs";
    let Some(dirs) = value else {
        return Ok(vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
    };
    if dirs.is_empty() {
        return Err(InvalidValue::Empty { key });
    }
    dirs.into_iter().map(|dir| absolute(key, dir)).collect()
}

fn builtin(value: Option<String>) -> Result<Builtin, InvalidValue> {
    match value.as_deref() {
        None | Some("bridge") => Ok(Builtin::Bridge),
        Some("none") => Ok(Builtin::None),
        Some(value) => Err(InvalidValue::Builtin { value: value.to_owned() }),
    }
}

/// The kernel's rule (dev_valid_name), and no `%`, which it would fill in.
fn bridge_name(value: Option<String>) -> Result<String, InvalidValue> {
    let value = value.unwrap_or_else(|| "berth0".to_owned());
    let fits = !value.is_empty() && value.len() <= 15 && value != "." && value != "..";
    let wrong = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    if !fits || value.contains(wrong) {
        return Err(InvalidValue::Interface { value });
    }
    Ok(value)
}

fn bridge_subnets(value: Option<Vec<String>>) -> Result<Vec<Subnet>, InvalidValue> {
    let default = || vec!["10.85.0.0/16".to_owned(), "fd85:be27:85::/64".to_owned()];
    let texts = value.unwrap_or_else(default);
    let wrong = |reason: String| InvalidValue::Subnets { reason };
    let subnets = texts.iter().map(|text| text.parse::<Subnet>());
    let subnets: Vec<Subnet> =
        subnets.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    let of = |ipv4: bool| subnets.iter().filter(|subnet| subnet.is_ipv4() == ipv4).count();
    if subnets.is_empty() || of(true) > 1 || of(false) > 1 {
        return Err(wrong(format!("{texts:?} is not one subnet of a family, or one of each")));
    }
    Ok(subnets)
}

pub(super) fn address(key: &'static str, value: String) -> Result<SocketAddr, InvalidValue> {
    value.parse().map_err(|_| InvalidValue::Address { key, value })
}

fn level(value: Option<String>) -> Result<String, InvalidValue> {
    let value = value.unwrap_or_else(|| "info".to_owned());
    match EnvFilter::try_new(&value) {
        Ok(_) if !value.trim().is_empty() => Ok(value),
        Ok(_) => Err(InvalidValue::Level { value, reason: "empty".to_owned() }),
        Err(error) => Err(InvalidValue::Level { reason: error.to_string(), value }),
    }
}
