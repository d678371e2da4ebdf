//! The host's side: the bridge that pods are ports of, with the addresses of their gateway.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::{
    super::error::{CniError, Code},
    failure::failed,
    given::Given,
    options::Options,
};
use crate::{
    host::sysctl,
    netlink::{Link, LinkKind, Netlink, address, bridge, link},
    values::Family,
};

/// The bridge, made if it is not there.
///
/// # Errors
/// The kernel's, or something else has its name.
pub(super) async fn bridge(host: &mut Netlink, options: &Options) -> Result<Link, CniError> {
    let name = &options.bridge;
    let look_for = |error| failed(&format!("look for bridge {name}"), &error);
    let mut found = host.link(name).await.map_err(look_for)?;
    if found.is_none() {
        match host.change(bridge::create(name, options.mtu)).await {
            Err(error) if error.errno() != Some(Errno::EEXIST) => {
                return Err(failed(&format!("make bridge {name}"), &error));
            }
            // Else that of another pod was faster.
            _ => found = host.link(name).await.map_err(look_for)?,
        }
        let refused = link::refuse_router_advertisements(name);
        refused.map_err(|error| failed(&format!("turn router advertisements off at {name}"), &error))?;
    }
    let Some(found) = found else {
        return Err(CniError::new(Code::TryAgainLater, format!("bridge {name} went away")));
    };
    if found.kind != LinkKind::Bridge {
        return Err(CniError::new(
            Code::NetworkConfig,
            format!("delegate.bridge: {name} is an interface, and no bridge; name another"),
        ));
    }
    if !found.up {
        let up = host.change(link::set_up(found.index)).await;
        up.map_err(|error| failed(&format!("set {name} up"), &error))?;
    }
    Ok(found)
}

/// Makes the host's end a port of the bridge.
///
/// # Errors
/// The kernel's.
pub(super) async fn connect(
    host: &mut Netlink,
    end: &Link,
    bridge: &Link,
    options: &Options,
) -> Result<(), CniError> {
    let connected = host.change(bridge::add_port(end.index, bridge.index)).await;
    connected.map_err(|error| failed(&format!("make {} a port of {}", end.name, bridge.name), &error))?;
    if options.port != Default::default() {
        let set = host.change(bridge::set_port(end.index, options.port)).await;
        set.map_err(|error| failed(&format!("set up port {}", end.name), &error))?;
    }
    Ok(())
}

/// Gives the bridge the pods' gateway's addresses, and lets the node forward.
///
/// # Errors
/// The kernel's, or the bridge has another address.
pub(super) async fn be_gateway(
    host: &mut Netlink,
    bridge: &Link,
    given: &Given,
    options: &Options,
) -> Result<(), CniError> {
    for address in &given.addresses {
        let Some(gateway) = address.gateway else { continue };
        let network = IpNetwork::new(gateway, address.network.prefix());
        let network = network.map_err(|error| failed("read the gateway's address", &error))?;
        give(host, bridge, network, options.force_address).await?;
        let forwarding = match gateway {
            IpAddr::V4(_) => "ipv4/ip_forward",
            IpAddr::V6(_) => "ipv6/conf/all/forwarding",
        };
        if sysctl::NET.read(forwarding).ok().as_deref() == Some("0") {
            let set = sysctl::NET.write(forwarding, "1");
            set.map_err(|error| failed(&format!("set {forwarding} to 1"), &error))?;
        }
    }
    Ok(())
}

async fn give(host: &mut Netlink, bridge: &Link, network: IpNetwork, force: bool) -> Result<(), CniError> {
    let name = &bridge.name;
    let held = host.addresses(Family::of_network(network), Some(bridge.index)).await;
    let held = held.map_err(|error| failed(&format!("read the addresses of {name}"), &error))?;
    if held.iter().any(|held| held.network == network) {
        return Ok(());
    }
    // Of IPv6 it may have several, whose networks have nothing in common.
    let in_the_way = held
        .iter()
        .map(|held| held.network)
        .filter(|held| held.is_ipv4() || crate::values::overlap(*held, network));
    for other in in_the_way {
        if !force {
            return Err(CniError::new(
                Code::Internal,
                format!("{name:?} already has an IP address different from {network}: {other}"),
            )
            .detailed(format!(
                r#"delete it (ip address delete {other} dev {name}), or write "forceAddress": true"#
            )));
        }
        let deleted = host.change(address::delete(bridge.index, other)).await;
        deleted.map_err(|error| failed(&format!("take {other} from {name}"), &error))?;
    }
    let put = host.change(address::put(bridge.index, network)).await;
    put.map_err(|error| failed(&format!("give {name} address {network}"), &error))?;
    // The bridge keeps its MAC, which pods know by this address: unasked it has the lowest of its ports'.
    let mac = host.link(name).await.ok().flatten().and_then(|link| link.mac);
    if let Some(mac) = mac {
        let kept = host.change(link::set_mac(bridge.index, mac)).await;
        kept.map_err(|error| failed(&format!("keep the MAC of {name}"), &error))?;
    }
    Ok(())
}
