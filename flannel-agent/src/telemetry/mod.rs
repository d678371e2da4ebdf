//! What the agent tells the world about itself.

mod flood;
pub mod health;
pub mod http;
pub mod log;
mod said;
pub mod systemd;
mod visible;

pub(crate) use said::Said;
pub use visible::visible;
