//! The network crate, in the words of the ports.

use std::net::IpAddr;

use berth_network::{
    Attachment, Bandwidth, Dns, ErrorKind, Networks as Cni, PortMapping, Protocol, Rate,
};

use super::{Attach, Networks, Pending, PortError};
use crate::bandwidth::rates;
use crate::pod::spec::{self, PodSpec};
use crate::pod::{Kind, Result};

/// The one interface of a pod.
const INTERFACE: &str = "eth0";

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

fn bandwidth(spec: &PodSpec) -> Result<Option<Bandwidth>> {
    let asked = rates(&spec.annotations)?;
    // As large as every plugin takes: the rate is the limit, not the burst.
    let rate = |bits_per_second| Rate { bits_per_second, burst_bits: u32::MAX.into() };
    let (ingress, egress) = (asked.ingress.map(rate), asked.egress.map(rate));
    Ok((ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }))
}
