//! Mount entries and their option words.

use std::ffi::CString;
use std::path::{Component, Path, PathBuf};

use berth_sys::mount::{Propagation, attr};
use oci_spec::runtime::Mount;

use super::{c_string, invalid};
use crate::error::Result;
use crate::user::IdMaps;

/// Source that stands for the pod's /dev/shm.
const POD_SHM: &str = "pod:shm";

/// Attributes to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attrs {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A host path.
    Bind { source: PathBuf, recursive: bool },
    /// The pod's /dev/shm.
    PodShm,
    /// The cgroup hierarchies, as this container sees them.
    Cgroup,
    /// A new file system.
    Fs { kind: CString, source: String, data: Vec<(String, Option<String>)> },
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    pub(crate) destination: PathBuf,
    pub(crate) kind: MountKind,
    /// For the mount itself.
    pub(crate) attrs: Attrs,
    /// For it and all below it (`rro` and the like).
    pub(crate) recursive_attrs: Attrs,
    /// None given: private, recursively.
    pub(crate) propagation: Vec<(Propagation, bool)>,
    /// How its ids are mapped; binds only.
    pub(crate) idmap: Option<Idmap>,
}

/// The ids of a bind mount, mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idmap {
    /// `None`: as the container's user namespace maps.
    pub(crate) maps: Option<IdMaps>,
    /// The mounts below it too.
    pub(crate) recursive: bool,
}

impl MountPlan {
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, MountKind::Bind { .. } | MountKind::PodShm)
    }

    /// What it is, for messages: `mount /x (bind from /y)`.
    pub(crate) fn describe(&self) -> String {
        let to = self.destination.display();
        match &self.kind {
            MountKind::Bind { source, .. } => {
                format!("mount {to} (bind from {})", source.display())
            }
            MountKind::PodShm => format!("mount {to} (the pod's /dev/shm)"),
            MountKind::Cgroup => format!("mount {to} (cgroup)"),
            MountKind::Fs { kind, .. } => format!("mount {to} ({})", kind.to_string_lossy()),
        }
    }
}

/// Reads all entries, in order.
pub(crate) fn read(mounts: &[Mount]) -> Result<Vec<MountPlan>> {
    mounts.iter().enumerate().map(|(at, mount)| read_one(at, mount)).collect()
}

fn read_one(at: usize, mount: &Mount) -> Result<MountPlan> {
    let field = |name: &str| format!("mounts[{at}].{name}");
    let destination = mount.destination().clone();
    // runc takes a relative destination as below the root; kubelet sends such for host "/".
    let destination = Path::new("/").join(destination);
    if destination.components().any(|c| c == Component::ParentDir) {
        return Err(invalid(field("destination"), format!("{:?} contains ..", destination)));
    }
    let mut words = Words::default();
    for word in mount.options().iter().flatten() {
        words.take(word).map_err(|why| {
            invalid(field("options"), format!("{word:?} of {}: {why}", destination.display()))
        })?;
    }
    let kind = kind_of(mount, &mut words, &field)?;
    let idmap = idmap(mount, &words, &kind, &field)?;
    let plan = MountPlan {
        destination,
        idmap,
        kind,
        attrs: words.attrs,
        recursive_attrs: words.recursive_attrs,
        propagation: words.propagation,
    };
    let leftover = words.data.first().filter(|_| plan.is_bind() || plan.kind == MountKind::Cgroup);
    match leftover {
        Some((word, _)) => {
            let why = format!("{word:?} means nothing for {}", plan.describe());
            Err(invalid(field("options"), why))
        }
        None => Ok(plan),
    }
}

