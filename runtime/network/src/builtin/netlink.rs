//! Requests to the kernel over netlink, one after the other. Everything here blocks, briefly.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const NFTABLES: u16 = 10;

/// A connection to rtnetlink of one network namespace.
pub(super) struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    /// Of the namespace that this process is in.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self { socket: open(NETLINK_ROUTE)?, sequence: 0 })
    }

    /// Of the namespace at this path. A socket belongs to the namespace in which it was made, so
    /// a thread of its own goes there, makes it, and ends.
    pub(super) fn inside(netns: &Path) -> io::Result<Self> {
        let namespace = File::open(netns)?;
        let made = thread::Builder::new().name("netns".into()).spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Self::here()
        })?;
        made.join().map_err(|_| io::Error::other("the thread in the namespace ended"))?
    }

    /// Asks for one change and waits until it is made.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_ACK)
    }

    /// Asks for all of something.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_DUMP)
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::new(header(flags, self.sequence), message.into());
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (received, _) = self.socket.recv_from_full()?;
            for answer in packets::<RouteNetlinkMessage>(&received)? {
                match answer.payload {
                    _ if answer.header.sequence_number != self.sequence => {}
                    NetlinkPayload::Error(error) => return outcome(&error).map(|()| found),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
            }
        }
    }
}

/// Makes these changes of nftables, all of them or none.
pub(super) fn nftables(changes: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
    let socket = open(NETLINK_NETFILTER)?;
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        NetfilterMessage::new(header, message)
    };
    let change = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        NetfilterMessage::new(header, message)
    };
    let mut batch = vec![(control(ControlMessage::BatchBegin), 0)];
    batch.extend(changes.into_iter().map(|(message, flags)| (change(message), flags | NLM_F_ACK)));
    batch.push((control(ControlMessage::BatchEnd), 0));
    let (mut bytes, mut awaited) = (Vec::new(), 0);
    for (sequence, (message, flags)) in (1..).zip(batch) {
        awaited += usize::from(flags & NLM_F_ACK != 0);
        let mut packet = NetlinkMessage::new(header(flags, sequence), message.into());
        packet.finalize();
        let start = bytes.len();
        bytes.resize(start + packet.buffer_len(), 0);
        packet.serialize(bytes.get_mut(start..).unwrap_or_default());
    }
    socket.send(&bytes, 0)?;
    // Each change is answered; the first that was refused says why none was made.
    while awaited > 0 {
        let (received, _) = socket.recv_from_full()?;
        for answer in packets::<NetfilterMessage>(&received)? {
            if let NetlinkPayload::Error(error) = answer.payload {
                outcome(&error)?;
                awaited = awaited.saturating_sub(1);
            }
        }
    }
    Ok(())
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn header(flags: u16, sequence: u32) -> NetlinkHeader {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    header
}

/// Several may come at once, each beginning at a multiple of four.
fn packets<M>(mut bytes: &[u8]) -> io::Result<Vec<NetlinkMessage<M>>>
where
    M: netlink_packet_core::NetlinkDeserializable,
{
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let packet = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
        let length = usize::try_from(packet.header.length).map_err(io::Error::other)?;
        bytes = bytes.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
        found.push(packet);
    }
    Ok(found)
}

fn outcome(error: &netlink_packet_core::ErrorMessage) -> io::Result<()> {
    error.code.map_or(Ok(()), |_| Err(error.to_io()))
}
