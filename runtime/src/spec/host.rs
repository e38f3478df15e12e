//! What has to be looked up on the host before a spec can be made.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::capabilities;
use super::devices::HostDevice;
use crate::pod::spec::{ContainerSpec, Device, Mount, Propagation};
use crate::pod::{Error, Result, volumes};
use crate::shim::Hierarchies;

/// What does not change while the daemon lives.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// SELinux is on.
    pub selinux: bool,
    /// AppArmor is on.
    pub apparmor: bool,
    /// What the daemon may give, without `CAP_`.
    pub capabilities: Vec<&'static str>,
    /// The memory controller counts swap.
    pub swap_accounting: bool,
    /// Why pods can't have user namespaces; None: they can.
    pub no_user_namespaces: Option<String>,
}

impl Host {
    /// Looks around.
    #[must_use]
    pub fn probe(cgroups: &Hierarchies, no_user_namespaces: Option<String>) -> Self {
        let yes = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == "Y");
        Self {
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            apparmor: yes("/sys/module/apparmor/parameters/enabled"),
            capabilities: held(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            // On v2 the root has no such file, but every memory controller of 5.15 counts swap.
            swap_accounting: cgroups.unified()
                || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            no_user_namespaces,
        }
    }
}

/// The bounding set of /proc/PID/status.
fn held(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let held = |(bit, _): &(usize, &&'static str)| bits >> bit & 1 == 1;
    capabilities::NAMES.iter().enumerate().filter(held).map(|(_, name)| *name).collect()
}

/// Mount sources and devices of one container, resolved.
#[derive(Debug, Clone, Default)]
pub struct HostPaths {
    /// One for each mount of the request, in its order; no symlinks.
    pub mounts: Vec<PathBuf>,
    /// All devices, with what lies in directories that were named.
    pub devices: Vec<HostDevice>,
}

impl HostPaths {
    /// Resolves them; a mount source that is not there is made, as a directory. Blocks, for ever
    /// on a hanging network mount.
    /// Image volumes are in the bundle.
    pub fn resolve(asked: &ContainerSpec, bundle: &Path) -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut mounts = Vec::new();
        for (index, mount) in asked.mounts.iter().enumerate() {
            mounts.push(match mount.image {
                Some(_) => volumes::place(bundle, index),
                None => source(index, mount, &table)?,
            });
        }
        let mut devices = Vec::new();
        if asked.privileged {
            below(Path::new("/dev"), Path::new("/dev"), "rwm", &mut devices)
                .map_err(|e| Error::disk("list devices of", "/dev", e))?;
        }
        for (index, device) in asked.devices.iter().enumerate() {
            add(index, device, &mut devices)?;
        }
        Ok(Self { mounts, devices })
    }
}

fn source(index: usize, mount: &Mount, table: &str) -> Result<PathBuf> {
    let path = Path::new(&mount.host_path);
    let refused = |what: &str, error: &io::Error| {
        let field = format!("mounts[{index}].host_path");
        Error::invalid(field, mount.host_path.as_str(), format!("{what}: {error}"))
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(|e| refused("make directory", &e))?;
        }
        _ => {}
    }
    let real = fs::canonicalize(path).map_err(|e| refused("resolve", &e))?;
    let needs: &[&str] = match mount.propagation {
        Propagation::Private => return Ok(real),
        Propagation::HostToContainer => &["shared:", "master:"],
        Propagation::Bidirectional => &["shared:"],
    };
    let (at, tags) = mount_of(&real, table);
    if tags.iter().any(|tag| needs.iter().any(|need| tag.starts_with(need))) {
        return Ok(real);
    }
    let kind = if needs.len() == 1 { "a shared" } else { "a shared or slave" };
    let why = format!("{real:?} lies on the mount {at:?}, which is not {kind} mount");
    let value = format!("{:?}", mount.propagation);
    Err(Error::invalid(format!("mounts[{index}].propagation"), value, why))
}

/// The mount that a path lies on, and its optional fields, from /proc/self/mountinfo.
fn mount_of<'a>(path: &Path, table: &'a str) -> (String, Vec<&'a str>) {
    let mut best = (String::new(), Vec::new());
    for line in table.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(at) = fields.next() else { continue };
        let at = unescape(at);
        // The last of several on one point is the one on top.
        if path.starts_with(&at) && at.len() >= best.0.len() {
            best = (at, fields.skip(1).take_while(|field| *field != "-").collect());
        }
    }
    best
}

/// mountinfo writes space, tab, line feed and backslash as octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn add(index: usize, device: &Device, devices: &mut Vec<HostDevice>) -> Result<()> {
    let refused = |error: &io::Error| {
        let field = format!("devices[{index}].host_path");
        Error::invalid(field, device.host_path.as_str(), error.to_string())
    };
    let real = fs::canonicalize(&device.host_path).map_err(|e| refused(&e))?;
    let inside = Path::new(&device.container_path);
    let found = if real.is_dir() {
        below(&real, inside, &device.permissions, devices)
    } else {
        node(&real, inside, &device.permissions).map(|node| devices.push(node))
    };
    found.map_err(|e| refused(&e))
}

/// What is mounted inside /dev, or makes no sense in a container.
const SKIPPED: &[&str] = &["pts", "ptmx", "shm", "fd", "mqueue", "console", ".udev"];

fn below(dir: &Path, inside: &Path, access: &str, into: &mut Vec<HostDevice>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (path, inside) = (entry.path(), inside.join(&name));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            below(&path, &inside, access, into)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            match node(&path, &inside, access) {
                // Devices come and go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => into.push(other?),
            }
        }
    }
    Ok(())
}

fn node(path: &Path, inside: &Path, access: &str) -> io::Result<HostDevice> {
    let meta = fs::metadata(path)?;
    let kind = meta.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(io::Error::other("not a device"));
    }
    Ok(HostDevice {
        path: inside.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_below_a_path_is_found() {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                     30 22 0:30 / /mnt/a\\040b rw master:4 shared:7 - tmpfs tmpfs rw\n\
                     31 22 0:31 / /mnt/private rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_of(Path::new("/mnt/x"), table), ("/".into(), vec!["shared:1"]));
        let found = mount_of(Path::new("/mnt/a b/c"), table);
        assert_eq!(found, ("/mnt/a b".into(), vec!["master:4", "shared:7"]));
        let found = mount_of(Path::new("/mnt/private/c"), table);
        assert_eq!(found, ("/mnt/private".into(), Vec::new()));
    }

    #[test]
    fn the_daemon_knows_what_it_may_give() {
        assert_eq!(held("CapBnd:\t0000000000000021\n"), ["CHOWN", "KILL"]);
        assert_eq!(held(""), Vec::<&str>::new());
    }

    #[test]
    fn a_device_is_what_the_kernel_says_it_is() {
        let device = Device {
            container_path: "/dev/nothing".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        };
        let mut found = Vec::new();
        add(0, &device, &mut found).unwrap();
        assert_eq!((found[0].major, found[0].minor, found[0].block), (1, 3, false));
        assert_eq!(found[0].path, Path::new("/dev/nothing"));
        let no_device = Device { host_path: "/etc/passwd".into(), ..device };
        assert!(add(0, &no_device, &mut found).is_err());
    }
}