/// OCI runtime spec, "Linux mount options": the mount's own mappings, else the container's.
fn idmap(
    mount: &Mount,
    words: &Words,
    kind: &MountKind,
    field: &dyn Fn(&str) -> String,
) -> Result<Option<Idmap>> {
    let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
    let given = uids.is_some() || gids.is_some();
    if !given && words.idmap.is_none() {
        return Ok(None);
    }
    if !matches!(kind, MountKind::Bind { .. }) {
        let name = if given { "uidMappings" } else { "options" };
        return Err(invalid(field(name), "ids of bind mounts only can be mapped"));
    }
    let maps = given.then(|| IdMaps { uids: super::ranges(uids), gids: super::ranges(gids) });
    if let Some(maps) = &maps {
        maps.check(field)?;
    }
    Ok(Some(Idmap { maps, recursive: words.idmap.unwrap_or(false) }))
}

fn kind_of(mount: &Mount, words: &mut Words, field: &dyn Fn(&str) -> String) -> Result<MountKind> {
    let typ = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    let bind = words.bind.or((typ == "bind" || typ == "rbind").then_some(typ == "rbind"));
    if let Some(recursive) = bind {
        if source == Path::new(POD_SHM) {
            return Ok(MountKind::PodShm);
        }
        if !source.is_absolute() {
            return Err(invalid(field("source"), format!("{source:?} is not an absolute path")));
        }
        return Ok(MountKind::Bind { source, recursive });
    }
    match typ {
        "" | "none" => Err(invalid(field("type"), "missing")),
        "cgroup" | "cgroup2" => Ok(MountKind::Cgroup),
        typ => Ok(MountKind::Fs {
            kind: c_string(typ, || field("type"))?,
            source: source.to_string_lossy().into_owned(),
            data: std::mem::take(&mut words.data),
        }),
    }
}

/// `private`, `rslave`, ...: the propagation, and whether it is recursive.
pub(crate) fn propagation(word: &str) -> Option<(Propagation, bool)> {
    let of = |word: &str| match word {
        "private" => Some(Propagation::Private),
        "slave" => Some(Propagation::Slave),
        "shared" => Some(Propagation::Shared),
        "unbindable" => Some(Propagation::Unbindable),
        _ => None,
    };
    of(word)
        .map(|found| (found, false))
        .or_else(|| of(word.strip_prefix('r')?).map(|found| (found, true)))
}

/// Option words (OCI runtime spec, "Linux mount options"), sorted into what they mean.
#[derive(Debug, Default)]
struct Words {
    bind: Option<bool>,
    /// Whether recursively.
    idmap: Option<bool>,
    attrs: Attrs,
    recursive_attrs: Attrs,
    propagation: Vec<(Propagation, bool)>,
    data: Vec<(String, Option<String>)>,
}

impl Words {
    fn take(&mut self, word: &str) -> std::result::Result<(), &'static str> {
        match word {
            "defaults" | "" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "remount" | "tmpcopyup" | "copy-symlink" => {
                return Err("not supported by this engine yet");
            }
            // The superblock's, or old words without a meaning of today.
            "async" | "loud" | "nomand" | "norelatime" | "nostrictatime" => {}
            word => self.take_by_table(word),
        }
        Ok(())
    }

    fn take_by_table(&mut self, word: &str) {
        if let Some(found) = propagation(word) {
            self.propagation.push(found);
        } else if let Some((set, clear)) = attribute(word) {
            self.attrs.add(set, clear);
        } else if let Some((set, clear)) = word.strip_prefix('r').and_then(attribute) {
            self.recursive_attrs.add(set, clear);
        } else {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (word, None),
            };
            self.data.push((key.to_owned(), value));
        }
    }
}

impl Attrs {
    /// A later word overrides an earlier one.
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
        if self.set & attr::ATIME != 0 {
            self.clear |= attr::ATIME;
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        "noatime" => (attr::NOATIME, attr::ATIME & !attr::NOATIME),
        "strictatime" => (attr::STRICTATIME, attr::ATIME & !attr::STRICTATIME),
        "atime" | "relatime" => (0, attr::ATIME),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: serde_json::Value) -> Result<MountPlan> {
        read_one(3, &serde_json::from_value(json).unwrap())
    }

