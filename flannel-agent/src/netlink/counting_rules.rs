//! Rules of nft tables for which each packet counts: of which the outcome depends on the packets they have seen, or
//! that hand packets on.

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

use super::{
    Netfilter, NetlinkError,
    netfilter::{GENERIC, GET_RULE, INET, NEW_RULE, big_endian},
    raw::{HEADER, attributes, text, value},
};

/// NFPROTO_IPV4, NFPROTO_IPV6.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT: nothing that is forwarded comes to a chain there.
const LOCAL: [u32; 2] = [1, 3];
/// The tables of iptables, whose rules are read by its own program.
const OF_IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];
/// NF_CT_STATE_BIT(IP_CT_ESTABLISHED) (include/uapi/linux/netfilter/nf_conntrack_common.h).
const ESTABLISHED: u32 = 2;
/// NFT_CT_STATE; NFT_CT_PKTS, NFT_CT_BYTES, NFT_CT_AVGPKT; NFT_META_LEN, NFT_META_L4PROTO
/// (include/uapi/linux/netfilter/nf_tables.h).
const CT_STATE: u32 = 0;
const CT_COUNTS: [u32; 3] = [14, 15, 16];
const META_LEN: u32 = 0;
const META_L4PROTO: u32 = 16;
/// Flags of TCP with which a connection begins or ends, and those that come and go meanwhile (RFC 9293, RFC 3168).
const TCP_ENDS: u8 = TCP_SYN | TCP_FIN | TCP_RST;
const TCP_MEANWHILE: u8 = !(TCP_ENDS | TCP_ACK);
/// NFT_OBJECT_QUOTA, NFT_OBJECT_LIMIT.
const OBJECTS: [(u32, &str); 2] = [(2, "quota"), (4, "limit")];
/// NFTA_LIST_ELEM; NFTA_EXPR_NAME and NFTA_EXPR_DATA; NFTA_DATA_VALUE.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;

impl Netfilter {
    /// The rules of tables of IP, which are not iptables' or flannel's own, for which each packet counts and that may see
    /// packets of established flows of TCP and UDP: each by its table, chain and handle, and what in it counts.
    ///
    /// # Errors
    /// When the kernel refuses. That it has no nftables is no error.
    pub fn counting_rules(&mut self) -> Result<Vec<String>, NetlinkError> {
        let mut found = Vec::new();
        for (family, word) in [(IPV4, "ip"), (IPV6, "ip6"), (INET, "inet")] {
            let local = self.chains_at(family, &LOCAL)?;
            for message in self.dump(GET_RULE, NEW_RULE, family)? {
                let Some(rule) = Rule::read(&message) else { continue };
                let is_elsewhere = local.contains(&(rule.table.clone(), rule.chain.clone()))
                    || rule.table.starts_with("flannel-")
                    || family != INET && OF_IPTABLES.contains(&rule.table.as_str());
                if let Some(what) = rule.counts.filter(|_| !is_elsewhere && rule.sees_flows) {
                    let Rule { table, chain, handle, .. } = rule;
                    found.push(format!("{what} in {word} {table} {chain}, handle {handle}"));
                }
            }
        }
        Ok(found)
    }
}

struct Rule {
    table: String,
    chain: String,
    handle: u64,
    /// What in it counts packets or hands them on.
    counts: Option<&'static str>,
    /// Whether packets of established flows may meet its conditions.
    sees_flows: bool,
}

/// What the last expression has loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    State,
    Protocol,
    /// The flags of TCP that are in this mask.
    TcpFlags(u8),
    Other,
}

impl Rule {
    fn read(message: &[u8]) -> Option<Self> {
        const TABLE: u16 = 1;
        const CHAIN: u16 = 2;
        const HANDLE: u16 = 3;
        const EXPRESSIONS: u16 = 4;
        let mut rule =
            Self { table: String::new(), chain: String::new(), handle: 0, counts: None, sees_flows: true };
        for (kind, value) in attributes(message.get(HEADER + GENERIC..)?) {
            match kind {
                TABLE => rule.table = text(value),
                CHAIN => rule.chain = text(value),
                HANDLE => rule.handle = value.try_into().map_or(0, u64::from_be_bytes),
                EXPRESSIONS => rule.judge(value),
                _ => {}
            }
        }
        Some(rule)
    }

