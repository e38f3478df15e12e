//! The network crate, in the words of the ports.

use std::net::IpAddr;

use berth_network::{
    Attachment, Bandwidth, Dns, ErrorKind, Networks as Cni, PortMapping, Protocol, Rate,
};

use super::{Attach, Networks, Pending, PortError};
use crate::pod::spec::{self, PodSpec};
use crate::pod::{Error, Kind, Result};

/// The one interface of a pod.
const INTERFACE: &str = "eth0";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

impl Networks for Cni {
    fn add<'a>(&'a self, attach: Attach<'a>) -> Pending<'a, Vec<IpAddr>> {
        Box::pin(async move {
            let added = Self::add(self, &attachment(&attach)?).await.map_err(failed)?;
            Ok(added.ips)
        })
    }

    fn del<'a>(&'a self, attach: Attach<'a>) -> Pending<'a, ()> {
        Box::pin(async move { Self::del(self, &attachment(&attach)?).await.map_err(failed) })
    }

    fn del_orphan<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move { self.del_all(id).await.map_err(failed) })
    }

    fn cached(&self) -> Pending<'_, Vec<String>> {
        Box::pin(async move { Self::cached(self).await.map_err(failed) })
    }
}

fn failed(error: berth_network::Error) -> PortError {
    let kind = match error.kind() {
        ErrorKind::Exists => Kind::Exists,
        ErrorKind::Invalid => Kind::Invalid,
        ErrorKind::NotReady | ErrorKind::Cancelled => Kind::Unavailable,
        ErrorKind::Deadline => Kind::Deadline,
        _ => Kind::Internal,
    };
    PortError { kind, source: Box::new(error) }
}

fn attachment(attach: &Attach<'_>) -> std::result::Result<Attachment, PortError> {
    let spec = attach.spec;
    let bandwidth = bandwidth(spec)
        .map_err(|error| PortError { kind: error.kind(), source: Box::new(error) })?;
    Ok(Attachment {
        id: attach.id.to_string(),
        netns: attach.netns.clone(),
        ifname: INTERFACE.to_owned(),
        pod_name: spec.key.name.clone(),
        pod_namespace: spec.key.namespace.clone(),
        pod_uid: spec.key.uid.clone(),
        port_mappings: spec.port_mappings.iter().map(port).collect(),
        bandwidth,
        ips: Vec::new(),
        mac: None,
        dns: spec.dns.as_ref().map(|dns| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
    })
}

fn port(port: &spec::PortMapping) -> PortMapping {
    PortMapping {
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: match port.protocol {
            spec::Protocol::Tcp => Protocol::Tcp,
            spec::Protocol::Udp => Protocol::Udp,
            spec::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip: port.host_ip,
    }
}

/// The rates that a pod's annotations ask for.
///
/// # Errors
/// [`Error::Invalid`] for a quantity that cannot be read.
pub(crate) fn bandwidth(spec: &PodSpec) -> Result<Option<Bandwidth>> {
    let (ingress, egress) = (rate(spec, INGRESS)?, rate(spec, EGRESS)?);
    Ok((ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }))
}

fn rate(spec: &PodSpec, name: &str) -> Result<Option<Rate>> {
    let Some(text) = spec.annotations.get(name) else { return Ok(None) };
    let bits_per_second = quantity(text).filter(|bits| *bits > 0).ok_or_else(|| {
        let why = "not a quantity such as 10M, in bits per second";
        Error::invalid(format!("annotations[{name}]"), text.as_str(), why)
    })?;
    // As large as every plugin takes: the rate is the limit, not the burst.
    Ok(Some(Rate { bits_per_second, burst_bits: u32::MAX.into() }))
}

/// A whole Kubernetes quantity.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_spec;

    #[test]
    fn a_rate_is_read_from_an_annotation() {
        let cases = [
            ("10M", Some(10_000_000)),
            ("1Ki", Some(1024)),
            ("8", Some(8)),
            ("", None),
            ("M", None),
            ("10m", None),
            ("0", None),
            ("-1", None),
        ];
        for (text, bits) in cases {
            let mut spec = pod_spec();
            spec.annotations.insert(INGRESS.into(), text.into());
            let got =
                bandwidth(&spec).map(|b| b.and_then(|b| b.ingress).map(|r| r.bits_per_second));
            assert_eq!(got.ok().flatten(), bits, "{text:?}");
        }
        assert!(bandwidth(&pod_spec()).unwrap().is_none());
    }
}
