//! What the agent tells the world about itself.

mod flood;
pub mod health;
pub mod http;
mod last_message;
pub mod log;
pub mod output;
mod pulse;
mod summary;
pub mod systemd;
mod visible;

pub(crate) use last_message::LastMessage;
pub(crate) use pulse::Heart;
pub use pulse::Pulse;
pub use summary::Summary;
pub use visible::visible;
