//! NamespaceOption -> Namespaces.

use berth_proto::cri;

use super::field;
use crate::pod::Result;
use crate::pod::spec::{IdMaps, IdRange, Namespaces, Scope};

/// The same place in the configuration of a sandbox and of a container.
const PATH: &str = "config.linux.security_context.namespace_options";

/// The namespaces of a sandbox. Nothing said means POD, the enumeration's zero.
pub(super) fn of_pod(options: Option<&cri::NamespaceOption>) -> Result<Namespaces> {
    let Some(options) = options else { return Ok(Namespaces::default()) };
    if options.pid == i32::from(cri::NamespaceMode::Target) {
        let value = format!("TARGET {}", options.target_id);
        return field::refuse(format!("{PATH}.pid"), value.trim_end(), "is for containers only");
    }
    parse(PATH, options)
}

/// The namespaces of a container.
pub(super) fn of_container(options: Option<&cri::NamespaceOption>) -> Result<Namespaces> {
    options.map_or_else(|| Ok(Namespaces::default()), |options| parse(PATH, options))
}

fn parse(path: &str, options: &cri::NamespaceOption) -> Result<Namespaces> {
    let ids = user(&format!("{path}.userns_options"), options.userns_options.as_ref())?;
    Ok(Namespaces {
        network: shared(&format!("{path}.network"), options.network)?,
        pid: pid(path, options)?,
        ipc: shared(&format!("{path}.ipc"), options.ipc)?,
        user: !ids.is_empty(),
        ids,
    })
}

/// A namespace that is the pod's or the host's.
fn shared(field: &str, value: i32) -> Result<Scope> {
    match field::choice(field, value)? {
        cri::NamespaceMode::Pod => Ok(Scope::Pod),
        cri::NamespaceMode::Node => Ok(Scope::Node),
        other => field::refuse(field, other.as_str_name(), "only POD and NODE are possible"),
    }
}

fn pid(path: &str, options: &cri::NamespaceOption) -> Result<Scope> {
    match field::choice(&format!("{path}.pid"), options.pid)? {
        cri::NamespaceMode::Pod => Ok(Scope::Pod),
        cri::NamespaceMode::Container => Ok(Scope::Container),
        cri::NamespaceMode::Node => Ok(Scope::Node),
        cri::NamespaceMode::Target => {
            let field = format!("{path}.target_id");
            if options.target_id.is_empty() {
                return field::refuse(field, "", "is empty, but pid is TARGET");
            }
            Ok(Scope::Target(field::word(&field, &options.target_id)?))
        }
    }
}

/// What a user namespace of the pod's own maps; empty where none is asked for.
fn user(field: &str, options: Option<&cri::UserNamespace>) -> Result<IdMaps> {
    let Some(options) = options else { return Ok(IdMaps::default()) };
    let mapped = !options.uids.is_empty() || !options.gids.is_empty();
    match field::choice(&format!("{field}.mode"), options.mode)? {
        cri::NamespaceMode::Pod => {
            let uids = whole(&format!("{field}.uids"), &options.uids)?;
            let gids = whole(&format!("{field}.gids"), &options.gids)?;
            if uids != gids {
                return field::refuse(format!("{field}.gids"), "(set)", "differs from the uids'");
            }
            Ok(IdMaps { uids, gids })
        }
        cri::NamespaceMode::Node if mapped => {
            field::refuse(format!("{field}.uids"), "(set)", "mappings make no sense with NODE")
        }
        cri::NamespaceMode::Node => Ok(IdMaps::default()),
        other => field::refuse(
            format!("{field}.mode"),
            other.as_str_name(),
            "only POD and NODE are possible",
        ),
    }
}

/// The one mapping of a user namespace, which covers root.
fn whole(field: &str, mappings: &[cri::IdMapping]) -> Result<Vec<IdRange>> {
    if mappings.len() != 1 {
        let count = format!("{} mappings", mappings.len());
        return field::refuse(field, count, "a user namespace needs exactly one");
    }
    let ranges = ranges(field, mappings)?;
    match mappings.first().filter(|mapping| mapping.container_id != 0) {
        Some(mapping) => {
            let field = format!("{field}[0].container_id");
            field::refuse(field, mapping.container_id, "id 0 must be mapped")
        }
        None => Ok(ranges),
    }
}

/// Mappings of ids, each of at least one.
pub(super) fn ranges(field: &str, mappings: &[cri::IdMapping]) -> Result<Vec<IdRange>> {
    let range = |(n, mapping): (usize, &cri::IdMapping)| {
        let cri::IdMapping { host_id, container_id, length } = *mapping;
        let beyond = |first: u32| first.checked_add(length).is_none();
        if length == 0 || beyond(host_id) || beyond(container_id) {
            return field::refuse(
                format!("{field}[{n}].length"),
                length,
                "is no length of a range",
            );
        }
        Ok(IdRange { container: container_id, host: host_id, length })
    };
    mappings.iter().enumerate().map(range).collect()
}
