//! What the agent tells the world about itself.

pub mod log;
