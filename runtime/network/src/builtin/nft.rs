//! The table of nftables that a built-in network has: masquerading, and host ports as elements of
//! maps, so that a packet's way through the rules does not grow with the pods.
//!
//! ```text
//! table inet NAME {
//!     map at4     { type inet_proto . inet_service : ipv4_addr . inet_service }
//!     map at4own  { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!     (at6, at6own alike)
//!     chain ports { dnat by at4own, at4, at6own, at6 }
//!     chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump ports }
//!     chain output      { type nat hook output     priority dstnat; fib daddr type local jump ports }
//!     chain postrouting { type nat hook postrouting priority srcnat
//!         ip saddr SUBNET oifname != BRIDGE masquerade
//!         oifname BRIDGE ct status dnat ip saddr SUBNET masquerade     (a pod by a host port)
//!         oifname BRIDGE ip saddr 127.0.0.0/8 masquerade }            (the host by its loopback)
//! }
//! ```
//! Constants: include/uapi/linux/netfilter/nf_tables.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook, HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey,
    NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, SetAttribute,
    SetElementAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage, Verdict, VerdictAttribute,
};

use super::netlink;
use super::range::Subnet;
use crate::attachment::Protocol;

type Change = (NfTablesMessage, u16);
type Rule = Vec<Expressions>;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// Of a packet in the fib expression: RTN_LOCAL.
const LOCAL: u32 = 2;
/// IPS_DST_NAT of ct status.
const DNATED: u32 = 1 << 5;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
/// Types as nft(8) numbers them, for whoever lists the table.
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;

/// A host port that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) protocol: Protocol,
    /// `None`: at every address of the host.
    pub(super) host: Option<IpAddr>,
    pub(super) host_port: u16,
    pub(super) pod: IpAddr,
    pub(super) pod_port: u16,
}

/// The family's numbers.
#[derive(Clone, Copy)]
struct Family {
    number: u8,
    /// Where in the header the addresses are, and how long.
    source: u32,
    destination: u32,
    length: u32,
    /// nft(8)'s number of the address type.
    kind: u32,
    any: &'static str,
    own: &'static str,
}

const V4: Family = Family {
    number: NFPROTO_IPV4,
    source: 12,
    destination: 16,
    length: 4,
    kind: 7,
    any: "at4",
    own: "at4own",
};
const V6: Family = Family {
    number: NFPROTO_IPV6,
    source: 8,
    destination: 24,
    length: 16,
    kind: 8,
    any: "at6",
    own: "at6own",
};

fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { V4 } else { V6 }
}

/// Replaces the table, as one change: with these subnets and just these host ports.
pub(super) fn install(
    table: &str,
    bridge: &str,
    subnets: &[Subnet],
    forwards: &[Forward],
) -> io::Result<()> {
    let named = || TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] };
    // Made first: what is not there cannot be deleted.
    let mut changes = vec![
        (NfTablesMessage::NewTable(named()), NLM_F_CREATE),
        (NfTablesMessage::DeleteTable(named()), 0),
        (NfTablesMessage::NewTable(named()), NLM_F_CREATE),
    ];
    for (id, family) in [(1, V4), (3, V6)] {
        changes.push(map(table, family.any, id, family, &[INET_PROTO, INET_SERVICE], 8));
        let own = [family.kind, INET_PROTO, INET_SERVICE];
        changes.push(map(table, family.own, id + 1, family, &own, 8 + family.length));
    }
    changes.push(chain(table, "ports", None));
    for family in [V4, V6] {
        changes.push(rule(table, "ports", forward(family, true)));
        changes.push(rule(table, "ports", forward(family, false)));
    }
    for (name, hook) in
        [("prerouting", InetHookNumber::PreRouting), ("output", InetHookNumber::LocalOut)]
    {
        changes.push(chain(table, name, Some((hook, DSTNAT))));
        changes.push(rule(table, name, to_the_host()));
    }
    changes.push(chain(table, "postrouting", Some((InetHookNumber::PostRouting, SRCNAT))));
    for subnet in subnets {
        for found in masquerades(bridge, *subnet) {
            changes.push(rule(table, "postrouting", found));
        }
    }
    changes.push(rule(table, "postrouting", from_loopback(bridge)));
    changes.extend(forwards.iter().map(|it| (element(table, it, true), NLM_F_CREATE)));
    netlink::nftables(changes)
}

/// Adds host ports, all or none. Those that are there already, as [`install`] may have made them,
/// are well; one that leads elsewhere refuses.
pub(super) fn add(table: &str, forwards: &[Forward]) -> io::Result<()> {
    if forwards.is_empty() {
        return Ok(());
    }
    let each = forwards.iter().map(|it| (element(table, it, true), NLM_F_CREATE));
    netlink::nftables(each.collect())
}

