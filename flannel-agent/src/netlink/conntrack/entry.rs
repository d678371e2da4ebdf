//! What connection tracking knows of one connection.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use flannel_common::layout::FlowProtocol;

use crate::netlink::raw::{HEADER, attributes};

/// Length of `struct nfgenmsg`, bytes.
pub(super) const GENERIC: usize = 4;
/// Attributes of an entry (include/uapi/linux/netfilter/nfnetlink_conntrack.h, `enum ctattr_type`).
pub(super) const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
pub(super) const PROTOCOL_STATE: u16 = 4;
const HELP: u16 = 5;
pub(super) const TIMEOUT: u16 = 7;
const ID: u16 = 12;
/// Attributes of what a protocol knows of it (`enum ctattr_protoinfo`), and of TCP's part of that
/// (`enum ctattr_protoinfo_tcp`).
pub(super) const OF_TCP: u16 = 1;
pub(super) const TCP_STATE: u16 = 1;
/// Attributes of a tuple (`enum ctattr_tuple`), of its addresses (`enum ctattr_ip`) and ports (`enum ctattr_l4proto`).
pub(super) const TUPLE_IP: u16 = 1;
pub(super) const TUPLE_PORTS: u16 = 2;
pub(super) const V4_SOURCE: u16 = 1;
pub(super) const V4_DESTINATION: u16 = 2;
pub(super) const V6_SOURCE: u16 = 3;
pub(super) const V6_DESTINATION: u16 = 4;
pub(super) const PROTOCOL: u16 = 1;
pub(super) const SOURCE_PORT: u16 = 2;
pub(super) const DESTINATION_PORT: u16 = 3;

/// One direction of a connection, as its packets begin that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackTuple {
    /// What has the ports.
    pub protocol: FlowProtocol,
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// Bits of an entry's status (include/uapi/linux/netfilter/nf_conntrack_common.h, `enum ip_conntrack_status`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackStatus(pub u32);

impl ConntrackStatus {
    /// Packets went both ways.
    pub const SEEN_REPLY: Self = Self(1 << 1);
    /// More than a beginning: it is not given up first where there is no room.
    pub const ASSURED: Self = Self(1 << 2);
    /// Sources are translated.
    pub const SOURCE_TRANSLATED: Self = Self(1 << 4);
    /// Destinations are translated.
    pub const DESTINATION_TRANSLATED: Self = Self(1 << 5);
    /// TCP sequence numbers are translated.
    pub const SEQUENCE_TRANSLATED: Self = Self(1 << 6);
    /// It goes.
    pub const DYING: Self = Self(1 << 9);
    /// A helper reads it.
    pub const HELPED: Self = Self(1 << 13);

    /// Whether any bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// How far a TCP connection is (include/uapi/linux/netfilter/nf_conntrack_tcp.h, `enum tcp_conntrack`), as far as it
/// matters here.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Both ends have sent a SYN and got an answer.
    Established = 3,
    /// One end has closed it, and the other may still send.
    CloseWait = 5,
    /// One end has reset it: its next SYN begins a connection of its own.
    Closed = 8,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// What tells it from every other entry at its time.
    pub id: u32,
    /// As the one who began sends.
    pub original: ConntrackTuple,
    /// As the other one answers, before that is translated back.
    pub reply: ConntrackTuple,
    /// What became of it.
    pub status: ConntrackStatus,
    /// How far its connection is; `None` for another state than established and closed, and of UDP.
    pub tcp: Option<TcpState>,
    /// For how long it is kept if nothing more comes, in whole seconds.
    pub left: Duration,
}

/// What the kernel tells of an entry that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedEntry {
    /// As [`ConntrackEntry::id`].
    pub id: u32,
    /// As [`ConntrackEntry::original`]; `None` for one of another protocol.
    pub original: Option<ConntrackTuple>,
}

