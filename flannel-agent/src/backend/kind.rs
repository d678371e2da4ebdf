//! What the table of backends says of each.

use std::sync::Arc;

use super::{OptionError, Options};
use crate::values::gojson::Object;

/// The type of a backend.
#[derive(Clone, Copy)]
pub struct Kind {
    /// `Backend.Type`, in lower case.
    pub name: &'static str,
    /// How packets reach other nodes' pods, in a few words: a row of the documentation.
    pub what: &'static str,
    /// What becomes of it.
    pub support: Support,
}

/// Whether a backend of upstream is one of ours.
#[derive(Clone, Copy)]
pub enum Support {
    /// It is; this reads its options.
    Built(fn(&Object<'_>) -> Result<Arc<dyn Options>, OptionError>),
    /// It is not; this is to be used in its place.
    Refused(&'static str),
}
