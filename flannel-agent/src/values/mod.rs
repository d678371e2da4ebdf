//! Values that every room knows: families, MACs, times, and text and JSON as others write them.

mod family;
pub(crate) mod gojson;
mod mac;
mod text;
mod utc;

pub use family::{Family, overlap};
pub use mac::{Mac, ParseMacError};

pub(crate) use text::shorten;
pub(crate) use utc::utc;
