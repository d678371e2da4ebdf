//! The packet that is imagined, as frames at the hooks.

use std::{collections::BTreeSet, net::IpAddr};

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    PacketBuilder, PacketBuilderStep,
};
use flannel_common::{
    layout::AddressV6,
    packet::{
        Fib, Packet,
        headers::{
            ETHERNET_LEN, IPV4_LEN, PROTOCOL_IPIP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST,
            TCP_SYN, UDP_LEN, Vxlan,
        },
    },
    path::ecn,
};
use serde::Serialize;

use crate::values::Mac;

/// An imagined packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Imagined {
    /// Its source.
    pub source: IpAddr,
    /// Its destination, of the same family.
    pub destination: IpAddr,
    /// Its protocol (IANA): 6, 17, 1 or 58, or any other without ports.
    pub protocol: u8,
    /// Source port of TCP and UDP, host order.
    pub source_port: u16,
    /// Destination port of TCP and UDP, host order.
    pub destination_port: u16,
    /// Flags of TCP, as in its header.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// TOS byte or traffic class: DSCP and ECN (RFC 2474, RFC 3168).
    pub tos: u8,
    /// Length of the IP packet, bytes.
    pub size: u16,
}

/// A packet that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// Two families.
    #[error("{0} and {1} are addresses of two families: give two of one")]
    Families(IpAddr, IpAddr),
    /// Too small.
    #[error(
        "--size={size}: the headers alone take {least} bytes: give {least} to 65535, or leave --size out"
    )]
    Size {
        /// As given.
        size: u16,
        /// The headers.
        least: u16,
    },
}

/// Length of the header of TCP without options, and of ICMP's echo, bytes.
const TCP_LEN: u16 = 20;
const ECHO_LEN: u16 = 8;

impl Imagined {
    /// One that carries others between two nodes, `ends`, in a protocol, with UDP to a port.
    pub(super) const fn carrier(ends: (IpAddr, IpAddr), (protocol, port): (u8, u16)) -> Self {
        Self {
            source: ends.0,
            destination: ends.1,
            protocol,
            source_port: 49_152,
            destination_port: port,
            tcp_flags: 0,
            hops: 64,
            tos: 0,
            size: 0,
        }
    }

    /// Length of its headers, bytes.
    pub const fn headers(&self) -> u16 {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        ip + match self.protocol {
            PROTOCOL_TCP => TCP_LEN,
            PROTOCOL_UDP => UDP_LEN as u16,
            1 | 58 => ECHO_LEN,
            _ => 0,
        }
    }

    /// Whether it can be.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), Impossible> {
        if self.source.is_ipv4() != self.destination.is_ipv4() {
            return Err(Impossible::Families(self.source, self.destination));
        }
        let least = self.headers();
        if self.size < least {
            return Err(Impossible::Size { size: self.size, least });
        }
        Ok(())
    }

    /// One hop further.
    pub(super) const fn forwarded(self) -> Self {
        Self { hops: self.hops.saturating_sub(1), ..self }
    }

    /// As a frame from one station to another.
    pub fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        let stations = PacketBuilder::ethernet2(from.0, to.0);
        self.written(addressed(stations, self.source, self.destination, self.hops, self.tos))
    }

    /// As it goes through a device without Ethernet.
    pub(super) fn bare(&self) -> Vec<u8> {
        self.frame(Mac([0; 6]), Mac([0; 6])).split_off(ETHERNET_LEN)
    }

    fn written(&self, builder: PacketBuilderStep<IpHeaders>) -> Vec<u8> {
        let payload = vec![0; usize::from(self.size.saturating_sub(self.headers()))];
        let mut bytes = Vec::new();
        // A vector takes all that is written, and `check` has seen to the lengths.
        let _ = match self.protocol {
            PROTOCOL_TCP => {
                let has = |flag| self.tcp_flags & flag != 0;
                let mut tcp = builder.tcp(self.source_port, self.destination_port, 1, 65_535);
                if has(TCP_SYN) {
                    tcp = tcp.syn();
                }
                if has(TCP_ACK) {
                    tcp = tcp.ack(1);
                }
                if has(TCP_FIN) {
                    tcp = tcp.fin();
                }
                if has(TCP_RST) {
                    tcp = tcp.rst();
                }
                tcp.write(&mut bytes, &payload)
            }
            PROTOCOL_UDP => builder.udp(self.source_port, self.destination_port).write(&mut bytes, &payload),
            1 => builder.icmpv4_echo_request(1, 1).write(&mut bytes, &payload),
            58 => builder.icmpv6_echo_request(1, 1).write(&mut bytes, &payload),
            other => builder.write(&mut bytes, IpNumber(other), &payload),
        };
        bytes
    }
}

