//! Whether a frame of the overlay, or of a pod, is right in itself, as a receiver without any offload would see it.

use anyhow::{Context as _, Result, ensure};
use etherparse::{Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TransportSlice};

/// VXLAN's UDP port on Linux.
const PORT: u16 = 8472;

/// Length of an Ethernet header, bytes.
const ETHERNET: usize = 14;

/// Longest frame of an underlay with the usual MTU of 1500.
const LONGEST: usize = 1514;

/// Holds a frame of the overlay, VNI 1, to its checksums and lengths, outer and inner; the transport protocol within.
/// `None` for what is not of the overlay, and for packets that are not TCP or UDP.
pub fn check(frame: &[u8]) -> Result<Option<u8>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (Some(net), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return Ok(None);
    };
    if udp.destination_port() != PORT {
        return Ok(None);
    }
    let Some(addresses) = Addresses::checked(net).context("outer")? else { return Ok(None) };
    let none = udp.checksum() == 0 && matches!(addresses, Addresses::V4(_));
    ensure!(none || udp.checksum() == addresses.sum(&packet)?, "outer UDP checksum");
    ensure!(frame.len() <= LONGEST, "a frame of {} bytes", frame.len());
    ensure!(udp.payload().get(..8) == Some(&[8, 0, 0, 0, 0, 0, 1, 0]), "VXLAN header");
    segment(udp.payload().get(8..).context("an inner frame")?).context("inner")
}

/// Holds a frame of TCP or UDP to its checksums and to the length of frames for this MTU; the transport protocol. `None`
/// for other packets.
pub fn check_inner(frame: &[u8], mtu: usize) -> Result<Option<u8>> {
    let found = segment(frame)?;
    ensure!(found.is_none() || frame.len() <= ETHERNET + mtu, "a frame of {} bytes", frame.len());
    Ok(found)
}

fn segment(frame: &[u8]) -> Result<Option<u8>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(addresses) = packet.net.as_ref().map(Addresses::checked).transpose()?.flatten() else {
        return Ok(None);
    };
    let (protocol, found) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (6, tcp.checksum()),
        Some(TransportSlice::Udp(udp)) => (17, udp.checksum()),
        _ => return Ok(None),
    };
    let sum = addresses.sum(&packet)?;
    // Both are zero in ones' complement, and right to every receiver: skb_checksum_help in net/core/dev.c writes
    // 0xffff whatever the protocol.
    let mangled = found == 0xffff && sum == 0;
    ensure!(found == sum || mangled, "checksum {found:#06x}, not {sum:#06x}, of protocol {protocol}");
    Ok(Some(protocol))
}

/// What checksums of segments cover of the IP header.
enum Addresses {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

impl Addresses {
    /// Those of a header that is right itself. `None` for other packets than IP.
    fn checked(net: &NetSlice<'_>) -> Result<Option<Self>> {
        match net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                ensure!(header.header_checksum == header.calc_header_checksum(), "header checksum");
                Ok(Some(Self::V4(header)))
            }
            NetSlice::Ipv6(ip) => Ok(Some(Self::V6(ip.header().to_header()))),
            _ => Ok(None),
        }
    }

    /// What the checksum of the packet's segment should be.
    fn sum(&self, packet: &SlicedPacket<'_>) -> Result<u16> {
        Ok(match (&packet.transport, self) {
            (Some(TransportSlice::Tcp(tcp)), Self::V4(ip)) => {
                tcp.to_header().calc_checksum_ipv4(ip, tcp.payload())?
            }
            (Some(TransportSlice::Tcp(tcp)), Self::V6(ip)) => {
                tcp.to_header().calc_checksum_ipv6(ip, tcp.payload())?
            }
            (Some(TransportSlice::Udp(udp)), Self::V4(ip)) => {
                udp.to_header().calc_checksum_ipv4(ip, udp.payload())?
            }
            (Some(TransportSlice::Udp(udp)), Self::V6(ip)) => {
                udp.to_header().calc_checksum_ipv6(ip, udp.payload())?
            }
            _ => anyhow::bail!("neither TCP nor UDP"),
        })
    }
}