    fn judge(&mut self, expressions: &[u8]) {
        let mut loaded = Loaded::Other;
        let (mut logs, mut decides) = (false, false);
        for (name, data) in
            attributes(expressions).filter(|(kind, _)| *kind == ELEMENT).map(|(_, it)| expression(it))
        {
            let before = std::mem::replace(&mut loaded, Loaded::Other);
            match name.as_str() {
                "limit" => self.counts = Some("limit"),
                "quota" => self.counts = Some("quota"),
                "numgen" => self.counts = Some("numgen"),
                "dup" => (self.counts, decides) = (Some("dup"), true),
                "queue" => (self.counts, decides) = (Some("queue"), true),
                "objref" => {
                    const OBJECT_TYPE: u16 = 1;
                    let of = number_in(data, OBJECT_TYPE);
                    let object = OBJECTS.iter().find(|(kind, _)| Some(*kind) == of);
                    self.counts = object.map(|(_, word)| *word).or(self.counts);
                }
                "dynset" if limits(data) => self.counts = Some("limit"),
                "dynset" if updates(data) => self.counts = Some("update"),
                "exthdr" if reads_tcp_option(data) => self.counts = Some("tcp option"),
                "payload" => match read_from(data) {
                    Some(Read::TcpFlags) => loaded = Loaded::TcpFlags(u8::MAX),
                    Some(Read::Content) => self.counts = Some("length or payload"),
                    None => {}
                },
                "log" => logs = true,
                "immediate" | "reject" => decides = true,
                "ct" | "meta" => {
                    const KEY: u16 = 2;
                    match (name.as_str(), number_in(data, KEY)) {
                        ("ct", Some(CT_STATE)) => loaded = Loaded::State,
                        ("ct", Some(key)) if CT_COUNTS.contains(&key) => {
                            self.counts = Some("ct packets or bytes");
                        }
                        ("meta", Some(META_L4PROTO)) => loaded = Loaded::Protocol,
                        ("meta", Some(META_LEN)) => self.counts = Some("length or payload"),
                        _ => {}
                    }
                }
                "bitwise" => {
                    const MASK: u16 = 4;
                    let mask = value_in(data, MASK);
                    match before {
                        // The mask is in the byte order of this machine.
                        Loaded::State => {
                            let mask = mask.and_then(|value| value.get(..4)?.try_into().ok());
                            self.sees_flows &=
                                mask.map(u32::from_ne_bytes).is_none_or(|mask| mask & ESTABLISHED != 0);
                        }
                        Loaded::TcpFlags(_) => {
                            loaded = mask
                                .and_then(|value| value.first().copied())
                                .map_or(Loaded::Other, Loaded::TcpFlags);
                        }
                        Loaded::Protocol | Loaded::Other => {}
                    }
                }
                "cmp" => {
                    const OPERATION: u16 = 2;
                    const COMPARED: u16 = 3;
                    let is_equal = number_in(data, OPERATION) == Some(0);
                    let value = value_in(data, COMPARED).and_then(|value| value.first().copied());
                    match before {
                        Loaded::Protocol => {
                            self.sees_flows &=
                                !is_equal || value.is_none_or(|it| matches!(it, PROTOCOL_TCP | PROTOCOL_UDP));
                        }
                        Loaded::TcpFlags(mask) => self.judge_tcp_flags(mask, is_equal, value.unwrap_or(0)),
                        Loaded::State | Loaded::Other => {}
                    }
                }
                _ => {}
            }
        }
        // What only tells of packets.
        if logs && !decides {
            self.counts = None;
        }
    }

    /// By a comparison of the flags of TCP that are in `mask` with `flags`.
    const fn judge_tcp_flags(&mut self, mask: u8, is_equal: bool, flags: u8) {
        // What begins or ends a connection takes the kernel path.
        let only_ends = if is_equal { flags & TCP_ENDS != 0 } else { flags == 0 && mask & !TCP_ENDS == 0 };
        let never = is_equal && mask & TCP_ACK != 0 && flags & TCP_ACK == 0;
        if only_ends || never {
            self.sees_flows = false;
        } else if mask & TCP_MEANWHILE != 0 && flags & TCP_ENDS == 0 {
            self.counts = Some("tcp flags");
        }
    }
}

/// What of a packet a rule reads that differs from packet to packet of a connection.
enum Read {
    TcpFlags,
    /// Its length, numbers or data.
    Content,
}

/// What an expression `payload` reads; `None` for what is the same in each packet, and for one that writes.
fn read_from(data: &[u8]) -> Option<Read> {
    const TO: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    /// NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_PAYLOAD_INNER_HEADER.
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const INNER: u32 = 3;
    number_in(data, TO)?;
    match (number_in(data, BASE)?, number_in(data, OFFSET)?) {
        // Total length and identification of IPv4, payload length of IPv6.
        (NETWORK, 2 | 4) => Some(Read::Content),
        (TRANSPORT, 13) => Some(Read::TcpFlags),
        // What is behind the ports.
        (TRANSPORT, 4..) | (INNER, _) => Some(Read::Content),
        _ => None,
    }
}

fn reads_tcp_option(data: &[u8]) -> bool {
    const TO: u16 = 1;
    const OPERATION: u16 = 6;
    /// NFT_EXTHDR_OP_TCPOPT.
    const TCP_OPTION: u32 = 1;
    number_in(data, TO).is_some() && number_in(data, OPERATION) == Some(TCP_OPTION)
}

/// Whether each packet makes an element of a set young again.
fn updates(data: &[u8]) -> bool {
    const OPERATION: u16 = 3;
    /// NFT_DYNSET_OP_UPDATE.
    const UPDATE: u32 = 1;
    number_in(data, OPERATION) == Some(UPDATE)
}

/// Name and content of an expression.
fn expression(element: &[u8]) -> (String, &[u8]) {
    let (mut name, mut data) = (String::new(), [].as_slice());
    for (kind, value) in attributes(element) {
        match kind {
            NAME => name = text(value),
            DATA => data = value,
            _ => {}
        }
    }
    (name, data)
}

fn number_in(data: &[u8], wanted: u16) -> Option<u32> {
    attributes(data).find_map(|(kind, value)| (kind == wanted).then(|| big_endian(value))?)
}

fn value_in(data: &[u8], wanted: u16) -> Option<&[u8]> {
    value(value(data, wanted)?, VALUE)
}

/// Whether elements that are added to a set have a limit or quota of their own.
fn limits(data: &[u8]) -> bool {
    const EXPRESSION: u16 = 7;
    const EXPRESSIONS: u16 = 10;
    let is_limit = |element: &[u8]| matches!(expression(element).0.as_str(), "limit" | "quota");
    attributes(data).any(|(kind, value)| match kind {
        EXPRESSION => is_limit(value),
        EXPRESSIONS => attributes(value).any(|(_, element)| is_limit(element)),
        _ => false,
    })
}
