//! Interfaces, addresses and routes.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Route;
use super::range::Subnet;

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// An interface as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The index of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
}

/// All interfaces of the namespace.
pub(super) fn all(route: &mut Route) -> io::Result<Vec<Link>> {
    let found = route.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(found.iter().filter_map(link).collect())
}

/// The interface of this name.
pub(super) fn named(route: &mut Route, name: &str) -> io::Result<Link> {
    let found = route.get(RouteNetlinkMessage::GetLink(with_name(name)))?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("no interface {name}"));
    found.iter().find_map(link).ok_or_else(gone)
}

/// Whether the interface is there under its name and number.
pub(super) fn still(route: &mut Route, link: &Link) -> io::Result<bool> {
    match named(route, &link.name) {
        Ok(found) => Ok(found.index == link.index),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let bridge = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    Some(Link { index: link.header.index, name: name?, bridge })
}

/// Makes a bridge, or finds the one of this name, and sets it up.
pub(super) fn bridge(route: &mut Route, name: &str) -> io::Result<Link> {
    let mut message = with_name(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    up(&mut message);
    match route.change(RouteNetlinkMessage::NewLink(message), NEW) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => named(route, name),
    }
}

/// A pair of interfaces: `host` here, a port of the bridge and up; `inside` in the namespace, where
/// it is made in place and down. Moving it there would wait for RCU.
pub(super) fn pair(
    route: &mut Route,
    host: &str,
    bridge: &Link,
    (inside, mac): (&str, &str),
    netns: &Path,
) -> io::Result<()> {
    let namespace = File::open(netns)?;
    let mut peer = with_name(inside);
    peer.attributes.push(LinkAttribute::Address(hardware_address(mac)?));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut message = with_name(host);
    message.attributes.push(LinkAttribute::Controller(bridge.index));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    up(&mut message);
    route.change(RouteNetlinkMessage::NewLink(message), NEW)
}

/// Lets a port send back what came in by it: a pod that reaches itself by a host port.
pub(super) fn hairpin(route: &mut Route, name: &str) -> io::Result<()> {
    let mut message = with_name(name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    route.change(RouteNetlinkMessage::NewLink(message), 0)
}

/// Sets an interface up.
pub(super) fn set_up(route: &mut Route, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    up(&mut message);
    route.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Removes an interface, and with one of a pair the other. None is well.
pub(super) fn remove(route: &mut Route, name: &str) -> io::Result<()> {
    match route.change(RouteNetlinkMessage::DelLink(with_name(name)), 0) {
        Err(error) if is_gone(&error) => Ok(()),
        done => done,
    }
}

/// Gives an interface an address; its own already is well.
pub(super) fn address(
    route: &mut Route,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv6() {
        // The address is ours to give: nobody else can have it, and asking takes a second.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    route.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// The default route of a family.
pub(super) fn default_route(route: &mut Route, index: u32, gateway: IpAddr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(gateway),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let gateway = match gateway {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
    route.change(RouteNetlinkMessage::NewRoute(message), NEW)
}

/// Gives the bridge its address in each subnet.
pub(super) fn gateways(route: &mut Route, bridge: &Link, subnets: &[Subnet]) -> io::Result<()> {
    subnets
        .iter()
        .try_for_each(|subnet| address(route, bridge.index, subnet.gateway(), subnet.prefix()))
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn hardware_address(text: &str) -> io::Result<Vec<u8>> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().unwrap_or_default();
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no MAC"));
    (bytes.len() == 6).then_some(bytes).ok_or_else(wrong)
}

fn with_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}
