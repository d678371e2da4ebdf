//! What translation writes into a packet, as netfilter would (net/netfilter/nf_nat_proto.c).

use crate::{
    family::{Address as _, Family, IpHeader as _},
    layout::{FlowProtocol, Translation},
    packet::{
        Packet,
        checksum::fold,
        headers::{TCP_CHECKSUM, UDP_CHECKSUM},
    },
    reason::Direction,
};

/// How to translate a packet: its other end, seen from the pod, becomes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<F: Family> {
    /// Which way the packet travels: from a pod the destination changes, to a pod the source.
    pub way: Direction,
    /// The address that it gets.
    pub remote: F::Address,
    /// The port that it gets, host order.
    pub port: u16,
    /// What has the ports.
    pub protocol: FlowProtocol,
    /// By how much the sum of the addresses grows, in one's complement, big-endian.
    pub addresses: u16,
    /// The same of the ports.
    pub ports: u16,
}

impl<F: Family> Rewrite<F> {
    /// By `translation`, of a packet that travels `way` and has the header `ip` and the other end's port `port`.
    #[inline(always)]
    pub(super) fn new(
        way: Direction,
        translation: &Translation<F>,
        ip: &F::Header,
        protocol: FlowProtocol,
        port: u16,
    ) -> Self {
        let Translation { remote, remote_port, .. } = *translation;
        let was = match way {
            Direction::Egress => ip.destination(),
            Direction::Ingress => ip.source(),
        };
        let grown = |now: u32, before: u32| fold(now + u32::from(!fold(before)));
        Self {
            way,
            remote,
            port: remote_port,
            protocol,
            addresses: grown(remote.sum(), was.sum()),
            ports: grown(u32::from(remote_port), u32::from(port)),
        }
    }

    /// Where the checksum stands of a packet whose IP header stands at `offset`.
    #[inline(always)]
    pub const fn checksum_at(&self, offset: usize) -> usize {
        let in_header = match self.protocol {
            FlowProtocol::Tcp => TCP_CHECKSUM,
            FlowProtocol::Udp => UDP_CHECKSUM,
        };
        offset + F::IP_LEN + in_header
    }

    /// Writes address and port into `packet`, whose IP header stands at `offset`; `None` when it ends before. The checksums
    /// are the caller's: that of IP is in [`crate::family::Forward::translated`], and the other one may be left to the NIC.
    #[inline(always)]
    pub fn write(&self, packet: &mut (impl Packet + ?Sized), offset: usize) -> Option<()> {
        let (address_at, port_at) = match self.way {
            Direction::Egress => (F::DESTINATION_AT, 2),
            Direction::Ingress => (F::SOURCE_AT, 0),
        };
        packet.write(offset + F::IP_LEN + port_at, self.port.to_be_bytes())?;
        self.remote.write(packet, offset + address_at)
    }

    /// The checksum of TCP or UDP after `checksum`, where the sender has made it. UDP may have none.
    pub const fn checksum(&self, checksum: u16) -> u16 {
        let is_udp = matches!(self.protocol, FlowProtocol::Udp);
        if is_udp && checksum == 0 {
            return 0;
        }
        let sum = fold((!checksum) as u32 + self.addresses as u32);
        let sum = !fold(sum as u32 + self.ports as u32);
        if is_udp && sum == 0 { 0xffff } else { sum }
    }
}
