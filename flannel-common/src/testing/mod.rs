//! What the tests of a decision need, on the host and in the kernel: tables in memory, nodes with pods,
//! frames, a table of hand-written fixtures, and strategies for random cases.
//!
//! The fixtures and cases run twice: through [`crate::path::decide`] in this crate's tests, and through
//! the programs in the kernel in the tests of the workspace.

mod effect;
pub mod fixtures;
mod frame;
mod node;
pub mod random;
mod tables;

pub use effect::{handed, handed_over, popped, pushed, routed};
pub use frame::Frame;
pub use node::{ELSEWHERE, HERE, NOW, Node, THERE, interface, seen_at};
pub use tables::MemoryTables;