/// In VXLAN between two nodes.
pub(super) fn in_vxlan(
    inner: &[u8],
    vni: u32,
    port: u16,
    ends: (IpAddr, IpAddr),
    stations: (Mac, Mac),
) -> Vec<u8> {
    in_udp(&[&Vxlan::of(vni).bytes(), inner].concat(), port, ends, stations)
}

/// In UDP between two nodes.
pub(super) fn in_udp(payload: &[u8], port: u16, ends: (IpAddr, IpAddr), stations: (Mac, Mac)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(stations.1.0, stations.0.0);
    let mut bytes = Vec::new();
    // As in `written`.
    let _ = addressed(builder, ends.0, ends.1, 64, 0).udp(49_152, port).write(&mut bytes, payload);
    bytes
}

/// In IP between two nodes, as the kernel's device puts it there.
pub(super) fn in_ip(inner: &[u8], ends: (IpAddr, IpAddr), stations: (Mac, Mac)) -> Vec<u8> {
    let (tos, hops) = inner.get(..IPV4_LEN).map_or((0, 64), |ip| (ecn::encapsulate(ip[1]), ip[8]));
    let builder = PacketBuilder::ethernet2(stations.1.0, stations.0.0);
    let mut bytes = Vec::new();
    // As in `written`.
    let _ = addressed(builder, ends.0, ends.1, hops, tos).write(&mut bytes, IpNumber(PROTOCOL_IPIP), inner);
    bytes
}

fn addressed(
    builder: PacketBuilderStep<etherparse::Ethernet2Header>,
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
    tos: u8,
) -> PacketBuilderStep<IpHeaders> {
    let (source, destination) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (dscp, ecn) = (IpDscp::try_new(tos >> 2), IpEcn::try_new(tos & 3));
            // All values of these bits are allowed.
            return builder.ip(IpHeaders::Ipv4(
                Ipv4Header {
                    source: source.octets(),
                    destination: destination.octets(),
                    time_to_live: hops,
                    dscp: dscp.unwrap_or_default(),
                    ecn: ecn.unwrap_or_default(),
                    dont_fragment: true,
                    ..Ipv4Header::default()
                },
                Ipv4Extensions::default(),
            ));
        }
        ends => ends,
    };
    builder.ip(IpHeaders::Ipv6(
        Ipv6Header {
            source: octets(source),
            destination: octets(destination),
            hop_limit: hops,
            traffic_class: tos,
            ..Ipv6Header::default()
        },
        Ipv6Extensions::default(),
    ))
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// A frame at a hook, on a node with these addresses.
pub(super) struct AtHook<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) own: &'a BTreeSet<IpAddr>,
}

impl AtHook<'_> {
    fn fib(&self, destination: IpAddr) -> Fib {
        if self.own.contains(&destination) { Fib::Local } else { Fib::Forwarded }
    }
}

impl Packet for AtHook<'_> {
    fn len(&self) -> u32 {
        Packet::len(self.bytes)
    }

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.bytes.view(offset)
    }

    fn write<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
        None
    }

    fn fib_v4(&self, _: u32, _: [u8; 4], destination: [u8; 4]) -> Fib {
        self.fib(destination.into())
    }

    fn fib_v6(&self, _: u32, _: AddressV6, destination: AddressV6) -> Fib {
        self.fib(destination.octets.into())
    }
}
