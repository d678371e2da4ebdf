//! Clouds: their APIs, and what they tell an instance of itself.

pub use amazon::{Amazon, Machine, MetadataVersions, RoleCredentials};
pub use google::Google;

pub mod amazon;
mod google;
pub mod http;
