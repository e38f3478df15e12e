//! What is to be attached, and the words plugins are told about it.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::Error;

/// Bytes of an interface name, without the kernel's closing NUL (IFNAMSIZ - 1).
const IFNAME_MAX: usize = 15;

/// One interface to be put into one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// CNI_CONTAINERID: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
    pub id: String,
    /// The namespace's path, absolute. For `del` it may be gone or empty.
    pub netns: PathBuf,
    /// The name of the interface inside the namespace, such as `eth0`; no `-` in it, as it
    /// ends the record's file name.
    pub ifname: String,
    /// The pod's name, for CNI_ARGS.
    pub pod_name: String,
    /// The pod's Kubernetes namespace, for CNI_ARGS.
    pub pod_namespace: String,
    /// The pod's uid, for CNI_ARGS.
    pub pod_uid: String,
    /// Host ports. Those with host port 0 are not asked for.
    pub port_mappings: Vec<PortMapping>,
    /// Rates to hold the interface to.
    pub bandwidth: Option<Bandwidth>,
    /// Addresses asked for, each with or without `/prefix`; empty lets the plugin choose.
    pub ips: Vec<String>,
    /// The hardware address asked for.
    pub mac: Option<String>,
    /// The pod's resolver, for plugins that set one up.
    pub dns: Option<Dns>,
}

/// One port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// 0: none; the mapping is left out.
    pub host_port: u16,
    /// The port inside the pod.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address it holds for; `None` is every address.
    pub host_ip: Option<IpAddr>,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The word the portMappings capability uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Rates as seen from the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod; `None` is unlimited.
    pub ingress: Option<Rate>,
    /// From the pod; `None` is unlimited.
    pub egress: Option<Rate>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second.
    pub bits_per_second: u64,
    /// The bucket, in bits. The bandwidth plugin refuses 0 and more than 2^32 - 1 bytes.
    pub burst_bits: u64,
}

/// A resolver's configuration, as in resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// The search list.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

impl Attachment {
    /// Checks what the plugins, the record's file name and CNI_ARGS cannot take.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check("id", &self.id, is_cni_name(&self.id), "is no CNI container id")?;
        check("ifname", &self.ifname, is_ifname(&self.ifname), "is no interface name")?;
        let pod = [
            ("pod_name", &self.pod_name),
            ("pod_namespace", &self.pod_namespace),
            ("pod_uid", &self.pod_uid),
        ];
        for (field, value) in pod {
            // CNI_ARGS is "K=V;K=V" without a way to escape.
            let fits = !value.contains([';', '\0']);
            check(field, value, fits, "cannot stand in CNI_ARGS")?;
        }
        for ip in &self.ips {
            check("ips", ip, is_address(ip), "is no address")?;
        }
        Ok(())
    }

    /// Like [`check`](Self::check), and the namespace's path must be there.
    pub(crate) fn check_for_add(&self) -> Result<(), Error> {
        self.check()?;
        let netns = self.netns.display().to_string();
        check("netns", &netns, self.netns.is_absolute(), "is no absolute path")
    }

    /// CNI_ARGS as every CRI runtime gives it.
    pub(crate) fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};\
             K8S_POD_UID={}",
            self.pod_namespace, self.pod_name, self.id, self.pod_uid
        )
    }

    /// Every capability's argument that this attachment has, by the capability's name (CNI
    /// CONVENTIONS.md). Each plugin gets those it declares.
    pub(crate) fn capability_args(&self) -> Map<String, Value> {
        let mut args = Map::new();
        let ports: Vec<Value> =
            self.port_mappings.iter().filter(|p| p.host_port != 0).map(PortMapping::json).collect();
        if !ports.is_empty() {
            args.insert("portMappings".into(), Value::Array(ports));
        }
        if let Some(bandwidth) = self.bandwidth.and_then(Bandwidth::json) {
            args.insert("bandwidth".into(), bandwidth);
        }
        if !self.ips.is_empty() {
            args.insert("ips".into(), json!(self.ips));
        }
        if let Some(mac) = &self.mac {
            args.insert("mac".into(), json!(mac));
        }
        if let Some(dns) = &self.dns {
            let Dns { servers, searches, options } = dns;
            let dns = json!({"servers": servers, "searches": searches, "options": options});
            args.insert("dns".into(), dns);
        }
        args
    }
}

impl PortMapping {
    fn json(&self) -> Value {
        let mut json = json!({
            "hostPort": self.host_port,
            "containerPort": self.container_port,
            "protocol": self.protocol.as_str(),
        });
        if let (Some(ip), Some(object)) = (self.host_ip, json.as_object_mut()) {
            object.insert("hostIP".into(), json!(ip));
        }
        json
    }
}

