//! What interfaces do not do to the packets they send, and leave to whoever gets them: checksums and segmentation, as
//! `ethtool -k` shows it.
//!
//! Asked in the compact form of ethtool's netlink, of all interfaces at once: bits, whose numbers differ from kernel to
//! kernel, and whose names are read once. Blocking, as [`TrafficControl`](super::TrafficControl): the kernel answers
//! before it returns from the request.

use std::{collections::BTreeMap, io, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    KernelError, NetlinkError,
    connection::frames,
    error::errno,
    raw::{HEADER, NESTED, attributes, number, put, text, value, word},
};

/// Without one of these the kernel does to common packets what the fast path does not: it computes checksums, or cuts
/// aggregates. Every veth, bridge and VXLAN device has them unless somebody has turned them off, or a program of XDP in
/// the pod has (drivers/net/veth.c, `veth_fix_features`).
const NEEDED: [&str; 3] = ["tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"];
/// The same of packets that are rarer. Old kernels' interfaces have not all of them, which is nobody's wish.
const WANTED: [&str; 6] = [
    "tx-udp-segmentation",
    "tx-gso-list",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-checksum-sctp",
    "tx-sctp-segmentation",
];

/// Kind of the messages that tell of families, a command and attributes there (include/uapi/linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Commands of ethtool's family, and attributes (include/uapi/linux/ethtool_netlink.h, ETHTOOL_MSG_*, ETHTOOL_A_*).
const GET_STRINGS: u8 = 1;
const STRINGS_HEADER: u16 = 1;
const STRING_SETS: u16 = 2;
const STRING_SET: u16 = 1;
const STRING_SET_ID: u16 = 1;
const STRINGS: u16 = 3;
const STRING: u16 = 1;
const STRING_INDEX: u16 = 1;
const STRING_VALUE: u16 = 2;
const GET_FEATURES: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const HEADER_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
const CHANGEABLE: u16 = 2;
const ACTIVE: u16 = 4;
const BITS_VALUE: u16 = 4;
/// ETH_SS_FEATURES.
const FEATURE_NAMES: u32 = 4;
/// ETHTOOL_FLAG_COMPACT_BITSETS.
const COMPACT: u32 = 1;
/// Kinds of every message.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Length of `struct genlmsghdr`, bytes.
const GENERIC: usize = 4;

/// Room for one datagram, bytes.
const DATAGRAM: usize = 64 << 10;
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads which offloads are off, in the network namespace of the thread that opened it.
pub struct Offloads {
    socket: Socket,
    family: u16,
    sequence: u32,
    features: Vec<Feature>,
    datagram: Vec<u8>,
}

/// One that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Feature {
    bit: usize,
    name: &'static str,
    needed: bool,
}

impl Offloads {
    /// Opens a connection; `None` where this kernel has no netlink of ethtool (CONFIG_ETHTOOL_NETLINK).
    ///
    /// # Errors
    /// When the kernel gives no socket, or no names.
    pub fn open() -> Result<Option<Self>, NetlinkError> {
        let refused = |error: io::Error| NetlinkError::Open(errno(&error));
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(refused)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(NetlinkError::Open)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(refused)?;
        let mut opened =
            Self { socket, family: CONTROL, sequence: 0, features: Vec::new(), datagram: Vec::new() };
        let mut family = None;
        let found = opened.ask(GET_FAMILY, NLM_F_ACK, &attribute(FAMILY_NAME, b"ethtool\0"), |answer| {
            family =
                family.or(value(answer, FAMILY_ID).and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes));
        });
        match (found, family) {
            (Err(error), _) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            (Err(error), _) => return Err(error),
            (Ok(()), None) => return Err(NetlinkError::Malformed("no family ethtool".to_owned())),
            (Ok(()), Some(family)) => opened.family = family,
        }
        let set = attribute(STRING_SET_ID, &FEATURE_NAMES.to_ne_bytes());
        let sets = attribute(STRING_SETS | NESTED, &attribute(STRING_SET | NESTED, &set));
        // The kernel insists on a header, which names no interface: names of features are all interfaces'.
        let sets = [attribute(STRINGS_HEADER | NESTED, &[]), sets].concat();
        let mut features = Vec::new();
        opened.ask(GET_STRINGS, NLM_F_ACK, &sets, |answer| features.extend(read_names(answer)))?;
        if let Some(missing) = NEEDED.iter().find(|name| !features.iter().any(|found| found.name == **name)) {
            return Err(NetlinkError::Malformed(format!("no feature {missing} of interfaces")));
        }
        opened.features = features;
        Ok(Some(opened))
    }

    /// The offloads without which interfaces send, in the words of `ethtool -k`, by the interface's index: only those that
    /// lack any.
    ///
    /// # Errors
    /// When the kernel refuses, or does not answer.
    pub fn missing(&mut self) -> Result<BTreeMap<u32, Vec<&'static str>>, NetlinkError> {
        let header = attribute(HEADER_FLAGS, &COMPACT.to_ne_bytes());
        let features = self.features.clone();
        let mut found = BTreeMap::new();
        self.ask(GET_FEATURES, NLM_F_DUMP, &attribute(FEATURES_HEADER | NESTED, &header), |answer| {
            found.extend(read_missing(answer, &features).filter(|(_, missing)| !missing.is_empty()));
        })?;
        Ok(found)
    }

    /// Makes one request, and lets `read` have the attributes of each answer.
    fn ask(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &[u8],
        mut read: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(self.family.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend([command, 1, 0, 0]);
        request.extend(attributes);
        let failed = |error: io::Error| match errno(&error) {
            Errno::EAGAIN => NetlinkError::Silent(PATIENCE),
            errno => NetlinkError::Socket(errno),
        };
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(failed)?;
        loop {
            self.datagram.clear();
            self.datagram.reserve(DATAGRAM);
            self.socket.recv(&mut self.datagram, 0).map_err(failed)?;
            for frame in frames(&self.datagram) {
                let message = &self.datagram[frame];
                // What an earlier request did not wait for.
                if message.get(8..12) != Some(&self.sequence.to_ne_bytes()[..]) {
                    continue;
                }
                match number(message) {
                    Some(ERROR | DONE) => {
                        return match word(message, 0).unwrap_or_default().cast_signed() {
                            0 => Ok(()),
                            code => {
                                let errno = Errno::from_raw(code.wrapping_neg());
                                Err(KernelError { errno, message: None }.into())
                            }
                        };
                    }
                    _ => read(message.get(HEADER + GENERIC..).unwrap_or_default()),
                }
            }
        }
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, value);
    bytes
}