/// Takes host ports away; those that are not there are well.
pub(super) fn remove(table: &str, forwards: &[Forward]) -> io::Result<()> {
    for forward in forwards {
        match netlink::nftables(vec![(element(table, forward, false), 0)]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

fn map(table: &str, name: &str, id: u32, family: Family, key: &[u32], length: u32) -> Change {
    let concat = |types: &[u32]| types.iter().fold(0, |all, one| all << 6 | one);
    let attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::Flags(SetFlags::Map),
        SetAttribute::KeyType(concat(key)),
        SetAttribute::KeyLen(length),
        SetAttribute::DataType(concat(&[family.kind, INET_SERVICE])),
        SetAttribute::DataLen(family.length + 4),
        SetAttribute::Id(id),
    ];
    (NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE)
}

fn chain(table: &str, name: &str, hook: Option<(InetHookNumber, i32)>) -> Change {
    let mut attributes =
        vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some((number, priority)) = hook {
        let priority = Hook::Priority(u32::from_ne_bytes(priority.to_ne_bytes()));
        attributes
            .push(ChainAttribute::Hook(vec![Hook::Number(HookNumber::Inet(number)), priority]));
        attributes.push(ChainAttribute::Type("nat".to_owned()));
    }
    (NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE)
}

fn rule(table: &str, chain: &str, expressions: Rule) -> Change {
    let expressions: Vec<ListAttribute<ExpressionAttribute>> =
        expressions.into_iter().map(Into::into).collect();
    let attributes = vec![
        RuleAttribute::Table(table.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions),
    ];
    (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
}

fn element(table: &str, forward: &Forward, add: bool) -> NfTablesMessage {
    let family = family(forward.pod);
    let mut key = Vec::new();
    if let Some(host) = forward.host {
        key.extend(octets(host));
    }
    key.extend([number(forward.protocol), 0, 0, 0]);
    key.extend(port(forward.host_port));
    let mut data = octets(forward.pod);
    data.extend(port(forward.pod_port));
    let mut element = vec![SetElementAttribute::Key(DataAttribute::Value(key))];
    if add {
        element.push(SetElementAttribute::Data(DataAttribute::Value(data)));
    }
    let name = if forward.host.is_some() { family.own } else { family.any };
    let message = SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(name.to_owned()),
            SetElementList::Elements(vec![ListAttribute::Element(element)]),
        ],
    };
    if add {
        NfTablesMessage::NewSetElement(message)
    } else {
        NfTablesMessage::DeleteSetElement(message)
    }
}

/// `dnat ip to [ip daddr .] meta l4proto . th dport map @...`
fn forward(family: Family, own: bool) -> Rule {
    let mut rule = vec![meta(MetaKey::Nfproto, Register::Reg1), equal(&[family.number])];
    let mut next = 0;
    if own {
        rule.push(payload(NETWORK_HEADER, family.destination, family.length, words(0)));
        next = family.length / 4;
    }
    rule.push(meta(MetaKey::L4Proto, words(next)));
    rule.push(payload(TRANSPORT_HEADER, 2, 2, words(next + 1)));
    rule.push(Expressions::Lookup(vec![
        Lookup::Set(if own { family.own } else { family.any }.to_owned()),
        Lookup::SourceRegister(words(0)),
        Lookup::DestinationRegister(words(0)),
    ]));
    // NFTA_NAT_TYPE (destination), FAMILY, REG_ADDR_MIN, REG_PROTO_MIN.
    rule.push(other(
        "nat",
        &[
            (1, 1),
            (2, family.number.into()),
            (3, words(0).into()),
            (5, words(family.length / 4).into()),
        ],
    ));
    rule
}

/// `fib daddr type local jump ports`
fn to_the_host() -> Rule {
    let verdict = DataAttribute::Verdict(vec![
        VerdictAttribute::Code(Verdict::Jump),
        VerdictAttribute::Chain("ports".to_owned()),
    ]);
    vec![
        // NFTA_FIB_DREG, RESULT (address type), FLAGS (destination).
        other("fib", &[(1, Register::Reg1.into()), (2, 3), (3, 2)]),
        equal(&LOCAL.to_ne_bytes()),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(verdict),
        ]),
    ]
}

fn masquerades(bridge: &str, subnet: Subnet) -> [Rule; 2] {
    let mut away = from(subnet.network(), &subnet.mask());
    away.push(meta(MetaKey::Oifname, Register::Reg1));
    away.push(compare(Operator::NotEqual, &interface(bridge)));
    away.push(other("masq", &[]));
    let mut back = from(subnet.network(), &subnet.mask());
    back.extend(out_by(bridge));
    // NFTA_CT_DREG, KEY (status).
    back.push(other("ct", &[(1, Register::Reg1.into()), (2, 2)]));
    back.push(masked(&DNATED.to_ne_bytes()));
    back.push(compare(Operator::NotEqual, &[0; 4]));
    back.push(other("masq", &[]));
    [away, back]
}

fn from_loopback(bridge: &str) -> Rule {
    let mut rule = from(Ipv4Addr::new(127, 0, 0, 0).into(), &[255, 0, 0, 0]);
    rule.extend(out_by(bridge));
    rule.push(other("masq", &[]));
    rule
}

/// `ip saddr NETWORK`
fn from(network: IpAddr, mask: &[u8]) -> Rule {
    let family = family(network);
    vec![
        meta(MetaKey::Nfproto, Register::Reg1),
        equal(&[family.number]),
        payload(NETWORK_HEADER, family.source, family.length, Register::Reg1),
        masked(mask),
        equal(&octets(network)),
    ]
}

fn out_by(bridge: &str) -> [Expressions; 2] {
    [meta(MetaKey::Oifname, Register::Reg1), equal(&interface(bridge))]
}

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

fn meta(key: MetaKey, register: Register) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(register)])
}

fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn equal(value: &[u8]) -> Expressions {
    compare(Operator::Equal, value)
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn masked(mask: &[u8]) -> Expressions {
    let length = u32::try_from(mask.len()).unwrap_or(0);
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
}

/// An expression that the crate has no words for: attributes of 32 bits, big-endian.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attribute = |(kind, value): &(u16, u32)| DefaultNla::new(*kind, value.to_be_bytes().into());
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    }
}

/// The 32-bit register of this number.
fn words(index: u32) -> Register {
    // NFT_REG32_00 is 8.
    (8 + index).into()
}

/// As nftables compares interface names: all 16 bytes.
fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