/// The entry in a message of the kernel's; `None` for one of another protocol.
pub(super) fn read(message: &[u8]) -> Option<ConntrackEntry> {
    let (mut original, mut reply, mut status, mut id) = (None, None, None, None);
    let (mut helped, mut tcp, mut left) = (0, None, Duration::ZERO);
    for (kind, value) in attributes(message.get(HEADER + GENERIC..)?) {
        match kind {
            TUPLE_ORIGINAL => original = tuple(value),
            TUPLE_REPLY => reply = tuple(value),
            STATUS => status = big_endian(value),
            HELP => helped = ConntrackStatus::HELPED.0,
            ID => id = big_endian(value),
            TIMEOUT => left = Duration::from_secs(big_endian(value)?.into()),
            PROTOCOL_STATE => tcp = tcp_state(value),
            _ => {}
        }
    }
    let status = ConntrackStatus(status? | helped);
    Some(ConntrackEntry { id: id?, original: original?, reply: reply?, status, tcp, left })
}

/// What a message of the kernel's tells of the entry that goes.
pub(super) fn ended(message: &[u8]) -> Option<EndedEntry> {
    let (mut id, mut original) = (None, None);
    for (kind, value) in attributes(message.get(HEADER + GENERIC..)?) {
        match kind {
            TUPLE_ORIGINAL => original = tuple(value),
            ID => id = big_endian(value),
            _ => {}
        }
    }
    Some(EndedEntry { id: id?, original })
}

fn tcp_state(state: &[u8]) -> Option<TcpState> {
    let (_, tcp) = attributes(state).find(|(kind, _)| *kind == OF_TCP)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == TCP_STATE)?;
    [TcpState::Established, TcpState::Closed].into_iter().find(|known| state == [*known as u8])
}

fn tuple(bytes: &[u8]) -> Option<ConntrackTuple> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut ports) = (None, [0; 2]);
    for (kind, value) in attributes(bytes) {
        match kind {
            TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        V4_SOURCE | V6_SOURCE => source = address(value),
                        V4_DESTINATION | V6_DESTINATION => destination = address(value),
                        _ => {}
                    }
                }
            }
            TUPLE_PORTS => {
                for (kind, value) in attributes(value) {
                    match (kind, value) {
                        (PROTOCOL, [6]) => protocol = Some(FlowProtocol::Tcp),
                        (PROTOCOL, [17]) => protocol = Some(FlowProtocol::Udp),
                        (SOURCE_PORT, [high, low]) => ports[0] = u16::from_be_bytes([*high, *low]),
                        (DESTINATION_PORT, [high, low]) => ports[1] = u16::from_be_bytes([*high, *low]),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(ConntrackTuple {
        protocol: protocol?,
        source: SocketAddr::new(source?, ports[0]),
        destination: SocketAddr::new(destination?, ports[1]),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use flannel_common::path::forgotten::{self, Forgotten, WORDS};
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::conntrack::message::{GET, request};

    /// What the filter of notices makes of a message.
    fn read_by_a_program(message: &[u8]) -> (FlowProtocol, SocketAddr, SocketAddr) {
        let mut notice = [0; WORDS];
        for (word, bytes) in notice.iter_mut().zip(message.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().unwrap());
        }
        match forgotten::read(&notice) {
            Forgotten::V4(flow) => {
                (flow.protocol, (flow.local, flow.local_port).into(), (flow.remote, flow.remote_port).into())
            }
            Forgotten::V6(flow) => (
                flow.protocol,
                (flow.local.octets, flow.local_port).into(),
                (flow.remote.octets, flow.remote_port).into(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for (source, destination) in
            [("10.244.1.2:40000", "10.96.0.10:80"), ("[fd00::2]:40000", "[fd00:96::10]:80")]
        {
            for protocol in [FlowProtocol::Tcp, FlowProtocol::Udp] {
                let asked = ConntrackTuple {
                    protocol,
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                };
                let message = request(GET, 0, &asked);
                let found = attributes(&message[HEADER + GENERIC..])
                    .find(|(kind, _)| *kind == TUPLE_ORIGINAL)
                    .and_then(|(_, value)| tuple(value));
                assert_eq!(found, Some(asked));
                assert_eq!(read_by_a_program(&message), (protocol, asked.source, asked.destination));
            }
        }
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (read(&bytes), ended(&bytes));
        }
    }
}
