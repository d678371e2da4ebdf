//! What the tests of a decision need, on the host and in the kernel: tables in memory, nodes with pods,
//! frames, a table of hand-written fixtures, and strategies for random cases.
//!
//! The fixtures and cases run twice: through [`flannel_common::path::decide`] in its crate's tests, and through
//! the programs in the kernel in the tests of the workspace.

mod effect;
pub mod fixtures;
mod frame;
mod frame_v6;
pub mod fuzz;
mod node;
mod node_v6;
mod noted;
pub mod random;
pub mod random_ipip;
pub mod random_v6;
mod tables;

pub use effect::{
    decapsulated, decapsulated_early, decapsulated_from, delivered, encapsulated, encapsulated_in_ip,
    handed_over, sent_direct, translated,
};
pub use frame::Frame;
pub use frame_v6::{FrameV6, transport_checksum};
pub use node::{ELSEWHERE, HEEDED, HERE, NOW, Node, THERE, TUNNEL, interface, seen_at};
pub use noted::{NEXT_HOP_MAC, note, note_tunnel, note_tunnel_v6, note_v6};
pub use tables::{MemoryTables, MemoryTablesV6};
