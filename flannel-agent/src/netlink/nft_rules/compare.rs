//! What a rule compares: the state of a flow, flags of TCP, addresses, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use ipnetwork::IpNetwork;

use super::{
    reader::{Loaded, NETWORK, Reader, TRANSPORT},
    rule::{number_in, value_in},
};
use crate::values::Family;

/// NF_CT_STATE_BIT(IP_CT_ESTABLISHED) (include/uapi/linux/netfilter/nf_conntrack_common.h).
pub(super) const ESTABLISHED: u32 = 2;
/// Flags of TCP with which a connection begins or ends, and those that come and go meanwhile (RFC 9293, RFC 3168).
const TCP_ENDS: u8 = TCP_SYN | TCP_FIN | TCP_RST;
const TCP_MEANWHILE: u8 = !(TCP_ENDS | TCP_ACK);

impl Reader {
    pub(super) fn mask(&mut self, data: &[u8]) {
        const MASK: u16 = 4;
        let with = value_in(data, MASK).unwrap_or_default();
        self.loaded = match (std::mem::replace(&mut self.loaded, Loaded::Other), with) {
            // In the byte order of this machine.
            (Loaded::State(_), with) => with
                .get(..4)
                .and_then(|with| with.try_into().ok())
                .map_or(Loaded::Other, |with| Loaded::State(u32::from_ne_bytes(with))),
            (Loaded::TcpFlags(_), [with, ..]) => Loaded::TcpFlags(*with),
            (Loaded::Bytes { base, offset, mask }, with) if with.len() >= mask.len() => {
                Loaded::Bytes { base, offset, mask: with[..mask.len()].to_vec() }
            }
            _ => Loaded::Other,
        };
    }

    pub(super) fn compare(&mut self, data: &[u8]) {
        const OPERATION: u16 = 2;
        const COMPARED: u16 = 3;
        const EQUAL: u32 = 0;
        const NOT_EQUAL: u32 = 1;
        let operation = number_in(data, OPERATION).unwrap_or(u32::MAX);
        let with = value_in(data, COMPARED).unwrap_or_default();
        let is_equal = operation == EQUAL;
        match self.loaded.clone() {
            Loaded::State(mask) if operation <= NOT_EQUAL => {
                let with = with.get(..4).and_then(|with| with.try_into().ok()).map_or(0, u32::from_ne_bytes);
                self.rule.sees_flows &= (ESTABLISHED & mask == with) == is_equal;
            }
            Loaded::Family if operation <= NOT_EQUAL => {
                let own: &[&[u8]] = match self.own {
                    Family::V4 => &[&[2], &[8, 0]],
                    Family::V6 => &[&[10], &[0x86, 0xdd]],
                };
                self.rule.sees_flows &= own.contains(&with) == is_equal;
            }
            Loaded::Protocol => self.protocol(with.first().copied(), is_equal),
            Loaded::TcpFlags(mask) => {
                self.rule.takes_all = false;
                self.tcp_flags(mask, is_equal, with.first().copied().unwrap_or(0));
            }
            Loaded::Bytes { base: NETWORK, offset, mask } if is_equal => self.addresses(offset, &mask, with),
            Loaded::Bytes { base: TRANSPORT, offset, mask } if mask.iter().all(|byte| *byte == u8::MAX) => {
                self.ports(offset, operation, with);
            }
            _ => self.rule.takes_all = false,
        }
    }

    fn protocol(&mut self, with: Option<u8>, is_equal: bool) {
        self.rule.takes_all = false;
        if is_equal {
            self.rule.sees_flows &= with.is_none_or(|it| matches!(it, PROTOCOL_TCP | PROTOCOL_UDP));
            self.rule.seen.protocol = with.or(self.rule.seen.protocol);
        }
    }

    /// By a comparison of the flags of TCP that are in `mask` with `flags`.
    fn tcp_flags(&mut self, mask: u8, is_equal: bool, flags: u8) {
        // What begins or ends a connection takes the kernel path.
        let only_ends = if is_equal { flags & TCP_ENDS != 0 } else { flags == 0 && mask & !TCP_ENDS == 0 };
        let never = is_equal && mask & TCP_ACK != 0 && flags & TCP_ACK == 0;
        if only_ends || never {
            self.rule.sees_flows = false;
        } else if mask & TCP_MEANWHILE != 0 && flags & TCP_ENDS == 0 {
            self.counts("tcp flags");
        }
    }

