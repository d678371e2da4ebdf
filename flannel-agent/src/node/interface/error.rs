//! Why there is no external interface. Every message names what was asked, what there is, and what to do.

use std::{fmt, net::IpAddr};

use crate::netlink::NetlinkError;

/// No external interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// Nothing that was asked for fits. The message begins as upstream's.
    #[error(
        "Failed to find interface to use that matches the interfaces and/or regexes provided: {}. Give --iface \
         the name of an interface or an address one holds. Interfaces here: {known}",
        .reasons.join("; ")
    )]
    NoneFits {
        /// What is wrong with each value of each flag.
        reasons: Vec<String>,
        /// The interfaces there are.
        known: Known,
    },
    /// A public address is not ours.
    #[error(
        "{flag}={address}: no interface holds this address. If it is translated on the way, name the \
         interface behind it with --iface=NAME. Interfaces here: {known}"
    )]
    NotHeld {
        /// The flag that gives it.
        flag: &'static str,
        /// Its value.
        address: IpAddr,
        /// The interfaces there are.
        known: Known,
    },
    /// Nothing was asked for, and there is nothing to go by.
    #[error(
        "there is no {family} default route to choose the external interface by{}. Name it with --iface=NAME. \
         Interfaces here: {known}",
        .refused.iter().map(|reason| format!("; one leads over {reason}")).collect::<String>()
    )]
    NoDefaultRoute {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Why the interfaces of the default routes there are cannot be it.
        refused: Vec<String>,
        /// The interfaces there are.
        known: Known,
    },
    /// The interface of the default route, or of the public address, is of no use.
    #[error("{reason}. Name another interface with --iface=NAME. Interfaces here: {known}")]
    Unfit {
        /// What is wrong with it.
        reason: String,
        /// The interfaces there are.
        known: Known,
    },
    /// The interfaces could not be read.
    #[error("cannot read the interfaces of this host: {0}")]
    Netlink(#[from] NetlinkError),
}

/// Interfaces with their usable addresses, to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known(pub(super) Vec<(String, Vec<IpAddr>)>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, addresses)) in self.0.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            let addresses =
                if addresses.is_empty() { "no usable address".to_owned() } else { addresses.join(" ") };
            write!(f, "{comma}{name} ({addresses})")?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
