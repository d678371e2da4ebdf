//! What firewalls of this node do to packets between pods.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::{
    control::snapshot::Snapshot,
    inspect::{
        Kernel,
        checks::{Finding, Nft, NftDrop, Surroundings},
    },
    values::Family,
};

fn networks(told: Option<&Snapshot>) -> Vec<IpNetwork> {
    told.and_then(|told| told.lease.as_ref()).map(|lease| lease.networks.clone()).unwrap_or_default()
}

/// Adds what was found.
pub(super) fn add(told: Option<&Snapshot>, kernel: &Kernel, around: &Surroundings, found: &mut Vec<Finding>) {
    if let Some(nft) = &around.nft {
        of_nft(told, kernel, nft, found);
    }
    for (family, firewall) in &around.firewalls {
        let program = if *family == Family::V4 { "iptables" } else { "ip6tables" };
        found.push(match firewall.drops_forwarded() {
            false => {
                Finding::ok("FORWARD", format!("{program} lets packets of pods pass, or flannel's rules do"))
            }
            true => Finding::error(
                "FORWARD",
                format!("{program}: the policy of FORWARD is DROP, and flannel's rules are not there"),
                "leave --iptables-forward-rules on, or accept the pods' network yourself",
            ),
        });
        let of_family = networks(told).into_iter().filter(|network| Family::of_network(*network) == *family);
        for network in of_family {
            found.push(match firewall.masquerades_before(network) {
                None => Finding::ok("masquerade", format!("{program}: no rule in front of flannel's takes {network}")),
                Some(rule) => Finding::error(
                    "masquerade",
                    format!("{program}: a rule in front of flannel's gives packets between pods another source: {rule}"),
                    "delete that rule, or put `! -d <pod network>` in it",
                ),
            });
        }
    }
}

fn of_nft(told: Option<&Snapshot>, kernel: &Kernel, nft: &Nft, found: &mut Vec<Finding>) {
    let devices =
        told.and_then(|told| told.backend.as_ref()).into_iter().flat_map(|backend| &backend.devices);
    let mut ports: BTreeSet<u16> = kernel.tunnels.values().map(|tunnel| tunnel.device.port).collect();
    ports.extend(devices.filter_map(|device| device.port));
    let external = told.and_then(|told| told.interface.as_ref()).map(|interface| interface.name.as_str());
    for port in &ports {
        let dropped = nft.drops_port(*port, external);
        found.extend(dropped.iter().map(|NftDrop { place, .. }| {
            Finding::warning(
                "nftables",
                format!("a rule in {place} drops UDP port {port}, which carries packets between nodes"),
                "delete that rule, or let the nodes' addresses pass before it",
            )
        }));
    }
    for network in networks(told) {
        let dropped = nft.drops_forwarded(network);
        found.extend(dropped.iter().map(|NftDrop { place, is_policy }| {
            let what = match is_policy {
                true => format!("the policy of {place} is drop, and no rule in it accepts {network}"),
                false => format!("a rule in {place} drops packets of {network}"),
            };
            // What another chain accepts, that of flannel among them, is dropped all the same.
            Finding::warning("nftables", what, "accept the pods' network in that chain")
        }));
    }
    if !found.iter().any(|finding| finding.check == "nftables") {
        found
            .push(Finding::ok("nftables", "no rule or policy is seen to drop packets between nodes or pods"));
    }
}
