//! Values that every room knows: families, MACs, lengths and points of time, and text and JSON as others write them.

mod family;
mod flow_refresh;
pub(crate) mod gojson;
mod interface;
mod ip;
mod mac;
mod span;
mod text;
mod utc;

pub use family::{Family, overlap};
pub use flow_refresh::FlowRefresh;
pub use interface::is_interface;
pub use ip::IpFamily;
pub use mac::{Mac, ParseMacError};
pub use utc::with_nanoseconds;

pub(crate) use span::{rough_span, span};
pub(crate) use text::{as_typed, shorten};
pub(crate) use utc::utc;
