//! The choice of the external interface, by upstream's rules.

use std::{fmt, net::Ipv4Addr};

use super::{Address, Link, Netlink, NetlinkError};

/// The interface that carries packets between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Largest packet, bytes; never 0.
    pub mtu: u32,
    /// Our address on it: local address of outer headers.
    pub address: Ipv4Addr,
}

/// What the operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceChoice {
    /// `--iface`: names or addresses, the first that fits is taken.
    pub iface: Vec<String>,
    /// `--public-ip`. Without `--iface` it names the interface that holds it.
    pub public_ip: Option<Ipv4Addr>,
}

/// No external interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// None of the values of `--iface` fits.
    #[error(
        "no interface fits {}: {}. Give the name of an interface, or an IPv4 address one holds. \
         Interfaces here: {known}",
        flags(.iface), .reasons.join("; ")
    )]
    NoneFits {
        /// The values of `--iface`.
        iface: Vec<String>,
        /// What is wrong with each.
        reasons: Vec<String>,
        /// The interfaces there are.
        known: Known,
    },
    /// `--public-ip` is not ours.
    #[error(
        "--public-ip={address}: no interface holds this address. If it is translated on the way, name the \
         interface behind it with --iface=NAME. Interfaces here: {known}"
    )]
    NotHeld {
        /// The value of `--public-ip`.
        address: Ipv4Addr,
        /// The interfaces there are.
        known: Known,
    },
    /// Nothing was asked for, and there is nothing to go by.
    #[error(
        "there is no IPv4 default route to choose the external interface by. Name it with --iface=NAME. \
         Interfaces here: {known}"
    )]
    NoDefaultRoute {
        /// The interfaces there are.
        known: Known,
    },
    /// The interface of the default route, or of `--public-ip`, is of no use.
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

fn flags(values: &[String]) -> String {
    values.iter().map(|value| format!("--iface={value}")).collect::<Vec<_>>().join(" ")
}

/// Interfaces with their addresses, to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known(Vec<(String, Vec<Ipv4Addr>)>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, addresses)) in self.0.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            let addresses: Vec<_> = addresses.iter().map(Ipv4Addr::to_string).collect();
            let addresses = if addresses.is_empty() { "no IPv4".to_owned() } else { addresses.join(" ") };
            write!(f, "{comma}{name} ({addresses})")?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// What the choice is made from.
#[derive(Clone, Debug, Default)]
pub struct HostInterfaces {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<Address>,
    /// Interface of the foremost IPv4 default route.
    pub default_route: Option<u32>,
}

impl Netlink {
    /// Chooses the external interface.
    pub async fn external_interface(
        &mut self,
        choice: &InterfaceChoice,
    ) -> Result<ExternalInterface, InterfaceError> {
        let links = self.links().await?;
        let addresses = self.addresses(None).await?;
        let routes = self.main_routes(None).await?;
        let default_route =
            routes.iter().find(|route| route.destination.prefix() == 0).map(|route| route.ifindex);
        HostInterfaces { links, addresses, default_route }.choose(choice)
    }
}

impl HostInterfaces {
    /// Chooses the external interface: by `--iface`, else by `--public-ip`, else by the default route.
    pub fn choose(&self, choice: &InterfaceChoice) -> Result<ExternalInterface, InterfaceError> {
        let known = || self.known();
        if !choice.iface.is_empty() {
            let mut reasons = Vec::new();
            for value in &choice.iface {
                match self.named(value) {
                    Ok(interface) => return Ok(interface),
                    Err(reason) => reasons.push(reason),
                }
            }
            return Err(InterfaceError::NoneFits { iface: choice.iface.clone(), reasons, known: known() });
        }
        if let Some(address) = choice.public_ip {
            let holder =
                self.holder(address).ok_or_else(|| InterfaceError::NotHeld { address, known: known() })?;
            return external(holder, address)
                .map_err(|reason| InterfaceError::Unfit { reason, known: known() });
        }
        self.default_route
            .and_then(|index| self.links.iter().find(|link| link.index == index))
            .ok_or_else(|| InterfaceError::NoDefaultRoute { known: known() })
            .and_then(|link| {
                self.with_its_address(link).map_err(|reason| InterfaceError::Unfit { reason, known: known() })
            })
    }

    /// The interface that one value of `--iface` means.
    fn named(&self, value: &str) -> Result<ExternalInterface, String> {
        if let Ok(address) = value.parse::<Ipv4Addr>() {
            let holder = self.holder(address).ok_or_else(|| format!("no interface holds {address}"))?;
            return external(holder, address);
        }
        let link = self.links.iter().find(|link| link.name == value);
        self.with_its_address(link.ok_or_else(|| format!("there is no interface {value}"))?)
    }

    fn holder(&self, address: Ipv4Addr) -> Option<&Link> {
        let held = self.addresses.iter().find(|held| held.network.ip() == address)?;
        self.links.iter().find(|link| link.index == held.ifindex)
    }

