//! Interfaces that lead to pods and not to other nodes, whatever routes some other program has set up over them: a DHCP
//! client that serves every interface puts the default route over a VXLAN device or a bridge of pods, too.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{ExternalInterface, HostInterfaces, InterfaceChoice};
use crate::netlink::{Link, LinkKind};

impl HostInterfaces {
    /// Why `link` cannot be the external interface, if it is one of the overlay or of pods.
    ///
    /// A bridge or a VXLAN device as such can well be the external interface. It is one of pods if it has an address of
    /// theirs, and, a bridge, no port but pods.
    pub(super) fn refusal(&self, link: &Link, choice: &InterfaceChoice) -> Option<String> {
        let name = &link.name;
        if is_overlay(name) {
            return Some(format!(
                "{name} is a device of flannel's overlay, which itself needs the external interface"
            ));
        }
        let (address, network) = self.address_of_pods(link, &choice.networks)?;
        let kind = match link.kind {
            LinkKind::Vxlan(_) => "VXLAN device",
            LinkKind::Bridge if !self.has_other_port_than_pods(link) => "bridge",
            _ => return None,
        };
        Some(format!("{name} is a {kind} with address {address} of the pods' network {network}"))
    }

    fn address_of_pods(&self, link: &Link, networks: &[IpNetwork]) -> Option<(IpAddr, IpNetwork)> {
        let mut held = self.addresses.iter().filter(|held| held.ifindex == link.index);
        held.find_map(|held| Some((held.ip, *networks.iter().find(|network| network.contains(held.ip))?)))
    }

    fn has_other_port_than_pods(&self, bridge: &Link) -> bool {
        let mut ports = self.links.iter().filter(|link| link.master == Some(bridge.index));
        ports.any(|port| !port.kind.is_pair())
    }

    /// What else on `external` might be this node's own address as well as the one in use, unless that was asked for.
    pub(super) fn rivals(&self, external: &ExternalInterface, choice: &InterfaceChoice) -> Vec<IpAddr> {
        let asked = |ip: IpAddr| {
            choice.iface.iter().any(|value| value.parse() == Ok(ip))
                || choice.public_ip.map(IpAddr::V4) == Some(ip)
                || choice.public_ipv6.map(IpAddr::V6) == Some(ip)
        };
        // A node goes by its IPv4 address where it has one.
        let Some(own) = external.addresses().map(|(_, ip)| ip).next().filter(|ip| !asked(*ip)) else {
            return Vec::new();
        };
        let on_it = || self.addresses.iter().filter(|held| held.ifindex == external.index);
        let Some(in_use) = on_it().find(|held| held.ip == own) else { return Vec::new() };
        on_it().filter(|held| held.ip != own && held.rivals(in_use)).map(|held| held.ip).collect()
    }
}

/// Whether an interface is called as flannel calls its devices: by backend vxlan `flannel.1` and `flannel-v6.1`, ipip
/// `flannel.ipip`, wireguard `flannel-wg` and `flannel-wg-v6`, udp `flannel0`.
fn is_overlay(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("flannel") else { return false };
    rest.starts_with('.')
        || rest.starts_with("-v6.")
        || rest.starts_with("-wg")
        || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}
