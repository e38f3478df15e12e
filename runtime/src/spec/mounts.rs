//! What is mounted where: the usual filesystems, the pod's files, the request's mounts.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::Input;
use crate::pod::spec::{IdRange, Propagation, Scope};

fn mount(to: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(to.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

/// In the order they are to be made: parents before what lies below them.
pub(super) fn build(input: &Input<'_>) -> Vec<Mount> {
    let mut all = usual(input);
    all.extend(files(input));
    let asked: Vec<Mount> = asked(input);
    // A mount of the request takes the place of ours, and of what of ours would lie below it.
    all.retain(|ours| !asked.iter().any(|theirs| covers(theirs, ours)));
    let mut asked = asked;
    asked.sort_by_key(|mount| mount.destination().components().count());
    all.extend(asked);
    all
}

fn covers(theirs: &Mount, ours: &Mount) -> bool {
    let (theirs, ours) = (theirs.destination(), ours.destination());
    // The pod's files stay visible in a volume mounted on /etc, as kubelet expects of its own.
    ours == theirs || (ours.starts_with(theirs) && theirs != Path::new("/etc"))
}

fn usual(input: &Input<'_>) -> Vec<Mount> {
    let write = if input.container.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
    ];
    // Of the IPC namespace that the container is in, be it the pod's or the host's.
    all.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    let shm = if input.pod.namespaces.ipc == Scope::Node { "/dev/shm" } else { "pod:shm" };
    let bind = ["rbind", "rprivate", "nosuid", "noexec", "nodev"];
    all.push(mount("/dev/shm", "bind", shm, &bind));
    all.push(mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", write]));
    all.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", write],
    ));
    all
}

fn files(input: &Input<'_>) -> Vec<Mount> {
    let write = if input.container.security.readonly_rootfs { "ro" } else { "rw" };
    let file = |name: &str| {
        let source = input.pod_dir.join(name);
        let to = format!("/etc/{name}");
        let mut made = mount(&to, "bind", "", &["bind", "rprivate", write]);
        made.set_source(Some(source));
        made
    };
    ["hosts", "hostname", "resolv.conf"].map(file).into()
}

fn asked(input: &Input<'_>) -> Vec<Mount> {
    let pairs = input.container.mounts.iter().zip(&input.paths.mounts);
    let made = pairs.map(|(asked, source)| {
        let propagation = match asked.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let write = match (asked.readonly, asked.recursive_read_only) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        };
        let mut options = vec!["rbind", propagation, write];
        if asked.image.is_some() {
            // As Kubernetes promises of image volumes.
            options = vec!["rbind", "rprivate", write, "nosuid", "nodev", "noexec"];
        }
        let mut made = mount(&asked.container_path, "bind", "", &options);
        made.set_source(Some(source.clone()));
        if asked.id_mapped {
            // What is mounted below belongs to the volume.
            let options = made.options().iter().flatten().cloned();
            made.set_options(Some(options.chain(["ridmap".to_owned()]).collect()));
            made.set_uid_mappings(Some(lines(&asked.ids.uids)));
            made.set_gid_mappings(Some(lines(&asked.ids.gids)));
        }
        made
    });
    made.collect()
}

fn lines(ranges: &[IdRange]) -> Vec<LinuxIdMapping> {
    let line = |range: &IdRange| {
        let line = LinuxIdMappingBuilder::default().container_id(range.container);
        // It fails for a field that is not set: there are these three.
        line.host_id(range.host).size(range.length).build().ok()
    };
    ranges.iter().filter_map(line).collect()
}
