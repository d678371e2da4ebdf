//! What of this node is in the way.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::{Finding, Keeps, Surroundings};
use crate::{
    control::snapshot::Snapshot,
    host::clock::Clock,
    inspect::{Kernel, Maps},
    netlink::LinkKind,
    values::overlap,
};

mod firewalls;
mod forwarding;
mod ipsec;
mod pods;

/// A table is called full from here on, in percent.
const FULL: u64 = 90;
/// How the interfaces of other networks for pods begin.
const OTHERS: [(&str, &str); 6] = [
    ("cali", "Calico"),
    ("cilium_", "Cilium"),
    ("weave", "Weave Net"),
    ("antrea-", "Antrea"),
    ("ovn-", "OVN-Kubernetes"),
    ("kube-bridge", "kube-router"),
];

/// The networks of pods.
#[derive(Clone, Debug, Default)]
struct PodNetworks {
    /// This node's subnets.
    own: Vec<IpNetwork>,
    /// Those of all nodes.
    all: Vec<IpNetwork>,
}

impl PodNetworks {
    /// As the agent has them, or else the programs.
    fn of(told: Option<&Snapshot>, maps: Option<&Maps>) -> Self {
        match (told.and_then(|told| told.lease.as_ref()), maps) {
            (Some(lease), _) => Self { own: lease.subnets.clone(), all: lease.networks.clone() },
            (None, Some(maps)) => Self { own: maps.subnets.clone(), all: maps.networks.clone() },
            (None, None) => Self::default(),
        }
    }
}

/// What was found of the node; `told` is what its agent says, `without_maps` why there is no file system for maps.
pub fn of_node(
    told: Option<&Snapshot>,
    kernel: &Kernel,
    maps: Option<&Maps>,
    without_maps: Option<&str>,
    around: &Surroundings,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let networks = PodNetworks::of(told, maps);
    let passages = firewalls::passages(told, &networks, kernel, around);
    pods::add(&networks, kernel, around, &mut found);
    forwarding::add(told, kernel, around, &mut found);
    settings(told, kernel, around, &mut found);
    firewalls::add(told, &networks, kernel, around, &passages, &mut found);
    if let Some(table) = &around.ipsec {
        ipsec::add(table, &passages, &mut found);
    }
    room(maps, around, &mut found);
    found.extend(around.clock.map(of_clock));
    others(told, kernel, around, &mut found);
    let fast_path = told.and_then(|told| told.fast_path.as_ref());
    let wanted = fast_path.is_none_or(|fast_path| fast_path.asked != "off" && !fast_path.by_backend);
    match without_maps.filter(|_| wanted) {
        Some(why) => found.push(Finding::error(
            "bpffs",
            format!("maps cannot be read: {why}"),
            "restart the agent after that: until then packets take the kernel path",
        )),
        None => found.push(Finding::ok("bpffs", "programs and maps can be pinned")),
    }
    if let Some(fast_path) = fast_path
        && let Some(limit) = &fast_path.limit
    {
        found.push(match fast_path.by_backend {
            true => Finding::ok("fast path", format!("none with this backend: {limit}")),
            false => Finding::warning(
                "fast path",
                format!("{} was asked for, {} is what there is: {limit}", fast_path.asked, fast_path.granted),
                "packets take the kernel path, as with stock flannel: remove the limit, or leave it at that",
            ),
        });
    }
    found
}

