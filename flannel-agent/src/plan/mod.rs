//! What the kernel should hold, as a pure function of what is leased and where we are.

mod state;

pub use state::{BpfState, Hook, State, VxlanDevice};
