//! Packets at our hooks, as they are: what the traced programs tell, in words.

mod clock;
mod event;

pub use clock::Clock;
pub use event::{Event, address, hook, protocol, reason};
