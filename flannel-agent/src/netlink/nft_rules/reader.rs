//! Reads rules as the kernel runs them: expressions, each of which loads something of a packet, compares it, or acts.

use super::{
    ELEMENT, Seen,
    rule::{DATA, Lookup, NAME, Rule, Step, Verdict, expression, number_in, verdict},
    words::{EACH, MATCHES, TELLS},
};
use crate::{
    netlink::raw::{attributes, text, value},
    values::Family,
};

/// NFT_CT_STATE; NFT_CT_PKTS, NFT_CT_BYTES, NFT_CT_AVGPKT; NFT_META_LEN, NFT_META_PROTOCOL, NFT_META_NFPROTO,
/// NFT_META_L4PROTO (include/uapi/linux/netfilter/nf_tables.h).
const CT_STATE: u32 = 0;
const CT_COUNTS: [u32; 3] = [14, 15, 16];
const META_LEN: u32 = 0;
const META_PROTOCOL: u32 = 1;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_PAYLOAD_INNER_HEADER.
pub(super) const NETWORK: u32 = 1;
pub(super) const TRANSPORT: u32 = 2;
const INNER: u32 = 3;
/// NFT_OBJECT_QUOTA, NFT_OBJECT_LIMIT.
const OBJECTS: [(u32, &str); 2] = [(2, "quota"), (4, "limit")];

/// What the last expression has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// Those of its bits that are in this mask.
    State(u32),
    Protocol,
    /// NFPROTO_*, or the type of an Ethernet frame.
    Family,
    /// The flags of TCP that are in this mask.
    TcpFlags(u8),
    /// Bytes of a header, with the mask they are under.
    Bytes {
        base: u32,
        offset: usize,
        mask: Vec<u8>,
    },
    Other,
}

/// The rule that a message tells of, from its attributes. Packets are of family `own`.
pub(super) fn read(message: &[u8], own: Family) -> Option<Rule> {
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    let handle = value(message, HANDLE)?.try_into().map_or(0, u64::from_be_bytes);
    let rule = Rule {
        handle,
        counts: None,
        sees_flows: true,
        states: Vec::new(),
        takes_all: true,
        seen: Seen::default(),
        step: Step::On,
    };
    let mut reader = Reader::new(rule, own);
    for (_, element) in
        attributes(value(message, EXPRESSIONS).unwrap_or_default()).filter(|(kind, _)| *kind == ELEMENT)
    {
        let (name, data) = expression(element);
        reader.expression(&name, data);
    }
    Some(reader.read())
}

/// Reads one rule.
pub(super) struct Reader {
    pub(super) rule: Rule,
    pub(super) own: Family,
    pub(super) loaded: Loaded,
    /// The register that it is in.
    register: Option<u32>,
    logs: bool,
    decides: bool,
}

impl Reader {
    /// Begins with an empty rule, for packets of family `own`.
    const fn new(rule: Rule, own: Family) -> Self {
        Self { rule, own, loaded: Loaded::Other, register: None, logs: false, decides: false }
    }

    /// The rule, when all its expressions were read.
    fn read(mut self) -> Rule {
        // What only tells of packets.
        if self.logs && !self.decides {
            self.rule.counts = None;
        }
        self.rule
    }

    /// Also this expression.
    fn expression(&mut self, name: &str, data: &[u8]) {
        match name {
            "limit" => self.counts("limit"),
            "quota" => self.counts("quota"),
            "numgen" => {
                self.counts("numgen");
                self.loads(Loaded::Other, data);
            }
            "dup" => (self.rule.counts, self.decides) = (Some("dup"), true),
            "queue" => {
                (self.rule.counts, self.decides) = (Some("queue"), true);
                self.rule.step = Step::Verdict(Verdict::Ended);
            }
            "objref" => self.object(data),
            "dynset" => self.updates(data),
            "exthdr" => self.extension(data),
            "payload" => self.payload(data),
            "log" => self.logs = true,
            "reject" => {
                self.decides = true;
                self.rule.step = Step::Verdict(Verdict::Ended);
            }
            "immediate" => {
                self.decides = true;
                if let Some(verdict) = value(data, DATA).and_then(verdict) {
                    self.rule.step = Step::Verdict(verdict);
                }
            }
            "ct" | "meta" => self.load_by_key(name, data),
            "bitwise" => self.mask(data),
            "cmp" => self.compare(data),
            "range" => self.range(data),
            "lookup" => self.look_up(data),
            "match" => self.xt_match(data),
            "target" => self.xt_target(data),
            "counter" | "notrack" => {}
            // What it loads, or makes of what is loaded, is not known.
            _ => {
                self.rule.takes_all = false;
                (self.loaded, self.register) = (Loaded::Other, None);
            }
        }
    }

    /// What of the packet goes on from here depends on others.
    pub(super) const fn counts(&mut self, what: &'static str) {
        self.rule.counts = Some(what);
        self.rule.takes_all = false;
    }

    fn loads(&mut self, loaded: Loaded, data: &[u8]) {
        const REGISTER: u16 = 1;
        (self.loaded, self.register) = (loaded, number_in(data, REGISTER));
    }

    fn object(&mut self, data: &[u8]) {
        const OBJECT_TYPE: u16 = 1;
        let of = number_in(data, OBJECT_TYPE);
        if let Some((_, word)) = OBJECTS.iter().find(|(kind, _)| Some(*kind) == of) {
            self.counts(word);
        }
    }

