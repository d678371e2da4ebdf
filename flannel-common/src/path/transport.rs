//! What tells flows apart beside their addresses, and what connection tracking must see: the headers of TCP and UDP.

use super::trail;
use crate::{
    family::{Family, IpHeader as _},
    layout::{Flow, FlowProtocol},
    packet::{
        Packet,
        headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TCP_TO_FLAGS},
    },
    reason::{Direction, Reason},
};

/// The pod's address and the other end's, of a packet that travels `way`.
#[inline(always)]
pub(super) fn ends<F: Family>(way: Direction, ip: &F::Header) -> (F::Address, F::Address) {
    match way {
        Direction::Egress => (ip.source(), ip.destination()),
        Direction::Ingress => (ip.destination(), ip.source()),
    }
}

/// What tells the flows between two addresses apart.
#[derive(Clone, Copy)]
pub(super) struct Transport {
    pub(super) protocol: FlowProtocol,
    /// Port of the sender, host order.
    pub(super) source: u16,
    /// Port of the receiver, host order.
    pub(super) destination: u16,
    /// TCP flags; none for UDP.
    flags: u8,
    /// Sequence and acknowledgment numbers of TCP; none for UDP.
    numbers: [u32; 2],
}

impl Transport {
    /// Of the packet whose header of `protocol` stands at `at`.
    #[inline(always)]
    pub(super) fn at(packet: &(impl Packet + ?Sized), at: usize, protocol: u8) -> Result<Self, Reason> {
        let (protocol, flags, numbers) = match protocol {
            PROTOCOL_TCP => {
                let header: &[u8; TCP_TO_FLAGS] = packet.view(at).ok_or(Reason::Truncated)?;
                let [_, _, _, _, a, b, c, d, e, f, g, h, _, flags] = *header;
                let numbers = [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])];
                (FlowProtocol::Tcp, flags, numbers)
            }
            // As in the midst of a connection.
            PROTOCOL_UDP => (FlowProtocol::Udp, TCP_ACK, [0; 2]),
            _ => return Err(Reason::FlowProtocol),
        };
        let [a, b, c, d] = *packet.view(at).ok_or(Reason::Truncated)?;
        let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Ok(Self { protocol, source, destination, flags, numbers })
    }

    /// What rules may change of the packet, which travels `way`.
    #[inline(always)]
    pub(super) fn header<F: Family>(&self, way: Direction, ip: &F::Header) -> trail::Header {
        let class = match way {
            Direction::Egress => ip.class(),
            Direction::Ingress => ip.class() & !3,
        };
        trail::Header { class, hops: ip.hops(), numbers: self.numbers }
    }

    /// Refuses what connection tracking must see whatever is known: also what acknowledges nothing, which no connection
    /// sends, and which it has for INVALID (`tcp_valid_flags`, net/netfilter/nf_conntrack_proto_tcp.c).
    #[inline(always)]
    pub(super) const fn check_control(&self) -> Result<(), Reason> {
        if self.flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK) != TCP_ACK {
            return Err(Reason::FlowControl);
        }
        Ok(())
    }

    /// Whether a TCP connection begins or ends, be it on one side only. Connection tracking must see what
    /// answers that: having missed the last acknowledgement, it would take the first packet of a new
    /// connection between the same ports for one of the old.
    #[inline(always)]
    pub(super) const fn begins_or_ends(&self) -> bool {
        self.flags & (TCP_FIN | TCP_RST) != 0 || self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Whether a TCP connection begins, be it that the other side answers that.
    #[inline(always)]
    pub(super) const fn begins(&self) -> bool {
        self.flags & TCP_SYN != 0
    }

    /// Whether one side gives the TCP connection up at once, or has lost it, and begins anew: then the other side has
    /// it reset.
    #[inline(always)]
    pub(super) const fn breaks_off(&self) -> bool {
        self.flags & (TCP_SYN | TCP_RST) != 0
    }

    /// Whether one side resets the TCP connection, or somebody else in its name.
    #[inline(always)]
    pub(super) const fn resets(&self) -> bool {
        self.flags & TCP_RST != 0
    }

    /// The pod's port and the other end's, of a packet that travels `way`.
    #[inline(always)]
    const fn ports(&self, way: Direction) -> (u16, u16) {
        match way {
            Direction::Egress => (self.source, self.destination),
            Direction::Ingress => (self.destination, self.source),
        }
    }

    /// The flow of the packet, which travels `way`. Made of words where it is needed, and never moved: copies
    /// would be in pieces that the verifier refuses.
    #[inline(always)]
    pub(super) fn flow<F: Family>(&self, way: Direction, ip: &F::Header) -> Flow<F> {
        let (local, remote) = ends::<F>(way, ip);
        let (local_port, remote_port) = self.ports(way);
        Flow { local, remote, local_port, remote_port, protocol: self.protocol }
    }
}
