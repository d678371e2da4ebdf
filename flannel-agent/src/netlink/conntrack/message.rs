//! Requests about one entry, as ctnetlink takes them.

use std::{net::IpAddr, time::Duration};

use flannel_common::layout::FlowProtocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::entry::{
    ConntrackTuple, DESTINATION_PORT, OF_TCP, PROTOCOL, PROTOCOL_STATE, SOURCE_PORT, TCP_STATE, TIMEOUT,
    TUPLE_IP, TUPLE_ORIGINAL, TUPLE_PORTS, TcpState, V4_DESTINATION, V4_SOURCE, V6_DESTINATION, V6_SOURCE,
};
use crate::netlink::raw::{HEADER, NESTED, put};

/// Subsystem of connection tracking, in the upper byte of a message's type (include/uapi/linux/netfilter/nfnetlink.h).
const CTNETLINK: u16 = 1 << 8;
/// Kinds of its messages (include/uapi/linux/netfilter/nfnetlink_conntrack.h, `enum cntl_msg_types`).
const NEW: u16 = CTNETLINK;
pub(super) const GET: u16 = CTNETLINK | 1;
pub(super) const DELETE: u16 = CTNETLINK | 2;
/// A request of `kind` about the entry of `tuple`. The sequence number is 0.
pub(super) fn request(kind: u16, flags: u16, tuple: &ConntrackTuple) -> Vec<u8> {
    let family = match tuple.source.ip() {
        IpAddr::V4(_) => nix::libc::AF_INET,
        IpAddr::V6(_) => nix::libc::AF_INET6,
    };
    // Both fit: families are small, messages have some hundred bytes.
    let mut bytes = vec![0; HEADER];
    bytes.extend([family as u8, 0, 0, 0]);
    nest(&mut bytes, TUPLE_ORIGINAL, |bytes| write_tuple(bytes, tuple));
    let length = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// A request to give the TCP connection of `tuple` another `state`, if any, and to keep it for so long if nothing more comes,
/// which the kernel answers in any case. Nothing is made where there is none.
pub(super) fn change(tuple: &ConntrackTuple, state: Option<TcpState>, kept: Option<Duration>) -> Vec<u8> {
    let mut bytes = request(NEW, NLM_F_REQUEST | NLM_F_ACK, tuple);
    if let Some(state) = state {
        nest(&mut bytes, PROTOCOL_STATE, |bytes| {
            nest(bytes, OF_TCP, |bytes| put(bytes, TCP_STATE, &[state as u8]));
        });
    }
    if let Some(kept) = kept {
        let seconds = u32::try_from(kept.as_secs()).unwrap_or(u32::MAX);
        put(&mut bytes, TIMEOUT, &seconds.to_be_bytes());
    }
    let length = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn write_tuple(bytes: &mut Vec<u8>, tuple: &ConntrackTuple) {
    nest(bytes, TUPLE_IP, |bytes| {
        for (end, v4, v6) in
            [(tuple.source, V4_SOURCE, V6_SOURCE), (tuple.destination, V4_DESTINATION, V6_DESTINATION)]
        {
            match end.ip() {
                IpAddr::V4(address) => put(bytes, v4, &address.octets()),
                IpAddr::V6(address) => put(bytes, v6, &address.octets()),
            }
        }
    });
    nest(bytes, TUPLE_PORTS, |bytes| {
        let protocol = match tuple.protocol {
            FlowProtocol::Tcp => nix::libc::IPPROTO_TCP,
            FlowProtocol::Udp => nix::libc::IPPROTO_UDP,
        };
        put(bytes, PROTOCOL, &[protocol as u8]);
        put(bytes, SOURCE_PORT, &tuple.source.port().to_be_bytes());
        put(bytes, DESTINATION_PORT, &tuple.destination.port().to_be_bytes());
    });
}

fn nest(bytes: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 2]);
    bytes.extend((kind | NESTED).to_ne_bytes());
    inside(bytes);
    let length = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}
