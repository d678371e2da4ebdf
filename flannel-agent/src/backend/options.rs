//! What the configuration says of a backend.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;

use super::{AnyBackend, BackendError, ExternalInterface};
use crate::{
    netlink::Netlink,
    values::{Family, Mac, gojson::FieldError},
    wire::{LeaseAttrs, RawJson},
};

/// The validated options of a backend.
pub trait Options: fmt::Debug + Send + Sync {
    /// The backend's `Type`.
    fn kind(&self) -> &'static str;

    /// Every option as it is in force, defaults included, in the order of the documentation.
    fn values(&self) -> Vec<OptionValue> {
        Vec::new()
    }

    /// What IPv6 asks of the options, besides what IPv4 does.
    ///
    /// # Errors
    /// Which option it does not go with.
    fn check_over_ipv6(&self) -> Result<(), OptionError> {
        Ok(())
    }

    /// `BackendData`, or for IPv6 `BackendV6Data`, of a node of which no more is known than the MAC of its device: where a
    /// lease file names it, or the kernel of this node. `None` where leases of this backend have no data.
    fn data_of(&self, family: Family, mac: Option<Mac>) -> Option<RawJson> {
        let _ = (family, mac);
        None
    }

    /// The backend on this node. What an earlier process left of it stays in use.
    ///
    /// # Errors
    /// When that cannot be looked up, or what must be there before the lease cannot be made.
    fn adopt<'a>(&'a self, start: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>>;
}

/// This node before it has a lease.
pub struct Start<'a> {
    /// Its external interface.
    pub external: &'a ExternalInterface,
    /// What its lease said when it was last written.
    pub published: Option<&'a LeaseAttrs>,
    /// Other nodes go by `published` whatever we do.
    pub settled: bool,
    /// The cluster's networks.
    pub networks: Vec<ipnetwork::IpNetwork>,
    /// For looking at the kernel.
    pub netlink: &'a mut Netlink,
}

/// An option as it is in force.
#[derive(Clone, PartialEq, Eq)]
pub struct OptionValue {
    /// Its path in the configuration: `Backend.VNI`.
    pub field: &'static str,
    /// Its value, in the words of the log.
    pub value: String,
    /// It is shown to nobody.
    pub secret: bool,
}

impl OptionValue {
    /// An option that may be shown.
    pub fn of(field: &'static str, value: impl fmt::Display) -> Self {
        Self { field, value: value.to_string(), secret: false }
    }

    /// A number that may not be given.
    pub fn unless_unset(field: &'static str, value: Option<impl fmt::Display>) -> Self {
        let value = value.map_or_else(|| "unset".to_owned(), |value| value.to_string());
        Self { field, value, secret: false }
    }

    /// A secret.
    pub fn secret(field: &'static str, value: impl Into<String>) -> Self {
        Self { field, value: value.into(), secret: true }
    }
}

/// Without the secret.
impl fmt::Debug for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, secret } = self;
        write!(f, "{field}: {}", if *secret { "(a secret)" } else { value })
    }
}

/// An option that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// It is of the wrong type.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A value that it cannot have.
    #[error("{field}: {value} {problem}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// What was found.
        value: String,
        /// What is wrong with it and what to write instead.
        problem: &'static str,
    },
}

/// The backend that a configuration names, with its options. Equal if all options are.
#[derive(Clone)]
pub struct Configured(pub Arc<dyn Options>);

impl PartialEq for Configured {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind() && self.0.values() == other.0.values()
    }
}

impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.0.kind(), self.0.values())
    }
}

impl Configured {
    /// What of `self` is otherwise in `new`, which is of the same type: field, and both values.
    pub fn changes_to(&self, new: &Self) -> Vec<(&'static str, String, String)> {
        let shown = |value: &OptionValue, hidden: &str| match value.secret {
            true => hidden.to_owned(),
            false => value.value.clone(),
        };
        let (old, new) = (self.0.values(), new.0.values());
        let both = old.iter().zip(&new).filter(|(old, new)| old != new);
        both.map(|(old, new)| (old.field, shown(old, "(a secret)"), shown(new, "(another)"))).collect()
    }
}