impl Bandwidth {
    fn json(self) -> Option<Value> {
        let mut json = Map::new();
        for (way, rate) in [("ingress", self.ingress), ("egress", self.egress)] {
            if let Some(rate) = rate {
                json.insert(format!("{way}Rate"), json!(rate.bits_per_second));
                json.insert(format!("{way}Burst"), json!(rate.burst_bits));
            }
        }
        (!json.is_empty()).then_some(Value::Object(json))
    }
}

fn check(field: &'static str, value: &str, good: bool, why: &'static str) -> Result<(), Error> {
    if good { Ok(()) } else { Err(Error::Invalid { field, value: value.to_owned(), why }) }
}

/// CNI's rule for container ids and network names.
pub(crate) fn is_cni_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    text.bytes().all(inner) && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_ifname(text: &str) -> bool {
    let taken = |c: char| c == '/' || c == ':' || c == '-' || c.is_whitespace() || c.is_control();
    (1..=IFNAME_MAX).contains(&text.len()) && !text.contains(taken) && text != "." && text != ".."
}

fn is_address(text: &str) -> bool {
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let widest = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    match (ip.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(ip), Ok(prefix)) => prefix <= widest(ip),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Attachment {
        Attachment {
            id: "0123abcd".into(),
            netns: "/run/netns/x".into(),
            ifname: "eth0".into(),
            pod_name: "web-0".into(),
            pod_namespace: "default".into(),
            pod_uid: "u-1".into(),
            ..Attachment::default()
        }
    }

    #[test]
    fn a_bad_field_is_named_with_its_value() {
        plain().check_for_add().unwrap();
        type Spoil = fn(&mut Attachment);
        let cases: [(&str, Spoil); 11] = [
            ("attachment: id \"\"", |a| a.id = String::new()),
            ("attachment: id \"../x\"", |a| a.id = "../x".into()),
            ("attachment: id \"-x\"", |a| a.id = "-x".into()),
            ("attachment: ifname \"eth-0\"", |a| a.ifname = "eth-0".into()),
            ("attachment: ifname \"..\"", |a| a.ifname = "..".into()),
            ("attachment: ifname \"aaaaaaaaaaaaaaaa\"", |a| a.ifname = "a".repeat(16)),
            ("attachment: pod_uid \"u;X=1\"", |a| a.pod_uid = "u;X=1".into()),
            ("attachment: pod_name \"a\\0\"", |a| a.pod_name = "a\0".into()),
            ("attachment: ips \"10.0.0.1/33\"", |a| a.ips = vec!["10.0.0.1/33".into()]),
            ("attachment: ips \"ten\"", |a| a.ips = vec!["ten".into()]),
            ("attachment: netns \"x\"", |a| a.netns = "x".into()),
        ];
        for (want, spoil) in cases {
            let mut attachment = plain();
            spoil(&mut attachment);
            let text = attachment.check_for_add().unwrap_err().to_string();
            assert!(text.starts_with(want), "{text} should begin with {want}");
        }
    }

    #[test]
    fn args_are_those_of_every_cri_runtime() {
        let want = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
                    K8S_POD_INFRA_CONTAINER_ID=0123abcd;K8S_POD_UID=u-1";
        assert_eq!(plain().args(), want);
    }

    #[test]
    fn capabilities_are_there_only_when_asked_for() {
        assert!(plain().capability_args().is_empty());
        let tcp = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        };
        let none = PortMapping { host_port: 0, ..tcp.clone() };
        let sctp = PortMapping { host_ip: None, protocol: Protocol::Sctp, ..tcp.clone() };
        let full = Attachment {
            port_mappings: vec![none, tcp, sctp],
            bandwidth: Some(Bandwidth {
                ingress: None,
                egress: Some(Rate { bits_per_second: 1000, burst_bits: 2000 }),
            }),
            ips: vec!["10.0.0.9/24".into()],
            mac: Some("02:00:00:00:00:01".into()),
            dns: Some(Dns { servers: vec!["10.96.0.10".into()], ..Dns::default() }),
            ..plain()
        };
        let want = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                {"hostPort": 8080, "containerPort": 80, "protocol": "sctp"},
            ],
            "bandwidth": {"egressRate": 1000, "egressBurst": 2000},
            "ips": ["10.0.0.9/24"],
            "mac": "02:00:00:00:00:01",
            "dns": {"servers": ["10.96.0.10"], "searches": [], "options": []},
        });
        assert_eq!(Value::Object(full.capability_args()), want);
    }
}
