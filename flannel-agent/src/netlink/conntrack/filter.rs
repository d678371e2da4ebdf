//! Which notices of entries that go the kernel need not queue for us: those of connections that nobody translates to another
//! destination, and of TCP connections that have ended as connections do, which the programs have seen.
//!
//! A busy node's connections end by the thousand a second. To be told of each would cost more than the few that matter.

use socket2::SockFilter;

use super::{
    entry::{ConntrackStatus, OF_TCP, PROTOCOL_STATE, STATUS, TCP_STATE, TcpState},
    message::GENERIC,
};
use crate::netlink::raw::HEADER;

/// Where the attributes of a message begin.
const ATTRIBUTES: u32 = (HEADER + GENERIC) as u32;
/// Length of an attribute's header, bytes.
const VALUE: u32 = 4;

/// What puts the place of the attribute whose kind is in X into A, or 0: after the place in A, and within the attribute
/// there (include/uapi/linux/filter.h).
const FIND: u32 = (-0x1000_i32 + 12).cast_unsigned();
const FIND_WITHIN: u32 = (-0x1000_i32 + 16).cast_unsigned();

/// Operations of the classic BPF (include/uapi/linux/bpf_common.h): of loads to A and X, of jumps, and what moves A to X.
const LOAD: u16 = 0x00;
const LOAD_X: u16 = 0x01;
const LOAD_AT: u16 = 0x20;
const LOAD_WORD_AT_X: u16 = 0x40;
const LOAD_BYTE_AT_X: u16 = 0x50;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const ANSWER: u16 = 0x06;
const TO_X: u16 = 0x07;

/// The program, whose last two instructions drop a notice and keep it.
pub(super) const TRANSLATED_AND_CUT_SHORT: [SockFilter; 22] = [
    does(LOAD, ATTRIBUTES),
    does(LOAD_X, STATUS as u32),
    does(LOAD_AT, FIND),
    when(IF_EQUAL, 0, (17, 0)),
    does(TO_X, 0),
    does(LOAD_WORD_AT_X, VALUE),
    when(IF_ANY_BIT, ConntrackStatus::DESTINATION_TRANSLATED.0, (0, 13)),
    does(LOAD, ATTRIBUTES),
    does(LOAD_X, PROTOCOL_STATE as u32),
    does(LOAD_AT, FIND),
    when(IF_EQUAL, 0, (10, 0)),
    does(LOAD_X, OF_TCP as u32),
    does(LOAD_AT, FIND_WITHIN),
    when(IF_EQUAL, 0, (7, 0)),
    does(LOAD_X, TCP_STATE as u32),
    does(LOAD_AT, FIND_WITHIN),
    when(IF_EQUAL, 0, (4, 0)),
    does(TO_X, 0),
    does(LOAD_BYTE_AT_X, VALUE),
    when(IF_EQUAL, TcpState::Established as u32, (1, 0)),
    does(ANSWER, 0),
    does(ANSWER, u32::MAX),
];

const fn does(operation: u16, operand: u32) -> SockFilter {
    SockFilter::new(operation, 0, 0, operand)
}

/// Skips the first of `skipped` instructions where it is so, else the second.
const fn when(operation: u16, operand: u32, skipped: (u8, u8)) -> SockFilter {
    SockFilter::new(operation, skipped.0, skipped.1, operand)
}