fn settings(told: Option<&Snapshot>, kernel: &Kernel, around: &Surroundings, found: &mut Vec<Finding>) {
    let external = told.and_then(|told| told.interface.as_ref()).map(|interface| interface.name.as_str());
    let tunnels = kernel.tunnels.values().map(|tunnel| tunnel.device.name.as_str());
    let devices =
        told.and_then(|told| told.backend.as_ref()).into_iter().flat_map(|backend| &backend.devices);
    let devices = devices.map(|device| device.name.as_str());
    let ours: BTreeSet<&str> = external.into_iter().chain(tunnels).chain(devices).collect();
    let strict: Vec<&str> =
        ours.iter().copied().filter(|name| around.rp_filter.get(*name) == Some(&1)).collect();
    found.push(match strict[..] {
        [] => Finding::ok("rp_filter", "not strict where pods' packets come in"),
        _ => Finding::warning(
            "rp_filter",
            format!("rp_filter = 1 (strict) on {}", strict.join(", ")),
            "packets whose answer would leave by another interface are dropped: sysctl -w \
             net.ipv4.conf.<interface>.rp_filter=2 (loose), and that of `all`",
        )
        .keeping(Keeps::Some),
    });
    let mtu =
        told.and_then(|told| told.backend.as_ref()).map(|backend| backend.pod_mtu).filter(|mtu| *mtu > 0);
    if let Some((mtu, (_, bridge))) = mtu.zip(around.bridge.as_ref()) {
        found.push(match *bridge > mtu {
            false => Finding::ok("pod MTU", format!("cni0 has {bridge}, and {mtu} fit")),
            true => Finding::warning(
                "pod MTU",
                format!("cni0 has MTU {bridge}, and packets of {mtu} bytes fit through the tunnel"),
                "pods that were started with a larger MTU lose large packets: restart them",
            ),
        });
    }
    if around.bridge_netfilter == Some(false) {
        found.push(Finding::warning(
            "bridge filter",
            "net.bridge.bridge-nf-call-iptables = 0: rules do not see packets between pods on one bridge",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1, where Services or policies are used",
        ));
    }
}

fn of_clock(clock: Clock) -> Finding {
    Finding::ok(
        "clock",
        match clock.synchronised {
            true => format!("NTP or the like keeps it right, to {:.1} ms", clock.error.as_secs_f64() * 1e3),
            // As on every machine whose clock the hypervisor keeps.
            false => "the kernel was not told that anybody keeps it right: certificates and tokens need that"
                .to_owned(),
        },
    )
}

fn room(maps: Option<&Maps>, around: &Surroundings, found: &mut Vec<Finding>) {
    if let Some((count, most)) = around.conntrack {
        let percent = count * 100 / most.max(1);
        found.push(match percent < FULL {
            true => Finding::ok("conntrack", format!("{count} of {most} entries")),
            false => Finding::error(
                "conntrack",
                format!("{count} of {most} entries: new connections are dropped when it is full"),
                "raise net.netfilter.nf_conntrack_max, or find what opens so many",
            ),
        });
    }
    for fill in maps.iter().flat_map(|maps| &maps.fill) {
        let percent = (fill.entries * 100 / fill.room.max(1)) as u64;
        if percent >= FULL {
            found.push(Finding::warning(
                "map room",
                format!("map {} has {} of {} entries", fill.map, fill.entries, fill.room),
                match fill.forgets {
                    true => {
                        "flows idle longest are forgotten and take the kernel path: raise --flow-table-size"
                    }
                    false => "what does not fit takes the kernel path",
                },
            ));
        }
    }
    let broken: Vec<String> = around
        .bad_checksums
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(protocol, count)| format!("{protocol} {count}"))
        .collect();
    if !broken.is_empty() {
        found.push(Finding::warning(
            "checksums",
            format!(
                "packets came to this node with a wrong checksum while this was checked: {}",
                broken.join(", ")
            ),
            "a card, driver or switch breaks them: try ethtool -K <interface> tx-udp_tnl-csum-segmentation \
             off on the sender",
        ));
    }
}

/// Rules of others that keep flows from the fast path.
fn rules_about_each_packet(told: &Snapshot, found: &mut Vec<Finding>) {
    let each_packet =
        told.rules.iter().flat_map(|rules| rules.each_packet.iter().map(move |rule| (rules, rule)));
    found.extend(each_packet.map(|(rules, rule)| {
        Finding::warning(
            "rules",
            format!("{}: flows that this can see stay on the kernel path: {rule}", rules.kept_by),
            "a rule by rates, volumes or contents, or that copies packets: name the protocol, ports or addresses in it \
             that it is about; a program: detach it if nobody needs it",
        )
    }));
}

