//! From a packet and the tables to what is done with it.
//!
//! There is a file for each hook, in the order a packet meets them: [`from_pod`], [`to_overlay`], [`to_underlay`];
//! [`xdp`], [`from_underlay`], [`from_overlay`], [`to_pod`]. What happens at a hook is written once, for both families,
//! over the traits of what may be done to a packet there ([`Act`], [`XdpFrame`]): the programs do it, and [`decide`]
//! writes it down.
//!
//! The decisions among it look at a packet and change nothing. What they do not fully understand they leave to the
//! kernel, whose path is always there and always right. They take what to do next as a closure, so that in a program the
//! rare exits carry a [`Reason`](crate::reason::Reason) and nothing else.

pub mod acceptance;
mod act;
mod carrier;
mod decide;
mod direct;
pub mod ecn;
mod egress;
mod encap;
mod end;
mod exempt;
pub mod fields;
mod flow;
mod forged;
pub mod forgotten;
pub mod forwarding;
pub mod from_overlay;
pub mod from_pod;
pub mod from_underlay;
pub mod gate;
mod hook;
pub mod host_mark;
mod ingress;
mod moved;
mod rewrite;
mod switched;
mod tables;
pub mod to_overlay;
pub mod to_pod;
pub mod to_underlay;
pub mod trail;
mod translated;
mod transport;
mod tunnel;
mod verdict;
pub(crate) mod vxlan;
pub mod xdp;

pub use acceptance::Note;
pub use act::{Act, TcPacket};
pub use carrier::Carrier;
pub use decide::{Decision, Written, decide, decide_all, left};
pub use encap::{
    DONT_FRAGMENT, Deliver, Direct, Encap, HEADERS_AT, HEADERS_IPIP_LEN, HEADERS_LEN, HEADERS_UDP_LEN,
    HEADERS_V6_LEN, HandOver,
};
pub use hook::Hook;
pub use rewrite::Rewrite;
pub use switched::Switch;
pub use tables::{NodeTables, Tables};
pub use tunnel::{TunnelNote, UnderlayRoute};
pub use verdict::{Move, Verdict};
pub use xdp::XdpFrame;
