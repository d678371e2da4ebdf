//! The backends there are: one line for each.

use serde_json::value::RawValue;

use super::{
    Configured, OptionError, alloc, aws_vpc, extension, gce, host_gw, ipip, ipsec,
    kind::{Kind, Support},
    udp, vxlan, wireguard,
};
use crate::values::gojson::Object;

/// All types that a configuration may name, as the documentation lists them.
pub const KINDS: [Kind; 12] = [
    vxlan::KIND,
    host_gw::KIND,
    udp::KIND,
    ipip::KIND,
    wireguard::KIND,
    ipsec::KIND,
    extension::KIND,
    alloc::KIND,
    refused(
        "tencent-vpc",
        "routes of Tencent Cloud",
        "use \"vxlan\", or \"alloc\" and make the routes yourself",
    ),
    refused("ali-vpc", "routes of Alibaba Cloud", "use \"vxlan\", or \"alloc\" and make the routes yourself"),
    aws_vpc::KIND,
    gce::KIND,
];

/// What a configuration without `Backend` means.
const DEFAULT: &str = "udp";

const fn refused(name: &'static str, what: &'static str, instead: &'static str) -> Kind {
    Kind { name, what, support: Support::Refused(instead) }
}

/// A configuration's `Backend` that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No such backend, here or upstream.
    #[error("unknown backend type: {name}; set Backend.Type to {}", alternatives())]
    UnknownType {
        /// What the configuration names.
        name: String,
    },
    /// What the backend says of an option.
    #[error(transparent)]
    Option(OptionError),
}

impl<E: Into<OptionError>> From<E> for ParseError {
    fn from(error: E) -> Self {
        Self::Option(error.into())
    }
}

/// The types that can be used, for a message: `"vxlan", "host-gw" or "alloc"`.
fn alternatives() -> String {
    let built = KINDS.iter().filter(|kind| matches!(kind.support, Support::Built(_)));
    let names: Vec<String> = built.map(|kind| format!("\"{}\"", kind.name)).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// A backend of upstream that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnbuiltBackend {
    /// A backend of upstream.
    #[error("Backend.Type: \"{kind}\" is not supported: {instead}, or run stock flanneld")]
    Type {
        /// Its type, in lower case.
        kind: &'static str,
        /// What to use in its place.
        instead: &'static str,
        /// `Backend` as it stands in the configuration: its options may hold secrets.
        options: String,
    },
}

impl UnbuiltBackend {
    /// Its name in the configuration, or what its absence means.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Type { kind, .. } => kind,
        }
    }
}

/// Reads the configuration's `Backend`.
///
/// # Errors
/// It is no object, of a type that is nobody's, or has an option that cannot be used.
pub fn parse(raw: Option<&RawValue>) -> Result<Result<Configured, UnbuiltBackend>, ParseError> {
    let text = raw.map_or("{}", RawValue::get);
    let object = Object::parse("Backend.", text)
        .map_err(|_| Object::default().refuse("Backend", "an object, as {\"Type\":\"vxlan\"}", text))?;
    let name: String = match raw {
        Some(_) => object.get("Type", "a string, as \"vxlan\"")?.unwrap_or_default(),
        None => DEFAULT.to_owned(),
    };
    let kind = KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(&name));
    match kind.ok_or(ParseError::UnknownType { name })? {
        Kind { support: Support::Built(read), .. } => Ok(Ok(Configured(read(&object)?))),
        Kind { name, support: Support::Refused(instead), .. } => {
            Ok(Err(UnbuiltBackend::Type { kind: name, instead, options: text.to_owned() }))
        }
    }
}
