//! The network of a machine that has no CNI configuration: a bridge, a pair of interfaces for each
//! attachment, addresses out of configured ranges, masquerading and host ports. Made in this
//! process over netlink; no command is run.
//!
//! - `range`: subnets and their free addresses.
//! - `lease`: who has which addresses and host ports.
//! - `netlink`, `link`, `nft`: the kernel.
//!
//! **Crashes.** The record of an attachment holds its [`Lease`] and is written before anything is
//! made. So the addresses in use are those on record; there is no second store that could differ.
//! Before the first attachment of a daemon's life, what no record knows is removed.

mod lease;
mod link;
mod netlink;
mod nft;
mod range;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use lease::Lease;
pub use lease::LeaseError;
use lease::Leases;
use link::Link;
use netlink::Route;
pub use range::{InvalidSubnet, Subnet};

use crate::attachment::Attachment;

/// How the built-in network is made. Name and subnets are one daemon's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// The bridge, and the table of nftables; at most 15 bytes.
    pub name: String,
    /// Where addresses come from: at most one of each family, the primary one first.
    pub subnets: Vec<Subnet>,
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct KernelError {
    doing: String,
    source: io::Error,
}

/// Adds to an error what was being done.
fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError { doing: what.into(), source }
}

/// The beginning of the names of the pairs' ends on the host.
const PREFIX: &str = "bv";

/// The network. All calls block.
#[derive(Debug)]
pub(crate) struct Bridge {
    config: BridgeConfig,
    leases: Mutex<Leases>,
    /// The bridge, once all that pods share is there.
    ground: Mutex<Option<Link>>,
}

