//! Rules of nft tables for which each packet counts: of which the outcome depends on the packets they have seen, or
//! that hand packets on.

use flannel_common::packet::headers::{PROTOCOL_TCP, PROTOCOL_UDP};

use super::{
    Netfilter, NetlinkError,
    netfilter::{GENERIC, GET_RULE, INET, NEW_RULE, big_endian},
    raw::{HEADER, attributes, text},
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
/// NFT_CT_STATE, NFT_META_L4PROTO (include/uapi/linux/netfilter/nf_tables.h).
const CT_STATE: u32 = 0;
const META_L4PROTO: u32 = 16;
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
                "log" => logs = true,
                "immediate" | "reject" => decides = true,
                "ct" | "meta" => {
                    const KEY: u16 = 2;
                    loaded = match (name.as_str(), number_in(data, KEY)) {
                        ("ct", Some(CT_STATE)) => Loaded::State,
                        ("meta", Some(META_L4PROTO)) => Loaded::Protocol,
                        _ => Loaded::Other,
                    };
                }
                "bitwise" if before == Loaded::State => {
                    const MASK: u16 = 4;
                    // The mask is in the byte order of this machine.
                    let mask = value_in(data, MASK).and_then(|value| value.get(..4)?.try_into().ok());
                    self.sees_flows &=
                        mask.map(u32::from_ne_bytes).is_none_or(|mask| mask & ESTABLISHED != 0);
                }
                "cmp" if before == Loaded::Protocol => {
                    const OPERATION: u16 = 2;
                    const COMPARED: u16 = 3;
                    let is_equal = number_in(data, OPERATION) == Some(0);
                    let protocol = value_in(data, COMPARED).and_then(|value| value.first().copied());
                    self.sees_flows &=
                        !is_equal || protocol.is_none_or(|it| matches!(it, PROTOCOL_TCP | PROTOCOL_UDP));
                }
                _ => {}
            }
        }
        // What only tells of packets.
        if logs && !decides {
            self.counts = None;
        }
    }
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
    let nested = attributes(data).find_map(|(kind, value)| (kind == wanted).then_some(value))?;
    attributes(nested).find_map(|(kind, value)| (kind == VALUE).then_some(value))
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