    #[test]
    fn binds_carry_attributes_and_propagation() {
        let plan = plan(serde_json::json!({
            "destination": "/x", "source": "/y", "type": "bind",
            "options": ["rbind", "ro", "nosuid", "rnodev", "rslave"],
        }))
        .unwrap();
        assert_eq!(plan.kind, MountKind::Bind { source: "/y".into(), recursive: true });
        assert_eq!(plan.attrs, Attrs { set: attr::RDONLY | attr::NOSUID, clear: 0 });
        assert_eq!(plan.recursive_attrs, Attrs { set: attr::NODEV, clear: 0 });
        assert_eq!(plan.propagation, [(Propagation::Slave, true)]);
        assert_eq!(plan.describe(), "mount /x (bind from /y)");
    }

    #[test]
    fn later_words_win_and_access_time_is_one_choice() {
        let of = |options: &[&str]| {
            let json = serde_json::json!({
                "destination": "/x", "source": "/y", "type": "bind", "options": options,
            });
            plan(json).unwrap()
        };
        assert_eq!(of(&["ro", "rw"]).attrs, Attrs { set: 0, clear: attr::RDONLY });
        let noatime = of(&["strictatime", "noatime"]).attrs;
        assert_eq!(noatime, Attrs { set: attr::NOATIME, clear: attr::ATIME });
        assert_eq!(of(&["rro"]).recursive_attrs, Attrs { set: attr::RDONLY, clear: 0 });
    }

    #[test]
    fn file_systems_keep_their_own_options() {
        let plan = plan(serde_json::json!({
            "destination": "/t", "source": "tmpfs", "type": "tmpfs",
            "options": ["noexec", "size=64k", "huge=never", "noswap"],
        }))
        .unwrap();
        let MountKind::Fs { data, .. } = plan.kind else { panic!("{plan:?}") };
        let some = |v: &str| Some(v.to_owned());
        let want = [("size", some("64k")), ("huge", some("never")), ("noswap", None)];
        assert_eq!(data, want.map(|(k, v)| (k.to_owned(), v)));
    }

    #[test]
    fn mapped_ids_are_the_mounts_own_or_the_containers() {
        let bind = |extra: serde_json::Value| {
            let mut json = serde_json::json!({"destination": "/x", "type": "bind", "source": "/y"});
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            plan(json).unwrap().idmap
        };
        assert_eq!(bind(serde_json::json!({})), None);
        let of_container = bind(serde_json::json!({"options": ["ridmap"]}));
        assert_eq!(of_container, Some(Idmap { maps: None, recursive: true }));
        let lines = serde_json::json!([{"containerID": 0, "hostID": 7, "size": 9}]);
        let own = bind(serde_json::json!({"uidMappings": lines, "gidMappings": lines})).unwrap();
        assert_eq!((own.maps.unwrap().host_uid(1), own.recursive), (Some(8), false));
    }

    #[test]
    fn what_makes_no_sense_names_its_field() {
        let cases = [
            (
                serde_json::json!({"destination": "/x", "type": "bind", "source": "y"}),
                "mounts[3].source",
            ),
            (
                serde_json::json!({"destination": "/a/../b", "type": "tmpfs"}),
                "mounts[3].destination",
            ),
            (serde_json::json!({"destination": "/x"}), "mounts[3].type"),
            (
                serde_json::json!({"destination": "/x", "type": "bind", "source": "/y", "options": ["bnd"]}),
                "mounts[3].options: \"bnd\"",
            ),
            (
                serde_json::json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
                "mounts[3].options: ids of bind mounts only",
            ),
            (
                serde_json::json!({"destination": "/x", "type": "bind", "source": "/y",
                    "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
                "mounts[3].gidMappings: missing",
            ),
        ];
        for (json, field) in cases {
            let err = plan(json).unwrap_err();
            assert!(err.to_string().starts_with(field), "{err}");
        }
    }
}