    /// Elements that are added to a set may have a limit or quota of their own, and each packet may make one young again.
    fn updates(&mut self, data: &[u8]) {
        const OPERATION: u16 = 3;
        const EXPRESSION: u16 = 7;
        const EXPRESSIONS: u16 = 10;
        /// NFT_DYNSET_OP_UPDATE.
        const UPDATE: u32 = 1;
        let is_limit = |element: &[u8]| matches!(expression(element).0.as_str(), "limit" | "quota");
        let limits = attributes(data).any(|(kind, value)| match kind {
            EXPRESSION => is_limit(value),
            EXPRESSIONS => attributes(value).any(|(_, element)| is_limit(element)),
            _ => false,
        });
        self.rule.takes_all = false;
        if limits {
            self.counts("limit");
        } else if number_in(data, OPERATION) == Some(UPDATE) {
            self.counts("update");
        }
    }

    fn extension(&mut self, data: &[u8]) {
        const TO: u16 = 1;
        const OPERATION: u16 = 6;
        /// NFT_EXTHDR_OP_TCPOPT.
        const TCP_OPTION: u32 = 1;
        if number_in(data, TO).is_some() {
            if number_in(data, OPERATION) == Some(TCP_OPTION) {
                self.counts("tcp option");
            }
            self.loads(Loaded::Other, data);
        }
    }

    /// What is the same in each packet of a connection may be compared; what is not counts. One that writes does neither.
    fn payload(&mut self, data: &[u8]) {
        const TO: u16 = 1;
        const BASE: u16 = 2;
        const OFFSET: u16 = 3;
        const LENGTH: u16 = 4;
        let of = |kind| number_in(data, kind);
        let (Some(_), Some(base), Some(offset), Some(length)) = (of(TO), of(BASE), of(OFFSET), of(LENGTH))
        else {
            return;
        };
        let (offset, end) = (offset as usize, offset.saturating_add(length) as usize);
        let has = |from: usize, to: usize| offset < to && from < end;
        let is_content = match (base, self.own) {
            // Total length and identification of IPv4, payload length of IPv6.
            (NETWORK, Family::V4) => has(2, 6),
            (NETWORK, Family::V6) => has(4, 6),
            // What is behind the ports.
            (TRANSPORT, _) => end > 4 && (offset, length) != (13, 1),
            (base, _) => base == INNER,
        };
        if is_content {
            self.counts("length or payload");
        }
        let loaded = match (base, offset, length) {
            (TRANSPORT, 13, 1) => Loaded::TcpFlags(u8::MAX),
            (NETWORK | TRANSPORT, _, ..=128) => {
                Loaded::Bytes { base, offset, mask: vec![u8::MAX; length as usize] }
            }
            _ => Loaded::Other,
        };
        self.loads(loaded, data);
    }

    fn load_by_key(&mut self, name: &str, data: &[u8]) {
        const TO: u16 = 1;
        const KEY: u16 = 2;
        if number_in(data, TO).is_none() {
            return;
        }
        let loaded = match (name, number_in(data, KEY)) {
            ("ct", Some(CT_STATE)) => Loaded::State(u32::MAX),
            ("ct", Some(key)) if CT_COUNTS.contains(&key) => {
                self.counts("ct packets or bytes");
                Loaded::Other
            }
            ("meta", Some(META_L4PROTO)) => Loaded::Protocol,
            ("meta", Some(META_NFPROTO | META_PROTOCOL)) => Loaded::Family,
            ("meta", Some(META_LEN)) => {
                self.counts("length or payload");
                Loaded::Other
            }
            _ => Loaded::Other,
        };
        self.loads(loaded, data);
    }

    /// In a set, or by a map.
    fn look_up(&mut self, data: &[u8]) {
        const SET: u16 = 1;
        const FROM: u16 = 2;
        const TO: u16 = 3;
        const FLAGS: u16 = 5;
        let set = value(data, SET).map(text).unwrap_or_default();
        // What is put together of several begins in another register than the last of them.
        let is_alone = self.register.is_some() && number_in(data, FROM) == self.register;
        let by_state = is_alone && self.loaded == Loaded::State(u32::MAX);
        match number_in(data, TO) {
            // The register of verdicts.
            Some(0) => {
                self.decides = true;
                self.rule.step = Step::Map(Lookup { set, by_state });
            }
            Some(_) => {
                self.rule.takes_all = false;
                (self.loaded, self.register) = (Loaded::Other, None);
            }
            None if by_state => {
                self.rule.states.push((set, number_in(data, FLAGS).is_some_and(|flags| flags & 1 != 0)));
            }
            None => self.rule.takes_all = false,
        }
    }

    fn xt_match(&mut self, data: &[u8]) {
        let name = value(data, NAME).map(text).unwrap_or_default();
        if let Some(known) = MATCHES.into_iter().find(|known| *known == name) {
            self.counts(known);
        }
        self.rule.takes_all &= name == "comment";
    }

    fn xt_target(&mut self, data: &[u8]) {
        let name = value(data, NAME).map(text).unwrap_or_default();
        if let Some(known) = EACH.into_iter().find(|known| *known == name) {
            (self.rule.counts, self.decides) = (Some(known), true);
        }
        if matches!(name.as_str(), "NFQUEUE" | "QUEUE" | "REJECT") {
            self.rule.step = Step::Verdict(Verdict::Ended);
        }
        self.logs |= TELLS.contains(&name.as_str());
        self.decides |= !TELLS.contains(&name.as_str());
    }
}