fn index(bytes: &[u8], kind: u16) -> Option<u32> {
    value(bytes, kind)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The features that are looked for, among the names of all.
fn read_names(answer: &[u8]) -> Vec<Feature> {
    let strings = value(answer, STRING_SETS)
        .and_then(|sets| value(sets, STRING_SET))
        .and_then(|set| value(set, STRINGS))
        .unwrap_or_default();
    let strings = attributes(strings).filter(|(kind, _)| *kind == STRING);
    strings
        .filter_map(|(_, string)| feature(index(string, STRING_INDEX)?, &text(value(string, STRING_VALUE)?)))
        .collect()
}

fn feature(bit: u32, name: &str) -> Option<Feature> {
    let known = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
    let bit = usize::try_from(bit).ok()?;
    let needed = known(&NEEDED).map(|name| Feature { bit, name, needed: true });
    needed.or_else(|| known(&WANTED).map(|name| Feature { bit, name, needed: false }))
}

/// Which interface an answer is about, and what that lacks.
fn read_missing(answer: &[u8], features: &[Feature]) -> Option<(u32, Vec<&'static str>)> {
    let interface = index(value(answer, FEATURES_HEADER)?, HEADER_INDEX)?;
    let bits = |kind| value(answer, kind).and_then(|set| value(set, BITS_VALUE)).unwrap_or_default();
    let (changeable, active) = (bits(CHANGEABLE), bits(ACTIVE));
    let missing = features
        .iter()
        .filter(|feature| !is_set(active, feature.bit))
        .filter(|feature| feature.needed || is_set(changeable, feature.bit));
    Some((interface, missing.map(|feature| feature.name).collect()))
}

/// Whether a bit is set, in words of 32 in host order.
fn is_set(words: &[u8], bit: usize) -> bool {
    let word =
        words.chunks_exact(4).nth(bit / 32).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    word.is_some_and(|word| word >> (bit % 32) & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(interface: u32, changeable: u64, active: u64) -> Vec<u8> {
        let bits = |kind: u16, bits: u64| {
            // The lower word comes first, each in host order.
            let words = [bits & u64::from(u32::MAX), bits >> 32].map(|word| u32::try_from(word).unwrap());
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            attribute(kind | NESTED, &attribute(BITS_VALUE, &words))
        };
        let header = attribute(HEADER_INDEX, &interface.to_ne_bytes());
        [attribute(FEATURES_HEADER | NESTED, &header), bits(CHANGEABLE, changeable), bits(ACTIVE, active)]
            .concat()
    }

    #[test]
    fn an_interface_lacks_what_it_needs_and_what_was_turned_off() {
        let features: Vec<Feature> = [(3, NEEDED[0]), (40, NEEDED[1]), (41, WANTED[0])]
            .map(|(bit, name)| feature(bit, name).unwrap())
            .into();
        let all = 1 << 3 | 1 << 40 | 1 << 41;
        for (changeable, active, lacks) in [
            (all, all, &[][..]),
            (all, all & !(1 << 3), &[NEEDED[0]]),
            (all, 1 << 3, &[NEEDED[1], WANTED[0]]),
            // It never had the one, and something else has taken the other away.
            (0, 1 << 3, &[NEEDED[1]]),
        ] {
            let found = read_missing(&answer(7, changeable, active), &features);
            assert_eq!(found, Some((7, lacks.to_vec())), "{changeable:#x} {active:#x}");
        }
        assert_eq!(feature(1, "rx-checksum"), None);
    }

    #[test]
    fn no_answer_is_too_strange() {
        let features = [feature(40, NEEDED[1]).unwrap()];
        let whole = answer(7, u64::MAX, u64::MAX);
        for end in 0..whole.len() {
            read_missing(&whole[..end], &features);
            read_names(&whole[..end]);
        }
    }
}