fn others(told: Option<&Snapshot>, kernel: &Kernel, around: &Surroundings, found: &mut Vec<Finding>) {
    if let Some(told) = told {
        rules_about_each_packet(told, found);
    }
    let own =
        told.and_then(|told| told.lease.as_ref()).map(|lease| lease.subnets.clone()).unwrap_or_default();
    if let Some((addresses, _)) = &around.bridge
        && !own.is_empty()
    {
        let is_stray = |address: &&IpNetwork| {
            let of_family = own.iter().find(|subnet| subnet.is_ipv4() == address.is_ipv4());
            let local = matches!(address.ip(), std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
            !local && of_family.is_some_and(|subnet| !overlap(*subnet, **address))
        };
        found.push(match addresses.iter().find(is_stray) {
            None => Finding::ok("bridge", "cni0 is in this node's subnet"),
            Some(address) => Finding::error(
                "bridge",
                format!("cni0 has {address}, which is not in this node's subnet"),
                "left by an earlier subnet: drain the node, ip link delete cni0, restart its pods",
            ),
        });
    }
    for (prefix, name) in OTHERS {
        let links: Vec<&str> = kernel
            .links
            .iter()
            .filter(|link| link.name.starts_with(prefix))
            .map(|link| link.name.as_str())
            .take(3)
            .collect();
        if !links.is_empty() {
            found.push(Finding::warning(
                "other networks",
                format!("interfaces of {name} are there: {}", links.join(", ")),
                "left by another pod network: remove it with its rules, or reboot the node after that",
            ));
        }
    }
    if let Some(first) = around.cni_configs.first()
        && !first.contains("flannel")
        && around.cni_configs.iter().any(|name| name.contains("flannel"))
    {
        found.push(Finding::warning(
            "CNI",
            format!("/etc/cni/net.d/{first} comes before flannel's, and runtimes take the first"),
            "remove it, or rename it so that flannel's is first",
        ));
    }
    let ports = kernel.tunnels.values().map(|tunnel| tunnel.device.port).collect::<Vec<_>>();
    let wanted = told.and_then(|told| told.backend.as_ref());
    let wanted: Vec<u16> = wanted
        .map(|backend| backend.devices.iter().filter_map(|device| device.port).collect())
        .unwrap_or_default();
    let is_ours = |name: &str| {
        kernel.tunnels.values().any(|tunnel| tunnel.device.name == name)
            || told
                .and_then(|told| told.backend.as_ref())
                .is_some_and(|backend| backend.devices.iter().any(|device| device.name == name))
    };
    for link in kernel.links.iter().filter(|link| !is_ours(&link.name)) {
        if let LinkKind::Vxlan(vxlan) = link.kind
            && (ports.contains(&vxlan.port) || wanted.contains(&vxlan.port))
        {
            found.push(Finding::warning(
                "VXLAN port",
                format!("device {} uses UDP port {} as well", link.name, vxlan.port),
                "of one VNI, or of another kind, it takes our packets or keeps our device from being made: delete it, or \
                 configure another Backend.Port",
            )
            .keeping(Keeps::Some));
        }
    }
    let external = told.and_then(|told| told.interface.as_ref());
    let xdp = told.and_then(|told| told.fast_path.as_ref()).is_some_and(|fast_path| fast_path.xdp != "off");
    if let Some(external) = external {
        match kernel.links.iter().find(|link| link.index == external.index) {
            Some(link) if !link.carrier => found.push(
                Finding::error(
                    "interface",
                    format!("the external interface {} is down or has no carrier", link.name),
                    "no other node is reached: set it up, see to its cable or switch",
                )
                .keeping(Keeps::Link),
            ),
            Some(link) => {
                found.push(Finding::ok("interface", format!("{} is up, MTU {}", link.name, link.mtu)));
                let by_xdp = (link.xdp && !xdp).then(|| "an XDP program".to_owned());
                found.extend(by_xdp.iter().chain(&around.first_at_external).map(|what| {
                    Finding::warning(
                        "programs",
                        format!("{what} of {} is somebody else's", link.name),
                        format!(
                            "it sees packets between nodes, and may drop them: bpftool net show dev {0}, tc filter show dev \
                             {0} ingress (and egress), nft list ruleset",
                            link.name
                        ),
                    )
                    .keeping(Keeps::Some)
                }));
            }
            None => found.push(
                Finding::error(
                    "interface",
                    format!("the external interface {} is gone", external.name),
                    "no other node is reached: bring it back, or name another with --iface",
                )
                .keeping(Keeps::Link),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
