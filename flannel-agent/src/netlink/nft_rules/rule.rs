//! A rule of nft: what it asks of packets, and what it does in the end.

use super::{ELEMENT, Seen, reader::Reader};
use crate::{
    netlink::{
        netfilter::big_endian,
        raw::{attributes, text, value},
    },
    values::Family,
};

/// NFTA_EXPR_NAME and NFTA_EXPR_DATA; NFTA_DATA_VALUE, NFTA_DATA_VERDICT.
pub(super) const NAME: u16 = 1;
pub(super) const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// One rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) handle: u64,
    /// What in it counts packets or hands them on.
    pub(super) counts: Option<&'static str>,
    /// Whether packets of established flows may meet its conditions, as far as these are known.
    pub(super) sees_flows: bool,
    /// Sets that the state of a flow is to be in, or not in.
    pub(super) states: Vec<(String, bool)>,
    /// Whether each packet of established flows does, as far as other conditions than addresses tell.
    pub(super) takes_all: bool,
    /// What is known of packets that it sees.
    pub(super) seen: Seen,
    /// What it does in the end.
    pub(super) step: Step,
}

/// What a rule does in the end.
#[derive(Clone, Debug)]
pub(super) enum Step {
    On,
    Verdict(Verdict),
    /// The verdict is looked up.
    Map(Lookup),
}

#[derive(Clone, Debug)]
pub(super) struct Lookup {
    pub(super) set: String,
    /// By the state of the flow alone.
    pub(super) by_state: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Accepted, dropped, or given away.
    Ended,
    Return,
    Jump(String),
    GoTo(String),
}

impl Rule {
    /// From the attributes of a message that tells of it. Packets are of family `own`.
    pub(super) fn read(message: &[u8], own: Family) -> Option<Self> {
        const HANDLE: u16 = 3;
        const EXPRESSIONS: u16 = 4;
        let handle = value(message, HANDLE)?.try_into().map_or(0, u64::from_be_bytes);
        let rule = Self {
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
}

/// The verdict in NFTA_DATA_*; `None` where packets go on to the next rule.
pub(super) fn verdict(data: &[u8]) -> Option<Verdict> {
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    let verdict = value(data, VERDICT)?;
    let chain = || value(verdict, CHAIN).map(text).unwrap_or_default();
    // NFT_JUMP, NFT_GOTO, NFT_RETURN, NFT_CONTINUE, NFT_BREAK; those of netfilter are no less than 0.
    match number_in(verdict, CODE)?.cast_signed() {
        -3 => Some(Verdict::Jump(chain())),
        -4 => Some(Verdict::GoTo(chain())),
        -5 => Some(Verdict::Return),
        code if code < 0 => None,
        _ => Some(Verdict::Ended),
    }
}

/// Name and content of an expression.
pub(super) fn expression(element: &[u8]) -> (String, &[u8]) {
    (value(element, NAME).map(text).unwrap_or_default(), value(element, DATA).unwrap_or_default())
}

pub(super) fn number_in(data: &[u8], wanted: u16) -> Option<u32> {
    big_endian(value(data, wanted)?)
}

pub(super) fn value_in(data: &[u8], wanted: u16) -> Option<&[u8]> {
    value(value(data, wanted)?, VALUE)
}
