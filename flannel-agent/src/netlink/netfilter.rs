//! Chains of nftables that belong to an interface or to bridges, and the kernel's notices that they have changed.
//!
//! Blocking, as [`TrafficControl`](super::TrafficControl): the kernel answers before it returns from the request.

use std::{collections::BTreeSet, io, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    NetlinkError,
    connection::frames,
    error::errno,
    raw::{HEADER, attributes, number, text, value},
};
use crate::values::{Family, is_interface};

/// Subsystem of nftables, in the upper byte of a message's type (include/uapi/linux/netfilter/nfnetlink.h).
pub(super) const NFTABLES: u16 = 10 << 8;
/// Kinds of its messages (include/uapi/linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`).
const NEW_TABLE: u16 = NFTABLES;
const GET_TABLE: u16 = NFTABLES | 1;
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
pub(super) const NEW_RULE: u16 = NFTABLES | 6;
pub(super) const GET_RULE: u16 = NFTABLES | 7;
const DELETED_RULE: u16 = NFTABLES | 8;
/// Kinds of every message.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bit of the multicast group NFNLGRP_NFTABLES, number 7.
const GROUP: u32 = 1 << 6;
/// Length of `struct nfgenmsg`, bytes.
pub(super) const GENERIC: usize = 4;
/// Families of tables (include/uapi/linux/netfilter.h, NFPROTO_*).
pub(super) const INET: u8 = 1;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;
/// Verdict of a policy that lets everything pass.
const ACCEPT: u32 = 1;
/// NF_NETDEV_EGRESS; the other hook of an interface, and that of inet tables, is at ingress.
const NETDEV_EGRESS: u32 = 1;

/// The chain of iptables that marks packets of established flows.
pub const FLOW_CHAIN: &str = "FLANNEL-FLOW";
/// The same of nft.
pub const FLOW_CHAIN_OF_NFT: &str = "established";

/// Room for one datagram, bytes. Dumps come in pieces of at most 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a dump is repeated that changes interrupted; of a further one there is notice.
const DUMP_TRIES: usize = 5;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// A chain that packets of some interfaces meet, and that may do something to them: it has rules, or its policy is
/// not to accept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// Family, table and name, as `nft list chain` takes them.
    pub name: String,
    /// Whether it sees what the interfaces send, and not what they receive.
    pub egress: bool,
    /// The interfaces; of a name that ends in an asterisk, all that begin so.
    pub devices: BTreeSet<String>,
}

impl Chain {
    /// Whether packets of this interface meet it.
    pub fn is_of(&self, interface: &str) -> bool {
        self.devices.iter().any(|device| is_interface(device, &['*'], interface))
    }
}

/// The chains of a network namespace besides those of IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// Those of interfaces.
    pub devices: BTreeSet<Chain>,
    /// Those of bridges, by name as [`Chain::name`].
    pub bridges: BTreeSet<String>,
}

/// The messages that answer a request, and whether nothing changed meanwhile.
type Answer = (Vec<Vec<u8>>, bool);

/// What a notice of nftables tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesetNotice {
    /// A chain of [`Netfilter::chains`], or a rule in one, may have changed.
    pub chains: bool,
    /// What marks packets of established flows has changed: what was accepted by it before may be accepted no more.
    pub flow_marks: bool,
}

/// Reads chains, and hears of their changes, in the network namespace of the thread that opened it.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
    notices: Option<TokioSocket>,
    datagram: Vec<u8>,
}

impl Netfilter {
    /// Opens a connection, and listens. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket; not where it only gives no notices, for want of CAP_NET_ADMIN or of nftables.
    pub fn open() -> Result<Self, NetlinkError> {
        let refused = |error: io::Error| NetlinkError::Open(errno(&error));
        let opened = Self::without_notices()?;
        let mut notices = TokioSocket::new(NETLINK_NETFILTER).map_err(refused)?;
        let listens = notices.socket_mut().bind(&SocketAddr::new(0, GROUP)).is_ok();
        Ok(Self { notices: Some(notices).filter(|_| listens), ..opened })
    }

    /// Opens a connection, and does not listen.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn without_notices() -> Result<Self, NetlinkError> {
        let refused = |error: io::Error| NetlinkError::Open(errno(&error));
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(refused)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(NetlinkError::Open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(refused)?;
        Ok(Self { socket, sequence: 0, notices: None, datagram: Vec::new() })
    }

