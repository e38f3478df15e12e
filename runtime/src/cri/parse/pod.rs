//! PodSandboxConfig -> PodSpec.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use berth_proto::cri;

use super::{field, namespaces, resources, security};
use crate::bandwidth;
use crate::pod::Result;
use crate::pod::spec::{
    Dns, Namespaces, PodKey, PodSpec, PortMapping, Protocol, Resources, Security,
};

/// Linux: the longest host name, see sethostname(2).
const MAX_HOSTNAME: usize = 64;

/// The sandbox that a RunPodSandbox asks for.
pub(in crate::cri) fn pod(request: &cri::RunPodSandboxRequest) -> Result<PodSpec> {
    let config = field::required("config", request.config.as_ref())?;
    if config.windows.is_some() {
        return field::refuse("config.windows", "(set)", "this is a Linux runtime");
    }
    let linux = linux(config.linux.as_ref())?;
    let annotations = field::map("config.annotations", &config.annotations)?;
    bandwidth::rates(&annotations)?;
    Ok(PodSpec {
        key: key(config.metadata.as_ref())?,
        hostname: hostname(&config.hostname)?,
        log_directory: log_directory(&config.log_directory)?,
        dns: config.dns_config.as_ref().map(dns).transpose()?,
        port_mappings: port_mappings(&config.port_mappings)?,
        labels: field::map("config.labels", &config.labels)?,
        annotations,
        runtime_handler: runtime_handler(&request.runtime_handler)?,
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls,
        namespaces: linux.namespaces,
        privileged: linux.privileged,
        security: linux.security,
        resources: linux.resources,
        overhead: linux.overhead,
    })
}

fn key(metadata: Option<&cri::PodSandboxMetadata>) -> Result<PodKey> {
    let metadata = field::required("config.metadata", metadata)?;
    Ok(PodKey {
        namespace: field::cni_name("config.metadata.namespace", &metadata.namespace)?,
        name: field::cni_name("config.metadata.name", &metadata.name)?,
        uid: field::cni_name("config.metadata.uid", &metadata.uid)?,
        attempt: metadata.attempt,
    })
}

fn hostname(value: &str) -> Result<String> {
    let field = "config.hostname";
    if value.len() > MAX_HOSTNAME {
        return field::refuse(field, value, "is longer than 64 bytes");
    }
    if !value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) {
        return field::refuse(field, value, "has other characters than letters, digits, - . _");
    }
    Ok(value.to_owned())
}

fn log_directory(value: &str) -> Result<Option<PathBuf>> {
    if value.is_empty() {
        return Ok(None);
    }
    field::clean_absolute("config.log_directory", value).map(|path| Some(path.into()))
}

fn runtime_handler(value: &str) -> Result<String> {
    if !value.is_empty() {
        return field::refuse(
            "runtime_handler",
            value,
            "no such handler; there is only the default",
        );
    }
    Ok(String::new())
}

fn dns(config: &cri::DnsConfig) -> Result<Dns> {
    for (n, server) in config.servers.iter().enumerate() {
        if !is_nameserver(server) {
            let field = format!("config.dns_config.servers[{n}]");
            return field::refuse(field, server, "is not an IP address");
        }
    }
    Ok(Dns {
        servers: config.servers.clone(),
        searches: field::words("config.dns_config.searches", &config.searches)?,
        options: field::words("config.dns_config.options", &config.options)?,
    })
}

/// An IP address; a link-local one may carry its interface (`fe80::1%eth0`).
fn is_nameserver(text: &str) -> bool {
    match text.split_once('%') {
        None => text.parse::<IpAddr>().is_ok(),
        Some((address, zone)) => {
            address.parse::<Ipv6Addr>().is_ok() && field::word("zone", zone).is_ok()
        }
    }
}

