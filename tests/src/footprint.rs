//! What belongs to one node on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

/// Where to look, and what not to count.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its name, part of every path, cgroup and command line of the instance.
    pub instance: String,
    /// Its directory.
    pub dir: std::path::PathBuf,
    /// The process that holds its namespaces.
    pub holder: u32,
    /// Processes of the harness.
    pub ignored: Vec<u32>,
    /// Whether directories count: not for a peer whose database files differ each time.
    pub directories: bool,
}

/// One line per thing, sorted.
pub type Footprint = BTreeSet<String>;

/// Everything of the instance that is there now.
pub fn take(scope: &Scope) -> Result<Footprint> {
    let mut found = mounts(scope)?;
    found.extend(cgroups(&scope.instance));
    found.extend(processes(scope)?);
    found.extend(links(scope)?);
    if scope.directories {
        for part in ["root", "state", "ipam"] {
            walk(&scope.dir, Path::new(part), &mut found);
        }
    }
    Ok(found)
}

/// Mounts of the machine, and of the node's own mount namespace.
fn mounts(scope: &Scope) -> Result<Footprint> {
    let mut found = Footprint::new();
    for view in ["self".to_owned(), scope.holder.to_string()] {
        let table = fs::read_to_string(format!("/proc/{view}/mountinfo"))?;
        for line in table.lines().filter(|line| line.contains(&scope.instance)) {
            let point = line.split(' ').nth(4).unwrap_or(line);
            found.insert(format!("mount {point}"));
        }
    }
    Ok(found)
}

/// Directories of every hierarchy below a top directory named by the instance.
#[must_use]
pub fn cgroups(instance: &str) -> Footprint {
    let mut found = Footprint::new();
    for hierarchy in hierarchies() {
        for top in children(&hierarchy).filter(|top| top.contains(instance)) {
            below(&hierarchy, &top, &mut found);
        }
    }
    found
}

/// The roots of all cgroup hierarchies: one of version 2, or a directory of version 1 ones.
#[must_use]
pub fn hierarchies() -> Vec<std::path::PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    children(root).map(|name| root.join(name)).filter(|path| !path.is_symlink()).collect()
}

fn children(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn below(hierarchy: &Path, path: &str, found: &mut Footprint) {
    found.insert(format!("cgroup {}/{path}", hierarchy.display()));
    for child in children(&hierarchy.join(path)) {
        below(hierarchy, &format!("{path}/{child}"), found);
    }
}

/// Processes that the instance's name or its network namespace gives away, and their zombies.
fn processes(scope: &Scope) -> Result<Footprint> {
    let netns = fs::metadata(format!("/proc/{}/ns/net", scope.holder)).map(|meta| meta.ino());
    let own = fs::metadata("/proc/self/ns/net")?.ino();
    let mut found = Footprint::new();
    for pid in pids() {
        if pid == scope.holder || scope.ignored.contains(&pid) || pid == std::process::id() {
            continue;
        }
        let dir = format!("/proc/{pid}");
        let read = |file: &str| fs::read(format!("{dir}/{file}")).unwrap_or_default();
        let link = |name: &str| fs::read_link(format!("{dir}/{name}")).unwrap_or_default();
        let texts = [read("cmdline"), read("cgroup")];
        let named =
            texts.iter().any(|text| String::from_utf8_lossy(text).contains(&scope.instance))
                || ["cwd", "exe", "root"]
                    .iter()
                    .any(|name| link(name).to_string_lossy().contains(&scope.instance));
        let inside = fs::metadata(format!("{dir}/ns/net")).is_ok_and(|meta| {
            meta.ino() != own && netns.as_ref().is_ok_and(|ns| *ns == meta.ino())
        });
        if named || inside || defunct_child(pid, &scope.ignored) {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
            found.insert(format!("process {pid} ({name}) {command}"));
        }
    }
    Ok(found)
}

/// Whether it is a zombie of one of these parents (the daemon).
fn defunct_child(pid: u32, parents: &[u32]) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    fields.next() == Some("Z")
        && fields
            .next()
            .and_then(|ppid| ppid.parse().ok())
            .is_some_and(|ppid| parents.contains(&ppid))
}

/// Every process id there is.
pub fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Interfaces in the node's network namespace other than `lo` and the CNI bridge.
fn links(scope: &Scope) -> Result<Footprint> {
    let inode = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino());
    if inode("self")? == inode(&scope.holder.to_string())? {
        // The machine's interfaces are not of this node.
        return Ok(Footprint::new());
    }
    let table = fs::read_to_string(format!("/proc/{}/net/dev", scope.holder))?;
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next());
    Ok(names
        .map(str::trim)
        .filter(|name| !["lo", crate::node::BRIDGE].contains(name))
        .map(|name| format!("link {name}"))
        .collect())
}

/// Files, and directories from the third level on. What the image store keeps for the next
/// container is not of one pod.
fn walk(base: &Path, relative: &Path, found: &mut Footprint) {
    let kept = relative.starts_with("root/image") && !relative.starts_with("root/image/rw");
    let depth = relative.components().count();
    for entry in fs::read_dir(base.join(relative)).into_iter().flatten().flatten() {
        let path = relative.join(entry.file_name());
        let dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // host-local keeps a lock and the last address beside the reserved ones.
        let address = entry.file_name().to_str().is_some_and(|n| n.parse::<IpAddr>().is_ok());
        let counts = if relative.starts_with("ipam") { address } else { depth >= 2 || !dir };
        if counts && !kept {
            found.insert(format!("path {}", path.display()));
        }
        if dir {
            walk(base, &path, found);
        }
    }
}
