//! The choice of the external interface, by upstream's rules.
//!
//! ```text
//! links, addresses, default routes, route to --iface-can-reach ─▶ HostInterfaces ─ choose() ─▶ Chosen
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use regex::Regex;
use tracing::{info, warn};

pub use crate::backend::ExternalInterface;
use crate::{
    config::NetworkConfig,
    netlink::{InterfaceAddress, Link, Netlink, NetlinkError, Reach, route::Route},
    values::Family,
};
pub use error::{InterfaceError, Known};

mod choice;
mod error;
mod refusal;
#[cfg(test)]
mod tests;

/// The address families of the cluster's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stack {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Stack {
    /// What the configuration asks for.
    pub fn of(config: &NetworkConfig) -> Self {
        match (&config.ipv4, &config.ipv6) {
            (Some(_), Some(_)) => Self::Dual,
            (None, Some(_)) => Self::V6,
            (_, None) => Self::V4,
        }
    }

    fn has_v4(self) -> bool {
        self != Self::V6
    }

    fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// What the operator asked for. The first of the first three that fits decides; without any of them the
/// public addresses do, and without those the default route.
#[derive(Clone, Debug, Default)]
pub struct InterfaceChoice {
    /// `--iface`: names or addresses.
    pub iface: Vec<String>,
    /// `--iface-regex`: matched against addresses, then against names.
    pub iface_regex: Vec<Regex>,
    /// `--iface-can-reach`: the interface, and our address, of the route to it.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The families an address is needed of.
    pub stack: Stack,
    /// The networks of the cluster's pods.
    pub networks: Vec<IpNetwork>,
}

/// An interface, and why this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The interface.
    pub interface: ExternalInterface,
    /// The rule that chose it.
    pub because: String,
    /// What was asked for before and did not fit, and why.
    pub passed_over: Vec<String>,
}

/// What the choice is made from.
#[derive(Clone, Debug, Default)]
pub struct HostInterfaces {
    /// All interfaces, in the order of their indices.
    pub links: Vec<Link>,
    /// All addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
    /// Interfaces of the IPv4 default routes, the foremost first.
    pub default_v4: Vec<u32>,
    /// Interfaces of the IPv6 default routes, the foremost first.
    pub default_v6: Vec<u32>,
    /// IPv4 addresses that routes name as the source of packets.
    pub sources: BTreeSet<IpAddr>,
    /// The route to `--iface-can-reach`, or why there is none.
    pub reach: Option<Result<Reach, String>>,
}

impl ExternalInterface {
    /// Chooses the external interface, and logs the rule that chose it.
    ///
    /// # Errors
    /// No interface fits, or they cannot be read.
    pub async fn choose(netlink: &mut Netlink, choice: &InterfaceChoice) -> Result<Self, InterfaceError> {
        let host = HostInterfaces::read(netlink, choice).await?;
        let Chosen { interface, because, passed_over } = host.choose(choice)?;
        for reason in passed_over {
            warn!(reason, "not the external interface");
        }
        let address_v6 = interface.address_v6.map(|address| address.to_string());
        let (name, address, mtu) = (&interface.name, interface.address, interface.mtu);
        info!(interface = name, %address, address_v6, mtu, because, "external interface chosen");
        Ok(interface)
    }

    /// What else on it might be this node's own address as well as the one in use, where nobody has `choice`d that by
    /// itself: one of them may be virtual, and move to another node.
    ///
    /// # Errors
    /// The addresses cannot be read.
    pub async fn rival_addresses(
        &self,
        netlink: &mut Netlink,
        choice: &InterfaceChoice,
    ) -> Result<Vec<IpAddr>, NetlinkError> {
        let host =
            HostInterfaces { addresses: netlink.interface_addresses().await?, ..HostInterfaces::default() };
        Ok(host.rivals(self, choice))
    }
}

impl HostInterfaces {
    async fn read(netlink: &mut Netlink, choice: &InterfaceChoice) -> Result<Self, NetlinkError> {
        let mut host = Self {
            links: netlink.links().await?,
            addresses: netlink.interface_addresses().await?,
            ..Self::default()
        };
        host.links.sort_by_key(|link| link.index);
        let routes = netlink.main_routes(Family::V4, None).await?;
        host.sources = routes.iter().filter_map(|route| route.source).collect();
        host.default_v4 = defaults(routes);
        if choice.stack.has_v6() {
            host.default_v6 = defaults(netlink.main_routes(Family::V6, None).await?);
        }
        if let Some(target) = choice.can_reach {
            host.reach = Some(netlink.reach(target).await);
        }
        Ok(host)
    }
}

/// The interfaces of the default routes, the one with the lowest metric first.
fn defaults(mut routes: Vec<Route>) -> Vec<u32> {
    routes.retain(|route| route.destination.prefix() == 0);
    // Of equals the kernel takes the first.
    routes.sort_by_key(|route| route.metric);
    routes.into_iter().map(|route| route.ifindex).collect()
}
