//! Whether the kernel forwards pods' packets to each peer and back, by all of its rules and tables: it is asked, as
//! `ip route get` asks it.

use std::{collections::BTreeMap, net::IpAddr};

use flannel_common::packet::headers::PROTOCOL_TCP;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteType;

use super::{Finding, Surroundings};
use crate::{
    control::snapshot::Snapshot,
    inspect::{
        Kernel,
        peers::{PeerRow, State},
    },
    netlink::{Netlink, NetlinkError, RouteQuery, refusal_means},
    values::Family,
};

/// So many peers are asked for: a rule that is in the way of all is in the way of these.
const ASKED: usize = 64;
/// So many are named.
const NAMED: usize = 3;

/// What was found of the way of packets between this node's pods and the peers of `rows`.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn of_routes(
    netlink: &mut Netlink,
    told: Option<&Snapshot>,
    kernel: &Kernel,
    around: &Surroundings,
    rows: &[PeerRow],
) -> Result<Vec<Finding>, NetlinkError> {
    let Some(lease) = told.and_then(|told| told.lease.as_ref()) else { return Ok(Vec::new()) };
    let backend = told.and_then(|told| told.backend.as_ref());
    let Some(gateway) = around.gateways.first().copied() else { return Ok(Vec::new()) };
    // Why, and which way, with the peers that it is so of.
    let mut refused = BTreeMap::<(bool, String), Vec<String>>::new();
    for row in rows.iter().filter(|row| row.state != State::Skipped).take(ASKED) {
        let family = Family::of_network(row.subnet);
        let own = lease.subnets.iter().find(|own| Family::of_network(**own) == family);
        let Some((here, there)) = own.and_then(|own| pod(*own)).zip(pod(row.subnet)) else { continue };
        let device = backend.and_then(|backend| backend.device_to(row.subnet, &row.way));
        let device = device.and_then(|device| kernel.links.iter().find(|link| link.name == device.name));
        let external = told.and_then(|told| told.interface.as_ref()).map(|interface| interface.index);
        let by = device.map(|link| link.index).or(external);
        for (is_out, source, destination, arrived_by) in
            [(true, here, there, Some(gateway)), (false, there, here, by)]
        {
            let Some(arrived_by) = arrived_by else { continue };
            let query = RouteQuery {
                source: Some(source),
                destination,
                arrived_by: Some(arrived_by),
                mark: 0,
                tos: 0,
                protocol: PROTOCOL_TCP,
                source_port: None,
                destination_port: None,
            };
            let why = match netlink.taken_route(&query).await? {
                Err(refusal) => format!("{refusal}{}", refusal_means(&refusal)),
                Ok(route) => match route.kind {
                    RouteType::Unicast => continue,
                    kind => format!("the route is {}", format!("{kind:?}").to_lowercase()),
                },
            };
            let why =
                format!("{why}: ip route get {destination} from {source} iif {}", kernel.name(arrived_by));
            let name = row.node.clone().unwrap_or_else(|| row.subnet.to_string());
            // One example is enough of a reason that all have.
            let known = refused.keys().find(|(out, known)| *out == is_out && same(known, &why)).cloned();
            refused.entry(known.unwrap_or((is_out, why))).or_default().push(name);
        }
    }
    if refused.is_empty() {
        return Ok(vec![Finding::ok(
            "routing",
            "the kernel forwards between this node's pods and its peers'",
        )]);
    }
    Ok(refused.into_iter().map(|((is_out, why), peers)| refusal(is_out, &why, &peers)).collect())
}

/// An address that a pod of the subnet may have.
fn pod(subnet: IpNetwork) -> Option<IpAddr> {
    match subnet {
        IpNetwork::V4(subnet) => subnet.nth(2).map(IpAddr::V4),
        IpNetwork::V6(subnet) => subnet.nth(2).map(IpAddr::V6),
    }
}

/// Whether two reasons differ in their examples only.
fn same(a: &str, b: &str) -> bool {
    a.split(": ip route get").next() == b.split(": ip route get").next()
}

fn refusal(is_out: bool, why: &str, peers: &[String]) -> Finding {
    let more = match peers.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = peers.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let way = if is_out { "from this node's pods to those of" } else { "to this node's pods from those of" };
    Finding::error(
        "routing",
        format!("the kernel forwards no packet {way} {names}{more}: {why}"),
        "a rule, a route of another table or the reverse path filter: ip rule, ip route show table all, rp_filter",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_one_line_whatever_its_example() {
        let because = |peer: &str| format!("No route to host: ip route get {peer} from 10.244.1.2 iif cni0");
        assert!(same(&because("10.244.2.2"), &because("10.244.3.2")));
        assert!(!same(&because("10.244.2.2"), "Permission denied: ip route get x from y iif z"));
        let names: Vec<String> = (2..7).map(|number| format!("node{number}")).collect();
        let found = refusal(true, &because("10.244.2.2"), &names);
        assert!(found.evidence.contains("node2, node3, node4 and 2 more: No route to host"), "{found:?}");
    }
}