fn port_mappings(mappings: &[cri::PortMapping]) -> Result<Vec<PortMapping>> {
    let one = |(n, mapping): (usize, &cri::PortMapping)| {
        let path = |name: &str| format!("config.port_mappings[{n}].{name}");
        Ok(PortMapping {
            protocol: protocol(&path("protocol"), mapping.protocol)?,
            container_port: port(&path("container_port"), mapping.container_port, 1)?,
            host_port: port(&path("host_port"), mapping.host_port, 0)?,
            host_ip: host_ip(path("host_ip"), &mapping.host_ip)?,
        })
    };
    mappings.iter().enumerate().map(one).collect()
}

fn protocol(field: &str, value: i32) -> Result<Protocol> {
    Ok(match field::choice::<cri::Protocol>(field, value)? {
        cri::Protocol::Tcp => Protocol::Tcp,
        cri::Protocol::Udp => Protocol::Udp,
        cri::Protocol::Sctp => Protocol::Sctp,
    })
}

fn port(field: &str, value: i32, least: u16) -> Result<u16> {
    match u16::try_from(value) {
        Ok(port) if port >= least => Ok(port),
        _ => field::refuse(field, value, "is not a port number"),
    }
}

fn host_ip(field: String, value: &str) -> Result<Option<IpAddr>> {
    if value.is_empty() {
        return Ok(None);
    }
    value
        .parse()
        .map_or_else(|_| field::refuse(field, value, "is not an IP address"), |ip| Ok(Some(ip)))
}

/// The part of a pod's configuration below `linux`.
#[derive(Default)]
struct Linux {
    cgroup_parent: Option<String>,
    sysctls: BTreeMap<String, String>,
    namespaces: Namespaces,
    privileged: bool,
    security: Security,
    resources: Option<Resources>,
    overhead: Option<Resources>,
}

fn linux(config: Option<&cri::LinuxPodSandboxConfig>) -> Result<Linux> {
    let Some(config) = config else { return Ok(Linux::default()) };
    let context = config.security_context.as_ref();
    let options = context.and_then(|c| c.namespace_options.as_ref());
    let limits = |name: &str, value: Option<&cri::LinuxContainerResources>| {
        value.map(|value| resources::parse(&format!("config.linux.{name}"), value)).transpose()
    };
    Ok(Linux {
        cgroup_parent: cgroup_parent(&config.cgroup_parent)?,
        sysctls: sysctls(&config.sysctls)?,
        namespaces: namespaces::of_pod(options)?,
        privileged: context.is_some_and(|c| c.privileged),
        security: security::of_pod(context)?,
        resources: limits("resources", config.resources.as_ref())?,
        overhead: limits("overhead", config.overhead.as_ref())?,
    })
}

fn cgroup_parent(value: &str) -> Result<Option<String>> {
    let field = "config.linux.cgroup_parent";
    if value.is_empty() {
        return Ok(None);
    }
    if value.ends_with(".slice") {
        let why = "is a systemd slice, but the cgroup driver is cgroupfs \
                   (kubelet needs cgroupDriver: cgroupfs)";
        return field::refuse(field, value, why);
    }
    let path = field::clean_absolute(field, value)?;
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return field::refuse(field, value, "is the root of the hierarchy");
    }
    if parts.iter().any(|part| part.contains('\n')) {
        return field::refuse(field, value, "has a line break");
    }
    Ok(Some(format!("/{}", parts.join("/"))))
}

/// Names may be written with dots or with slashes, see sysctl.d(5): the first separator decides.
fn sysctls(map: &HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    let mut sysctls = BTreeMap::new();
    for (name, value) in map {
        let field = "config.linux.sysctls";
        let dotted = dotted(name);
        let good = |part: &str| {
            let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
            // A part of slashes alone would become "." or ".." in /proc/sys.
            part.chars().all(letter) && part.chars().any(|c| c != '/')
        };
        if !dotted.contains('.') || !dotted.split('.').all(good) {
            return field::refuse(field, name, "is not the name of a sysctl");
        }
        if value.contains(['\0', '\n']) {
            return field::refuse(format!("{field}[{name:?}]"), value, "has a NUL or a line break");
        }
        sysctls.insert(dotted, value.clone());
    }
    Ok(sysctls)
}

fn dotted(name: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']).and_then(|at| name.get(at..)) {
        Some(rest) if rest.starts_with('/') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}