    /// An interface with the best of its addresses: global before link-local, permanent before dynamic,
    /// then in the kernel's order.
    fn with_its_address(&self, link: &Link) -> Result<ExternalInterface, String> {
        let address = self
            .addresses
            .iter()
            .filter(|address| address.ifindex == link.index && is_usable(address))
            .min_by_key(|address| (address.network.ip().is_link_local(), !address.permanent))
            .ok_or_else(|| format!("interface {} has no usable IPv4 address", link.name))?;
        external(link, address.network.ip())
    }

    fn known(&self) -> Known {
        let addresses_of = |link: &Link| {
            let of_link = self.addresses.iter().filter(|address| address.ifindex == link.index);
            of_link.map(|address| address.network.ip()).collect()
        };
        Known(self.links.iter().map(|link| (link.name.clone(), addresses_of(link))).collect())
    }
}

fn is_usable(address: &Address) -> bool {
    let ip = address.network.ip();
    !address.deprecated && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()
}

fn external(link: &Link, address: Ipv4Addr) -> Result<ExternalInterface, String> {
    if link.mtu == 0 {
        return Err(format!("interface {} has MTU 0", link.name));
    }
    Ok(ExternalInterface { name: link.name.clone(), index: link.index, mtu: link.mtu, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::LinkKind;

    fn host() -> HostInterfaces {
        let link = |index, name: &str, mtu| Link {
            index,
            name: name.to_owned(),
            kind: LinkKind::Other,
            mtu,
            mac: None,
            up: true,
            master: None,
            peer: None,
        };
        let address = |ifindex, network: &str, permanent| Address {
            ifindex,
            network: network.parse().unwrap(),
            deprecated: false,
            permanent,
            global: true,
        };
        HostInterfaces {
            links: vec![
                link(1, "lo", 65536),
                link(2, "eth0", 1500),
                link(3, "eth1", 9000),
                link(4, "bare", 1500),
                link(5, "null", 0),
            ],
            addresses: vec![
                address(1, "127.0.0.1/8", true),
                address(2, "169.254.3.4/16", true),
                address(2, "192.0.2.20/24", false),
                address(2, "192.0.2.2/24", true),
                address(3, "198.51.100.3/24", true),
                address(5, "203.0.113.5/24", true),
            ],
            default_route: Some(2),
        }
    }

    fn choose(iface: &[&str], public_ip: Option<&str>) -> Result<(String, String), String> {
        let choice = InterfaceChoice {
            iface: iface.iter().map(|&value| value.to_owned()).collect(),
            public_ip: public_ip.map(|text| text.parse().unwrap()),
        };
        let chosen = host().choose(&choice).map_err(|error| error.to_string())?;
        Ok((chosen.name, chosen.address.to_string()))
    }

    fn found(name: &str, address: &str) -> Result<(String, String), String> {
        Ok((name.to_owned(), address.to_owned()))
    }

    #[test]
    fn the_default_route_decides_when_nothing_is_asked_for() {
        assert_eq!(choose(&[], None), found("eth0", "192.0.2.2"));
        let without = HostInterfaces { default_route: None, ..host() };
        let error = without.choose(&InterfaceChoice::default()).unwrap_err().to_string();
        assert!(error.contains("no IPv4 default route") && error.contains("--iface=NAME"), "{error}");
        assert!(error.contains("eth1 (198.51.100.3)") && error.contains("bare (no IPv4)"), "{error}");
    }

    #[test]
    fn iface_is_a_name_or_an_address_and_the_first_that_fits_is_taken() {
        assert_eq!(choose(&["eth1"], None), found("eth1", "198.51.100.3"));
        assert_eq!(choose(&["192.0.2.20"], None), found("eth0", "192.0.2.20"));
        assert_eq!(choose(&["nope", "bare", "eth1", "eth0"], None), found("eth1", "198.51.100.3"));
        assert_eq!(choose(&["eth1"], Some("203.0.113.99")), found("eth1", "198.51.100.3"));
    }

    #[test]
    fn iface_that_does_not_fit_is_named_with_its_remedy() {
        let error = choose(&["nope", "192.0.2.9", "bare", "null", "lo"], None).unwrap_err();
        for part in [
            "--iface=nope --iface=192.0.2.9",
            "there is no interface nope",
            "no interface holds 192.0.2.9",
            "interface bare has no usable IPv4 address",
            "interface null has MTU 0",
            "interface lo has no usable IPv4 address",
            "Give the name of an interface",
            "eth0 (169.254.3.4 192.0.2.20 192.0.2.2)",
        ] {
            assert!(error.contains(part), "{part:?} is missing in {error:?}");
        }
    }

    #[test]
    fn public_ip_alone_names_the_interface_that_holds_it() {
        assert_eq!(choose(&[], Some("198.51.100.3")), found("eth1", "198.51.100.3"));
        let error = choose(&[], Some("203.0.113.99")).unwrap_err();
        assert!(error.starts_with("--public-ip=203.0.113.99: no interface holds this address"), "{error}");
    }
}
