//! Leases as etcd holds them: the JSON of the value and the text of the key.

pub use crate::wire::*;
pub use key::{KeyError, lease_key, parse_lease_key};

mod key;
#[cfg(test)]
mod tests;
