//! This node as somebody sees it who looks at the kernel and the maps, with or without an agent.
//!
//! ```text
//! netlink ─▶ Kernel ┐
//! pins ─▶ Maps ─────┼─▶ peers::join() ─▶ one row for each peer
//! agent ─▶ snapshot ┘
//! ```

pub mod checks;
mod kernel;
mod maps;
pub mod peers;
pub mod probe;
pub mod standing;

pub use kernel::{Kernel, Tunnel, WireguardPeer};
pub use maps::{MapRoute, Maps};
