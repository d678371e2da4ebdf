//! The JSON of leases.
/// Attributes of a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseAttrs {}
