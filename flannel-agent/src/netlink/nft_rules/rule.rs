//! A rule of nft: what it asks of packets, and what it does in the end.

use super::Seen;
use crate::netlink::{
    netfilter::big_endian,
    raw::{text, value},
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
