//! Who has which addresses and host ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::PREFIX;
use super::nft::Forward;
use super::range::Subnet;
use crate::attachment::{Attachment, PortMapping};

/// What one attachment has of the built-in network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) id: String,
    pub(crate) ifname: String,
    /// The name of the pair's end on the host.
    pub(crate) host: String,
    /// The hardware address inside.
    pub(crate) mac: String,
    /// The primary one first.
    pub(crate) addresses: Vec<IpAddr>,
    ports: Vec<PortMapping>,
}

impl Lease {
    /// Each host port, for each family in which it can be had.
    pub(super) fn forwards(&self) -> Vec<Forward> {
        let ports = self.ports.iter();
        let each = |port: &PortMapping| {
            let fits = |address: &&IpAddr| {
                port.host_ip.is_none_or(|host| host.is_ipv4() == address.is_ipv4())
            };
            let forward = |pod: &IpAddr| Forward {
                protocol: port.protocol,
                host: port.host_ip,
                host_port: port.host_port,
                pod: *pod,
                pod_port: port.container_port,
            };
            self.addresses.iter().filter(fits).map(forward).collect::<Vec<_>>()
        };
        ports.flat_map(each).collect()
    }
}

/// Why an attachment can't have what it asks for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The range has no free address.
    #[error("all addresses of {subnet} are in use")]
    Exhausted {
        /// The range.
        subnet: Subnet,
    },
    /// The address that was asked for is not of our ranges.
    #[error("ips: {address} is in none of the network's ranges")]
    Foreign {
        /// The address.
        address: String,
    },
    /// The address that was asked for is somebody's.
    #[error("ips: {address} is in use by {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The attachment that has it.
        owner: String,
    },
    /// The host port is somebody's.
    #[error("host port {port}/{protocol} is in use by {owner}")]
    Port {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: &'static str,
        /// The attachment that has it.
        owner: String,
    },
    /// The attachment is there already.
    #[error("{ifname} of {id} has addresses already")]
    Exists {
        /// The attachment.
        id: String,
        /// Its interface.
        ifname: String,
    },
}

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    all: BTreeMap<(String, String), Lease>,
    /// The address last given out, of each family.
    last: BTreeMap<bool, IpAddr>,
}

impl Leases {
    pub(super) fn new(known: impl IntoIterator<Item = Lease>) -> Self {
        let key = |lease: &Lease| (lease.id.clone(), lease.ifname.clone());
        let all = known.into_iter().map(|lease| (key(&lease), lease)).collect();
        Self { all, last: BTreeMap::new() }
    }

    /// All or nothing.
    pub(super) fn take(
        &mut self,
        asked: &Attachment,
        subnets: &[Subnet],
    ) -> Result<Lease, LeaseError> {
        let (id, ifname) = (asked.id.clone(), asked.ifname.clone());
        if self.all.contains_key(&(id.clone(), ifname.clone())) {
            return Err(LeaseError::Exists { id, ifname });
        }
        let ports: Vec<PortMapping> =
            asked.port_mappings.iter().filter(|port| port.host_port != 0).cloned().collect();
        self.check_ports(&ports)?;
        let addresses = self.addresses(asked, subnets)?;
        let host = host_name(&id, &ifname);
        let mac = asked.mac.clone().unwrap_or_else(|| mac(addresses.first().copied()));
        let lease = Lease { host, mac, addresses, ports, id: id.clone(), ifname: ifname.clone() };
        self.last.extend(lease.addresses.iter().map(|address| (address.is_ipv4(), *address)));
        self.all.insert((id, ifname), lease.clone());
        Ok(lease)
    }

    pub(super) fn give_back(&mut self, lease: &Lease) {
        self.all.remove(&(lease.id.clone(), lease.ifname.clone()));
    }

    pub(super) fn forwards(&self) -> Vec<Forward> {
        self.all.values().flat_map(Lease::forwards).collect()
    }

    pub(super) fn interfaces(&self) -> Vec<String> {
        self.all.values().map(|lease| lease.host.clone()).collect()
    }

    fn owner(&self, address: IpAddr) -> Option<&Lease> {
        self.all.values().find(|lease| lease.addresses.contains(&address))
    }

    fn addresses(&self, asked: &Attachment, subnets: &[Subnet]) -> Result<Vec<IpAddr>, LeaseError> {
        let mut wanted = Vec::new();
        for text in &asked.ips {
            let bare = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
            let foreign = || LeaseError::Foreign { address: text.clone() };
            let address: IpAddr = bare.parse().map_err(|_| foreign())?;
            let subnet = subnets.iter().find(|subnet| subnet.contains(address));
            let subnet = subnet.filter(|it| it.gateway() != address).ok_or_else(foreign)?;
            if let Some(owner) = self.owner(address) {
                return Err(LeaseError::Taken { address, owner: owner.id.clone() });
            }
            wanted.push((*subnet, address));
        }
        let one = |subnet: &Subnet| {
            if let Some((_, address)) = wanted.iter().find(|(of, _)| of == subnet) {
                return Ok(*address);
            }
            let last = self.last.get(&subnet.is_ipv4()).copied();
            let free = subnet.free(last, |address| self.owner(address).is_some());
            free.ok_or(LeaseError::Exhausted { subnet: *subnet })
        };
        subnets.iter().map(one).collect()
    }

    /// A port at every address takes it at each one.
    fn check_ports(&self, ports: &[PortMapping]) -> Result<(), LeaseError> {
        for (index, port) in ports.iter().enumerate() {
            let meets = |other: &&PortMapping| {
                let same = other.host_port == port.host_port && other.protocol == port.protocol;
                let apart = matches!((other.host_ip, port.host_ip), (Some(a), Some(b)) if a != b);
                same && !apart
            };
            let error = |owner: &str| LeaseError::Port {
                port: port.host_port,
                protocol: port.protocol.as_str(),
                owner: owner.to_owned(),
            };
            if ports.iter().take(index).any(|other| meets(&other)) {
                return Err(error("the same pod"));
            }
            if let Some(owner) = self.all.values().find(|it| it.ports.iter().any(|p| meets(&p))) {
                return Err(error(&owner.id));
            }
        }
        Ok(())
    }
}

/// A name of 13 bytes that another attachment hardly has; the kernel would refuse it.
fn host_name(id: &str, ifname: &str) -> String {
    // FNV-1a.
    let hash =
        id.bytes().chain([b'/']).chain(ifname.bytes()).fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{PREFIX}{:011x}", hash & 0xfff_ffff_ffff)
}

/// Made of the address, as CNI's plugins do: whoever gets the address later has the same, and no
/// neighbour's table is wrong.
fn mac(address: Option<IpAddr>) -> String {
    let last: [u8; 4] = match address {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    let [a, b, c, d] = last;
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