impl Bridge {
    /// With what is on record; touches nothing yet.
    pub(crate) fn new(config: BridgeConfig, known: impl IntoIterator<Item = Lease>) -> Self {
        let mut config = config;
        let has_ipv6 = Path::new("/proc/net/if_inet6").exists();
        config.subnets.retain(|subnet| subnet.is_ipv4() || has_ipv6);
        let leases = Leases::new(known);
        Self { config, leases: Mutex::new(leases), ground: Mutex::new(None) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves addresses and host ports. Given back by [`release`](Self::release).
    pub(crate) fn lease(&self, asked: &Attachment) -> Result<Lease, LeaseError> {
        self.leases().take(asked, &self.config.subnets)
    }

    /// Gives a lease back, of which nothing is left in the kernel.
    pub(crate) fn release(&self, lease: &Lease) {
        self.leases().give_back(lease);
    }

    /// Makes what pods share, if it isn't there: says whether pods can be attached.
    pub(crate) fn ready(&self) -> Result<(), KernelError> {
        self.ground().map(drop)
    }

    /// Makes the lease true in the namespace. Whoever fails here owes a [`detach`](Self::detach).
    pub(crate) fn attach(&self, lease: &Lease, netns: &Path) -> Result<(), KernelError> {
        let bridge = self.ground()?;
        let mut host = Route::here().map_err(doing("open netlink"))?;
        let pair = format!("make {} and {} of {}", lease.host, lease.ifname, lease.id);
        link::pair(&mut host, &lease.host, &bridge, (&lease.ifname, &lease.mac), netns)
            .map_err(doing(pair))?;
        link::hairpin(&mut host, &lease.host)
            .map_err(doing(format!("set hairpin mode of {}", lease.host)))?;
        self.furnish(lease, netns)?;
        nft::add(&self.config.name, &lease.forwards()).map_err(doing("add host ports"))
    }

    /// The end inside the namespace.
    fn furnish(&self, lease: &Lease, netns: &Path) -> Result<(), KernelError> {
        let inside = || format!("{} of {}", lease.ifname, lease.id);
        let mut route =
            Route::inside(netns).map_err(doing(format!("enter {}", netns.display())))?;
        let link = link::named(&mut route, &lease.ifname).map_err(doing(inside()))?;
        let mine = |address: &IpAddr| {
            self.config.subnets.iter().find(|subnet| subnet.contains(*address)).copied()
        };
        let subnets: Vec<(IpAddr, Subnet)> =
            lease.addresses.iter().filter_map(|it| Some((*it, mine(it)?))).collect();
        for (address, subnet) in &subnets {
            link::address(&mut route, link.index, *address, subnet.prefix())
                .map_err(doing(format!("give {address} to {}", inside())))?;
        }
        link::set_up(&mut route, link.index).map_err(doing(format!("set up {}", inside())))?;
        for (_, subnet) in &subnets {
            link::default_route(&mut route, link.index, subnet.gateway())
                .map_err(doing(format!("set the default route of {}", inside())))?;
        }
        Ok(())
    }

    /// Undoes as much as there is of it; the namespace may be gone.
    pub(crate) fn detach(&self, lease: &Lease) -> Result<(), KernelError> {
        // First: nothing shall lead to an address that is free again.
        nft::remove(&self.config.name, &lease.forwards()).map_err(doing("remove host ports"))?;
        let mut host = Route::here().map_err(doing("open netlink"))?;
        link::remove(&mut host, &lease.host).map_err(doing(format!("remove {}", lease.host)))
    }

    /// Whether the attachment's interface is there.
    pub(crate) fn check(&self, lease: &Lease) -> Result<(), KernelError> {
        let mut host = Route::here().map_err(doing("open netlink"))?;
        link::named(&mut host, &lease.host).map(drop).map_err(doing(lease.host.clone()))
    }

    /// What pods share. Looked at each time: somebody may have taken the bridge away.
    fn ground(&self) -> Result<Link, KernelError> {
        let mut ground = self.ground.lock().unwrap_or_else(PoisonError::into_inner);
        let name = &self.config.name;
        let mut host = Route::here().map_err(doing("open netlink"))?;
        if let Some(known) = ground.as_ref()
            && link::still(&mut host, known).map_err(doing(name.clone()))?
        {
            return Ok(known.clone());
        }
        let bridge = link::bridge(&mut host, name).map_err(doing(format!("make bridge {name}")))?;
        link::gateways(&mut host, &bridge, &self.config.subnets)
            .map_err(doing(format!("give bridge {name} its addresses")))?;
        self.set_forwarding()?;
        self.remove_strangers(&mut host, &bridge)?;
        let forwards = self.leases().forwards();
        nft::install(name, name, &self.config.subnets, &forwards)
            .map_err(doing(format!("make the table {name} of nftables")))?;
        Ok(ground.insert(bridge).clone())
    }

    /// Interfaces on our bridge that no record knows.
    fn remove_strangers(&self, host: &mut Route, bridge: &Link) -> Result<(), KernelError> {
        let known = self.leases().interfaces();
        let links = link::all(host).map_err(doing("list interfaces"))?;
        let ours = |it: &&Link| it.bridge == Some(bridge.index) && it.name.starts_with(PREFIX);
        for stray in links.iter().filter(ours).filter(|it| !known.contains(&it.name)) {
            tracing::warn!(interface = stray.name, "no pod has this interface: removed");
            link::remove(host, &stray.name).map_err(doing(format!("remove {}", stray.name)))?;
        }
        Ok(())
    }

    fn set_forwarding(&self) -> Result<(), KernelError> {
        let bridge = &self.config.name;
        let has = |ipv4: bool| self.config.subnets.iter().any(|it| it.is_ipv4() == ipv4);
        if has(true) {
            sysctl("net/ipv4/ip_forward")?;
            // For host ports at the host's loopback.
            sysctl(&format!("net/ipv4/conf/{bridge}/route_localnet"))?;
        }
        if has(false) {
            keep_router_advertisements()?;
            sysctl("net/ipv6/conf/all/forwarding")?;
        }
        Ok(())
    }
}

/// Switches it on, unless it is: where /proc/sys is read-only, that may be all there is to do.
fn sysctl(name: &str) -> Result<(), KernelError> {
    set(&Path::new("/proc/sys").join(name), "1")
}

fn set(path: &Path, value: &str) -> Result<(), KernelError> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(doing(format!("write {value} to {}", path.display())))
}

/// A host that forwards takes no routes from routers any more, unless it is told to (2 in
/// accept_ra): it would lose its own.
fn keep_router_advertisements() -> Result<(), KernelError> {
    let conf = Path::new("/proc/sys/net/ipv6/conf");
    let entries = fs::read_dir(conf).map_err(doing(format!("list {}", conf.display())))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != "all") {
        let file = entry.path().join("accept_ra");
        if fs::read_to_string(&file).is_ok_and(|now| now.trim() == "1") {
            set(&file, "2")?;
        }
    }
    Ok(())
}