    /// Bytes of the header of IP from `offset` on are these. Addresses that lie next to each other, and the protocol before
    /// them, nft compares at once.
    fn addresses(&mut self, offset: usize, mask: &[u8], with: &[u8]) {
        let (protocol, source, destination, length) = match self.own {
            Family::V4 => (9, 12, 16, 4),
            Family::V6 => (6, 8, 24, 16),
        };
        let at = |at: usize| {
            let index = at.checked_sub(offset)?;
            Some((*with.get(index)?, *mask.get(index)?))
        };
        let mut covered = 0;
        if let Some((with, u8::MAX)) = at(protocol) {
            self.protocol(Some(with), true);
        }
        for (start, of) in [(source, 0), (destination, 1)] {
            let bytes: Vec<(u8, u8)> = (start..start + length).map_while(at).collect();
            covered += bytes.len();
            let named = network(&bytes, length);
            let seen = &mut self.rule.seen;
            let into = if of == 0 { &mut seen.source } else { &mut seen.destination };
            *into = named.or(*into);
            // Under a mask that is no prefix.
            self.rule.takes_all &= bytes.is_empty() || named.is_some();
        }
        self.rule.takes_all &= covered == mask.len();
    }

    /// Ports, both or one, are these, or no lower or higher.
    fn ports(&mut self, offset: usize, operation: u32, with: &[u8]) {
        self.rule.takes_all = false;
        let at = |at: usize| {
            let index = at.checked_sub(offset)?;
            Some(u16::from_be_bytes(with.get(index..index + 2)?.try_into().ok()?))
        };
        let both = with.len() > 2;
        for start in [0, 2] {
            let Some(port) = at(start) else { continue };
            let seen = &mut self.rule.seen;
            let ports = if start == 0 { &mut seen.source_ports } else { &mut seen.destination_ports };
            let (low, high) = ports.unwrap_or((0, u16::MAX));
            *ports = match operation {
                0 => Some((port, port)),
                // NFT_CMP_LT, LTE, GT, GTE.
                2 if !both => Some((low, port.saturating_sub(1))),
                3 if !both => Some((low, port)),
                4 if !both => Some((port.saturating_add(1), high)),
                5 if !both => Some((port, high)),
                _ => *ports,
            };
        }
    }

    pub(super) fn range(&mut self, data: &[u8]) {
        const OPERATION: u16 = 2;
        const FROM: u16 = 3;
        const TO: u16 = 4;
        self.rule.takes_all = false;
        let of = |kind| {
            value_in(data, kind).and_then(|with| Some(u16::from_be_bytes(with.get(..2)?.try_into().ok()?)))
        };
        if let (Loaded::Bytes { base: TRANSPORT, offset, mask }, Some(0), Some(from), Some(to)) =
            (&self.loaded, number_in(data, OPERATION), of(FROM), of(TO))
            && mask[..] == [u8::MAX; 2]
        {
            match offset {
                0 => self.rule.seen.source_ports = Some((from, to)),
                2 => self.rule.seen.destination_ports = Some((from, to)),
                _ => {}
            }
        }
    }
}

/// The network that the first bytes of an address, each with its mask, name; `None` where they name none.
fn network(bytes: &[(u8, u8)], length: usize) -> Option<IpNetwork> {
    if bytes.is_empty() {
        return None;
    }
    let mut address = [0; 16];
    let (mut prefix, mut ended) = (0u8, false);
    for (index, (with, mask)) in bytes.iter().enumerate() {
        address[index] = with & mask;
        let ones = mask.leading_ones();
        if u32::from(mask.count_ones() as u8) != ones || ended && ones > 0 {
            return None;
        }
        ended = ones < 8;
        prefix += ones as u8;
    }
    let address: IpAddr = match length {
        4 => Ipv4Addr::new(address[0], address[1], address[2], address[3]).into(),
        _ => Ipv6Addr::from(address).into(),
    };
    IpNetwork::new(address, prefix).ok()
}
