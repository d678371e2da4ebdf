//! What firewalls of this node do to packets between pods.

use std::collections::BTreeSet;

use super::PodNetworks;
use crate::{
    control::snapshot::Snapshot,
    inspect::{
        Kernel,
        checks::{Base, Dropped, End, Finding, Keeps, Nft, Passage, Surroundings, program_for},
    },
    netlink::{Link, LinkKind},
    values::{Family, overlap},
};

/// Adds what was found.
pub(super) fn add(
    told: Option<&Snapshot>,
    networks: &PodNetworks,
    kernel: &Kernel,
    around: &Surroundings,
    passages: &[Passage],
    found: &mut Vec<Finding>,
) {
    let is_gateway = |link: &&Link| around.gateways.contains(&link.index);
    let bridged = kernel.links.iter().filter(is_gateway).any(|link| link.kind == LinkKind::Bridge);
    if let Some(nft) = &around.nft {
        of_nft(told, kernel, nft, (passages, bridged), found);
    }
    for (family, firewall) in &around.firewalls {
        let program = program_for(*family);
        let who = |base: &Base, dropped: &Dropped| match &dropped.rule {
            None => format!("{program}: the policy of {} is DROP, and no rule is seen to accept", base.place),
            Some(rule) => format!("{program}: a rule that {} comes to, `{rule}`, drops", base.place),
        };
        let dropped = dropped(&firewall.bases, *family, (passages, bridged), who);
        if dropped.is_empty() {
            let text = format!("{program} lets packets of pods pass, or flannel's rules do");
            found.push(Finding::ok("FORWARD", text));
        }
        for (certain, what) in dropped {
            // The agent's own rules are in table filter.
            let remedy = match what.contains("mangle") {
                true => {
                    "delete that rule, or accept the pods' network ahead of it; where it is the policy, set it to ACCEPT"
                }
                false => {
                    "delete that rule, or accept the pods' network ahead of it; where it is the policy, leave \
                     --iptables-forward-rules on"
                }
            };
            found.push(grave(certain, "FORWARD", what, remedy));
        }
        let of_family =
            networks.all.iter().copied().filter(|network| Family::of_network(*network) == *family);
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

/// From the pods of this node to those of others and back, in each network.
pub(super) fn passages(
    told: Option<&Snapshot>,
    networks: &PodNetworks,
    kernel: &Kernel,
    around: &Surroundings,
) -> Vec<Passage> {
    let backend = told.and_then(|told| told.backend.as_ref());
    let gateways: Vec<String> = around.gateways.iter().map(|index| kernel.name(*index)).collect();
    let mut all = Vec::new();
    for network in &networks.all {
        let family = Family::of_network(*network);
        let Some(own) = networks.own.iter().find(|own| Family::of_network(**own) == family) else {
            continue;
        };
        let devices = backend.into_iter().flat_map(|backend| &backend.devices);
        let of_network =
            devices.filter(|device| device.networks.iter().any(|carried| overlap(*carried, *network)));
        let mut ways: Vec<String> = of_network.map(|device| device.name.clone()).collect();
        if told.is_none() {
            ways.extend(kernel.tunnels.get(&family).map(|tunnel| tunnel.device.name.clone()));
        }
        if ways.is_empty() || backend.is_some_and(|backend| backend.direct_routing) {
            ways.extend(
                told.and_then(|told| told.interface.as_ref()).map(|interface| interface.name.clone()),
            );
        }
        let here = End { network: *own, without: None };
        let others = End { network: *network, without: Some(*own) };
        all.push(Passage {
            source: here,
            destination: others,
            by: gateways.clone(),
            out: ways.clone(),
            alone: None,
        });
        all.push(Passage { source: others, destination: here, by: ways, out: gateways.clone(), alone: None });
    }
    all
}

/// Whether it is certain, and a sentence, for each chain that drops packets of a passage of this family; `who` begins it.
fn dropped(
    bases: &[Base],
    family: Family,
    (passages, bridged): (&[Passage], bool),
    who: impl Fn(&Base, &Dropped) -> String,
) -> Vec<(bool, String)> {
    let mut found: Vec<(bool, String)> = Vec::new();
    for base in bases {
        let of_family =
            passages.iter().filter(|passage| Family::of_network(passage.source.network) == family);
        let drops =
            of_family.filter_map(|passage| Some((passage, base.drops(&base.sees(passage, bridged)?)?)));
        // One line for both ways, where that is one fault.
        let mut worst: Vec<(&Passage, Dropped)> = drops.collect();
        worst.sort_by_key(|(_, dropped)| !dropped.certain);
        for (passage, dropped) in worst {
            let begin = who(base, &dropped);
            if found.iter().any(|(_, known)| known.starts_with(&begin)) {
                continue;
            }
            let some = if dropped.certain { "" } else { "some " };
            let (from, to) = (passage.source.network, passage.destination.network);
            found.push((dropped.certain, format!("{begin} {some}packets of pods from {from} to {to}")));
        }
    }
    found
}

fn grave(certain: bool, check: &'static str, what: String, remedy: &str) -> Finding {
    match certain {
        true => Finding::error(check, what, remedy),
        false => Finding::warning(check, what, remedy),
    }
}

fn of_nft(
    told: Option<&Snapshot>,
    kernel: &Kernel,
    nft: &Nft,
    (passages, bridged): (&[Passage], bool),
    found: &mut Vec<Finding>,
) {
    let devices =
        told.and_then(|told| told.backend.as_ref()).into_iter().flat_map(|backend| &backend.devices);
    let mut ports: BTreeSet<u16> = kernel.tunnels.values().map(|tunnel| tunnel.device.port).collect();
    ports.extend(devices.filter_map(|device| device.port));
    let external = told.and_then(|told| told.interface.as_ref()).map(|interface| interface.name.as_str());
    for port in &ports {
        let dropped = nft.drops_port(*port, external);
        found.extend(dropped.iter().map(|place| {
            Finding::warning(
                "nftables",
                format!("a rule in {place} drops UDP port {port}, which carries packets between nodes"),
                "delete that rule, or let the nodes' addresses pass before it",
            )
            .keeping(Keeps::Tunnel)
        }));
    }
    for (family, bases) in &nft.bases.filters {
        let dropped = dropped(bases, *family, (passages, bridged), |base, dropped| match dropped.rule {
            None => format!("the policy of {} is drop, and no rule is seen to accept", base.place),
            Some(_) => format!("{} drops", dropped.by),
        });
        // What another chain accepts, that of flannel among them, is dropped all the same.
        found.extend(dropped.into_iter().map(|(certain, what)| {
            grave(certain, "nftables", what, "accept the pods' network in that chain")
        }));
    }
    for (family, bases) in &nft.bases.translations {
        let of_family =
            || passages.iter().filter(|passage| Family::of_network(passage.source.network) == *family);
        // Whatever its priority: that flannel's chain leaves a packet as it is does not keep another from changing it.
        for base in bases {
            let Some(passage) = of_family().find(|passage| base.translates(passage)) else { continue };
            let (from, to) = (passage.source.network, passage.destination.network);
            found.push(Finding::error(
                "masquerade",
                format!("nftables: a rule that {} comes to gives packets of pods from {from} to {to} another source", base.place),
                "delete that rule, or put `ip daddr != <pod network>` (IPv6: ip6) in it",
            ));
        }
    }
    if !found.iter().any(|finding| finding.check == "nftables") {
        found
            .push(Finding::ok("nftables", "no rule or policy is seen to drop packets between nodes or pods"));
    }
}