    /// The names of the tables of IPv4, or IPv6, alone: those of iptables are among them.
    ///
    /// # Errors
    /// When the kernel refuses. That it has no nftables is no error.
    pub fn tables(&mut self, family: Family) -> Result<BTreeSet<String>, NetlinkError> {
        const NAME: u16 = 1;
        let tables = self.dump(GET_TABLE, NEW_TABLE, of_ip(family))?;
        let name = |message: &Vec<u8>| Some(text(value(message.get(HEADER + GENERIC..)?, NAME)?));
        Ok(tables.iter().filter_map(name).collect())
    }

    /// The chains there are now.
    ///
    /// # Errors
    /// When the kernel refuses. That it has no nftables is no error.
    pub fn chains(&mut self) -> Result<Chains, NetlinkError> {
        let mut chains = Chains::default();
        for family in [NETDEV, INET, BRIDGE] {
            for message in self.dump(GET_CHAIN, NEW_CHAIN, family)? {
                add(&mut chains, family, &message);
            }
        }
        Ok(chains)
    }

    /// The objects of a family, which requests of kind `get` are answered with by messages of kind `new`.
    pub(super) fn dump(&mut self, get: u16, new: u16, family: u8) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.dump_of(get, new, family, &[])
    }

    /// The same, only of those with these attributes, as far as the kernel heeds them.
    pub(super) fn dump_of(
        &mut self,
        get: u16,
        new: u16,
        family: u8,
        wanted: &[u8],
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut last = Vec::new();
        for _ in 0..DUMP_TRIES {
            let (messages, consistent) = or_nothing(self.request(get, new, NLM_F_DUMP, family, wanted))?;
            last = messages;
            if consistent {
                break;
            }
        }
        Ok(last)
    }

    /// What answers a request for the one object of its kind.
    pub(super) fn ask(&mut self, get: u16, new: u16) -> Result<Vec<Vec<u8>>, NetlinkError> {
        Ok(or_nothing(self.request(get, new, NLM_F_ACK, 0, &[]))?.0)
    }

    /// One request, and whether nothing changed while it was answered.
    pub(super) fn request(
        &mut self,
        get: u16,
        new: u16,
        flags: u16,
        family: u8,
        wanted: &[u8],
    ) -> Result<Answer, NetlinkError> {
        let failed = |error: io::Error| match errno(&error) {
            Errno::EAGAIN => NetlinkError::Silent(PATIENCE),
            errno => NetlinkError::Socket(errno),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        request.extend(((HEADER + GENERIC + wanted.len()) as u32).to_ne_bytes());
        request.extend(get.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend([family, 0, 0, 0]);
        request.extend(wanted);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(failed)?;
        let (mut messages, mut consistent) = (Vec::new(), true);
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut datagram, 0).map_err(failed)?;
            for frame in frames(&datagram) {
                let message = &datagram[frame];
                let sequence =
                    message.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                if sequence != Some(self.sequence) {
                    continue;
                }
                let flags =
                    message.get(6..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes);
                consistent &= flags & NLM_F_DUMP_INTR == 0;
                match number(message) {
                    Some(kind) if kind == new => messages.push(message.to_vec()),
                    Some(DONE) => return Ok((messages, consistent)),
                    Some(ERROR) => {
                        let code = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
                        let code = code.map_or(0, i32::from_ne_bytes);
                        if code == 0 {
                            return Ok((messages, consistent));
                        }
                        return Err(NetlinkError::Socket(Errno::from_raw(code.wrapping_neg())));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Waits until something that matters may have changed since the last call; for ever where there are no notices.
    /// Cancel safe.
    ///
    /// # Errors
    /// The socket failed. The next call waits for ever.
    pub async fn changed(&mut self) -> Result<RulesetNotice, NetlinkError> {
        let Some(socket) = &mut self.notices else { return std::future::pending().await };
        let mut heard = RulesetNotice::default();
        while heard == RulesetNotice::default() {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            match socket.recv(&mut self.datagram).await {
                Ok(()) => heard.add(&self.datagram),
                // More than there was room for: anything may have changed.
                Err(error) if errno(&error) == Errno::ENOBUFS => {
                    heard = RulesetNotice { chains: true, flow_marks: true };
                }
                Err(error) => {
                    self.notices = None;
                    return Err(NetlinkError::Socket(errno(&error)));
                }
            }
        }
        // What else has come by now; an error is for the next call to meet.
        loop {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            if socket.socket_ref().recv(&mut self.datagram, 0).is_err() {
                return Ok(heard);
            }
            heard.add(&self.datagram);
        }
    }
}

/// Without nftables, or this family of it, there is none of what was asked for.
fn or_nothing(answer: Result<Answer, NetlinkError>) -> Result<Answer, NetlinkError> {
    match answer {
        Err(NetlinkError::Socket(
            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENOENT,
        )) => Ok((Vec::new(), true)),
        answer => answer,
    }
}

impl RulesetNotice {
    /// kube-proxy and the like write chains of IP all the time: those are none that are looked at here, but for what marks
    /// flows.
    fn add(&mut self, datagram: &[u8]) {
        for frame in frames(datagram) {
            let message = &datagram[frame];
            self.chains |= matches!(message.get(HEADER), Some(&(INET | NETDEV | BRIDGE)));
            self.flow_marks |= is_about_flow_marks(message);
        }
    }
}

/// Whether a notice is of a rule that has come or gone where packets of established flows are marked.
fn is_about_flow_marks(message: &[u8]) -> bool {
    const CHAIN: u16 = 2;
    if !matches!(number(message), Some(NEW_RULE | DELETED_RULE)) {
        return false;
    }
    attributes(message.get(HEADER + GENERIC..).unwrap_or_default())
        .any(|(kind, value)| kind == CHAIN && [FLOW_CHAIN, FLOW_CHAIN_OF_NFT].contains(&text(value).as_str()))
}

/// Adds the chain of `family` that `message` tells of, if packets meet it.
fn add(chains: &mut Chains, family: u8, message: &[u8]) {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const USE: u16 = 6;
    let (mut table, mut name, mut hook, mut policy, mut rules) =
        (String::new(), String::new(), None, ACCEPT, 1);
    for (kind, value) in attributes(message.get(HEADER + GENERIC..).unwrap_or_default()) {
        match kind {
            TABLE => table = text(value),
            NAME => name = text(value),
            HOOK => hook = Some(value),
            POLICY => policy = big_endian(value).unwrap_or(0),
            USE => rules = big_endian(value).unwrap_or(1),
            _ => {}
        }
    }
    // Without a hook it is one that others jump to.
    let Some(hook) = hook.filter(|_| rules > 0 || policy != ACCEPT) else { return };
    let words = match family {
        NETDEV => "netdev",
        BRIDGE => "bridge",
        _ => "inet",
    };
    let name = format!("{words} {table} {name}");
    if family == BRIDGE {
        chains.bridges.insert(name);
        return;
    }
    let (number, devices) = of_hook(hook);
    if !devices.is_empty() {
        let egress = family == NETDEV && number == NETDEV_EGRESS;
        chains.devices.insert(Chain { name, egress, devices });
    }
}

/// NFPROTO_IPV4, NFPROTO_IPV6.
pub(super) const fn of_ip(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The number of a hook, and its interfaces.
pub(super) fn of_hook(hook: &[u8]) -> (u32, BTreeSet<String>) {
    const NUMBER: u16 = 1;
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    const DEVICE_PREFIX: u16 = 2;
    let (mut hook_number, mut devices) = (0, BTreeSet::new());
    for (kind, value) in attributes(hook) {
        match kind {
            NUMBER => hook_number = big_endian(value).unwrap_or(0),
            DEVICE => drop(devices.insert(text(value))),
            DEVICES => devices.extend(attributes(value).map(|(kind, value)| match kind {
                DEVICE_PREFIX => format!("{}*", text(value)),
                _ => text(value),
            })),
            _ => {}
        }
    }
    (hook_number, devices)
}

pub(super) fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_mark_flows_are_told_from_those_of_others() {
        let notice = |kind: u16, family: u8, chain: &str| {
            let mut body = vec![family, 0, 0, 0];
            for (number, name) in [(1u16, "mangle"), (2, chain)] {
                let value = format!("{name}\0");
                body.extend(((4 + value.len()) as u16).to_ne_bytes());
                body.extend(number.to_ne_bytes());
                body.extend(value.as_bytes());
                body.resize(body.len().next_multiple_of(4), 0);
            }
            let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.resize(HEADER, 0);
            message.extend(body);
            let mut heard = RulesetNotice::default();
            heard.add(&message);
            [heard.chains, heard.flow_marks]
        };
        assert_eq!(notice(NEW_RULE, 2, "FLANNEL-FLOW"), [false, true]);
        assert_eq!(notice(DELETED_RULE, 10, "FLANNEL-FLOW"), [false, true]);
        assert_eq!(notice(NEW_RULE, 2, "KUBE-SERVICES"), [false, false]);
        assert_eq!(notice(NEW_CHAIN, 2, "FLANNEL-FLOW"), [false, false]);
        assert_eq!(notice(NEW_RULE, INET, "established"), [true, true]);
        assert_eq!(notice(NEW_RULE, NETDEV, "c"), [true, false]);
    }
}
