//! What flannel-ebpf's programs and its agent must agree on, and every pure decision about a packet.
//!
//! - [`family`]: IPv4 and IPv6, and what differs between them.
//! - [`layout`]: keys and values of the BPF maps, exactly as both sides see them.
//! - [`map`]: names of maps, programs and hooks, and the version of their layout.
//! - [`mark`]: the bits of packets' marks that are ours.
//! - [`reason`]: the one table of why a packet took the path it took.
//! - [`packet`]: header views, checksums and the flow hash, over the [`packet::Packet`] trait.
//! - [`path`]: `decide`: a packet and the tables in, a [`path::Verdict`] out.
//!
//! Everything here is plain `no_std` Rust: the same functions run in tests on byte slices and in the
//! kernel as tc and XDP programs.
#![no_std]

pub mod family;
pub mod layout;
pub mod map;
pub mod mark;
pub mod packet;
pub mod path;
pub mod reason;
