//! Flows that connection tracking forgets, by the kernel's notices of entries that go (ctnetlink).
//!
//! The kernel writes each in one way (net/netfilter/nf_conntrack_netlink.c, `ctnetlink_conntrack_event`): a header, and first of
//! all attributes the addresses and ports as the one has sent who began. So these have their places, where the lengths and
//! kinds of the attributes in front of them are compared.

use crate::{
    family::{V4, V6},
    layout::{AddressV6, Flow, FlowProtocol},
    packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP},
};

/// Words that are read of a notice.
pub const WORDS: usize = 24;

/// Address families (include/linux/socket.h): the first byte of `struct nfgenmsg`, behind the header of all of netlink.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where things stand, in words: the family, the attribute of the tuple, and in it that of the addresses.
const FAMILY: usize = 4;
const TUPLE: usize = 5;
const ADDRESSES: usize = 6;
const SOURCE: usize = 7;

/// Kinds of attributes (include/uapi/linux/netfilter/nfnetlink_conntrack.h): `CTA_TUPLE_ORIG`; in it `CTA_TUPLE_IP`
/// and `CTA_TUPLE_PROTO`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PORTS: u16 = 2;
/// `CTA_IP_V4_SRC` and what follows it.
const V4_SOURCE: u16 = 1;
const V6_SOURCE: u16 = 3;
/// `CTA_PROTO_NUM` and what follows it.
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// What connection tracking forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// A flow as the one knows it who began it.
    V4(Flow<V4>),
    /// The same of IPv6.
    V6(Flow<V6>),
    /// Nothing with ports of TCP or UDP.
    Other,
    /// Something that is written in another way.
    Unread,
}

/// What the notice that begins so is about.
#[inline(always)]
pub fn read(notice: &[u32; WORDS]) -> Forgotten {
    if !is(notice[TUPLE], None, TUPLE_ORIGINAL) {
        return Forgotten::Unread;
    }
    match notice[FAMILY].to_ne_bytes()[0] {
        AF_INET => read_v4(notice),
        AF_INET6 => read_v6(notice),
        _ => Forgotten::Other,
    }
}

#[inline(always)]
fn read_v4(notice: &[u32; WORDS]) -> Forgotten {
    let [local, remote] = [SOURCE + 1, SOURCE + 3];
    if !is(notice[ADDRESSES], Some(20), TUPLE_IP)
        || !is(notice[SOURCE], Some(8), V4_SOURCE)
        || !is(notice[SOURCE + 2], Some(8), V4_SOURCE + 1)
    {
        return Forgotten::Unread;
    }
    match ports(notice, SOURCE + 4) {
        Ok((protocol, local_port, remote_port)) => Forgotten::V4(Flow {
            local: notice[local].to_ne_bytes(),
            remote: notice[remote].to_ne_bytes(),
            local_port,
            remote_port,
            protocol,
        }),
        Err(other) => other,
    }
}

#[inline(always)]
fn read_v6(notice: &[u32; WORDS]) -> Forgotten {
    let [local, remote] = [SOURCE + 1, SOURCE + 6];
    if !is(notice[ADDRESSES], Some(44), TUPLE_IP)
        || !is(notice[SOURCE], Some(20), V6_SOURCE)
        || !is(notice[SOURCE + 5], Some(20), V6_SOURCE + 1)
    {
        return Forgotten::Unread;
    }
    match ports(notice, SOURCE + 10) {
        Ok((protocol, local_port, remote_port)) => Forgotten::V6(Flow {
            local: address(notice, local),
            remote: address(notice, remote),
            local_port,
            remote_port,
            protocol,
        }),
        Err(other) => other,
    }
}

#[inline(always)]
fn address(notice: &[u32; WORDS], at: usize) -> AddressV6 {
    let half = |at: usize| {
        let ([a, b, c, d], [e, f, g, h]) = (notice[at].to_ne_bytes(), notice[at + 1].to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    AddressV6::of_halves([half(at), half(at + 2)])
}

/// Protocol and ports, by the attribute at `at`.
#[inline(always)]
fn ports(notice: &[u32; WORDS], at: usize) -> Result<(FlowProtocol, u16, u16), Forgotten> {
    if !is(notice[at], None, TUPLE_PORTS) || !is(notice[at + 1], Some(5), PROTOCOL) {
        return Err(Forgotten::Unread);
    }
    let protocol = match notice[at + 2].to_ne_bytes()[0] {
        PROTOCOL_TCP => FlowProtocol::Tcp,
        PROTOCOL_UDP => FlowProtocol::Udp,
        _ => return Err(Forgotten::Other),
    };
    if !is(notice[at + 3], Some(6), SOURCE_PORT) || !is(notice[at + 5], Some(6), DESTINATION_PORT) {
        return Err(Forgotten::Unread);
    }
    let port = |at: usize| {
        let [high, low, _, _] = notice[at].to_ne_bytes();
        u16::from_be_bytes([high, low])
    };
    Ok((protocol, port(at + 4), port(at + 6)))
}

/// Whether a word begins an attribute of a kind, and of a length, if there is but one. The two upper bits of the kind are flags.
#[inline(always)]
const fn is(word: u32, length: Option<u16>, kind: u16) -> bool {
    const fn header(length: u16, kind: u16) -> u32 {
        let ([a, b], [c, d]) = (length.to_ne_bytes(), kind.to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }
    match length {
        Some(length) => word & header(0xffff, 0x3fff) == header(length, kind),
        None => word & header(0, 0x3fff) == header(0, kind),
    }
}
