//! What the agent tells the world about itself.

mod flood;
pub mod health;
pub mod http;
pub mod log;
mod pulse;
mod said;
mod summary;
pub mod systemd;
mod visible;

pub(crate) use pulse::Heart;
pub use pulse::Pulse;
pub(crate) use said::Said;
pub use summary::Summary;
pub use visible::visible;
