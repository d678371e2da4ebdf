//! What others have set up at the interfaces that packets between pods meet.

use std::collections::{BTreeMap, BTreeSet};

use flannel_common::layout::Heeded;
use tracing::warn;

use crate::{
    bpf::{self, FilterPlace},
    host::ebtables,
    netlink::{
        Chains, Changed, Link, LinkKind, Netfilter, NetlinkError, Offloads, TcDiscipline, TcSide,
        TrafficControl, tc::PRIORITY,
    },
    plan::{Foreign, ForeignHook, Heeding, HookPlace, HookedInterface, Local, Pods},
};

/// What queues may go by: any bit of a mark, and a class, whose number has an upper half. Lower ones are routing's, made of
/// the TOS byte.
const EVERYTHING: Heeded = Heeded { marks: u32::MAX, classes: 0xffff_0000 };

/// A bridge learns where a pod is from the packets with which flows are accepted anew, at least every 30 s. One that forgets
/// sooner (hundredths of a second; 30000 by default) would lose a pod on a port without flood, and one that is a hub (0) shows
/// every port every frame.
const SHORTEST_AGEING: u32 = 2 * 30 * 100;

/// Looks at queueing disciplines, filters, chains of nftables, XDP, bridges and offloads.
pub(super) struct Look {
    tc: TrafficControl,
    /// None where the kernel does not tell of offloads.
    offloads: Option<Offloads>,
    netfilter: Netfilter,
    /// The chains that were found the last time.
    chains: Chains,
    /// The tables of the legacy ebtables that had rules then.
    ebtables: BTreeSet<&'static str>,
}

impl Look {
    /// Opens the connections to the kernel.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let offloads = match Offloads::open() {
            Ok(offloads) => offloads.ok_or_else(|| "it has no CONFIG_ETHTOOL_NETLINK".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let offloads = offloads.inspect_err(|error| {
            warn!(
                %error,
                "this kernel does not tell which offloads of interfaces are off: pods behind veths without them get packets as \
                 if they were on"
            );
        });
        let chains = Chains::default();
        Ok(Self {
            tc: TrafficControl::open()?,
            offloads: offloads.ok(),
            netfilter: Netfilter::open()?,
            chains,
            ebtables: BTreeSet::new(),
        })
    }

    /// Whether rules of the legacy ebtables have come or gone since the last look, of which there is no notice.
    pub(super) fn ebtables_changed(&self) -> bool {
        ebtables::tables_with_rules() != self.ebtables
    }

    /// Waits until a chain of an interface or of bridges comes or goes, or what marks flows changes. Cancel safe.
    pub(super) async fn chains_changed(&mut self) -> Result<Changed, NetlinkError> {
        loop {
            let heard = self.netfilter.changed().await?;
            // Rules come and go in chains that are none of these, too.
            let hooks = heard.chains && self.netfilter.chains()? != self.chains;
            let changed = Changed { hooks, forwarding: heard.flow_marks, ..Changed::default() };
            if changed.any() {
                return Ok(changed);
            }
        }
    }

    /// What is there now. `links` are all interfaces; `overlays`, `pods` are those of ours, and by `exits` peers are
    /// reached.
    pub(super) fn around(
        &mut self,
        local: &Local,
        links: &[Link],
        overlays: &BTreeSet<u32>,
        pods: &Pods,
        exits: &BTreeSet<u32>,
    ) -> Result<Foreign, NetlinkError> {
        let masters: BTreeSet<u32> = links
            .iter()
            .filter(|link| pods.links.contains(&link.index))
            .filter_map(|link| link.master)
            .collect();
        let is_met = |index: u32| {
            index == local.underlay_ifindex
                || exits.contains(&index)
                || overlays.contains(&index)
                || pods.links.contains(&index)
                || masters.contains(&index)
        };
        self.chains = self.netfilter.chains()?;
        self.ebtables = ebtables::tables_with_rules();
        let of_bridges: BTreeSet<ForeignHook> = self
            .chains
            .bridges
            .iter()
            .map(|chain| format!("nftables chain {chain}"))
            .chain(self.ebtables.iter().map(|table| format!("ebtables-legacy table {table}")))
            .map(|what| ForeignHook::new(HookPlace::Bridge, what))
            .collect();
        let without = match &mut self.offloads {
            Some(offloads) => offloads.missing()?,
            None => BTreeMap::new(),
        };
        let mut found: BTreeMap<u32, HookedInterface> = links
            .iter()
            .filter(|link| is_met(link.index))
            .map(|link| {
                let is_pod = pods.links.contains(&link.index);
                let hooks = of_link(link, is_pod, link.index == local.underlay_ifindex)
                    .into_iter()
                    .chain(of_offloads(link, is_pod, without.get(&link.index)))
                    .chain(of_chains(&self.chains, &link.name))
                    .chain(of_bridges.iter().filter(|_| masters.contains(&link.index)).cloned());
                let bridge = link.master.filter(|_| is_pod);
                (link.index, HookedInterface { name: link.name.clone(), bridge, hooks: hooks.collect() })
            })
            .collect();
        let mut heeding = Heeding::default();
        for discipline in self.tc.disciplines()? {
            // Those of pods and tunnels meet packets before they leave the node.
            let is_way_out =
                !pods.links.contains(&discipline.ifindex) && !overlays.contains(&discipline.ifindex);
            if is_way_out && discipline.goes_by_marks() {
                let name = links.iter().find(|link| link.index == discipline.ifindex).map(|link| &link.name);
                let what =
                    format!("qdisc {} of {}", discipline.kind, name.map_or("an interface", |name| name));
                heeding.add(EVERYTHING, what);
            }
            let Some(interface) = found.get_mut(&discipline.ifindex) else {
                if let Some(link) = links.iter().find(|link| link.index == discipline.ifindex)
                    && is_way_out
                    && !link.leads_elsewhere()
                {
                    self.filters_of_way_out(link, &discipline, &mut heeding);
                }
                continue;
            };
            let Some(qdisc) = discipline.filters() else {
                if !discipline.is_without_effect() {
                    let what = format!("qdisc {}", discipline.kind);
                    interface.hooks.insert(ForeignHook::new(HookPlace::Egress, what));
                }
                continue;
            };
            for &side in bpf::sides(&qdisc) {
                let filters = match self.tc.filters(discipline.ifindex, side) {
                    Ok(filters) => filters,
                    // It went away meanwhile, of which there is notice.
                    Err(_) => continue,
                };
                // Links of tcx come before every filter.
                let among_ours = filters
                    .iter()
                    .any(|filter| filter.priority == PRIORITY && bpf::foreign(filter, side).is_none());
                let found =
                    filters.iter().filter_map(|filter| of_filter(filter, side)).map(|hook| {
                        match hook.place {
                            HookPlace::Ahead if !among_ours => {
                                ForeignHook { place: HookPlace::Ingress, ..hook }
                            }
                            _ => hook,
                        }
                    });
                for hook in found {
                    if is_way_out && side == TcSide::Egress {
                        heeding.add(EVERYTHING, format!("{hook} of {}", interface.name));
                    }
                    interface.hooks.insert(hook);
                }
            }
        }
        Ok(Foreign { interfaces: found, heeding, ..Foreign::default() })
    }

    /// Adds to `heeding` what filters on what `link` sends may go by: a card below a bond, another way to nodes.
    fn filters_of_way_out(&mut self, link: &Link, discipline: &TcDiscipline, heeding: &mut Heeding) {
        let Some(qdisc) = discipline.filters() else { return };
        if !bpf::sides(&qdisc).contains(&TcSide::Egress) {
            return;
        }
        // One that went away meanwhile gives notice.
        let filters = self.tc.filters(link.index, TcSide::Egress).unwrap_or_default();
        for hook in filters.iter().filter_map(|filter| of_filter(filter, TcSide::Egress)) {
            heeding.add(EVERYTHING, format!("{hook} of {}", link.name));
        }
    }
}

fn of_filter(filter: &crate::netlink::TcFilter, side: TcSide) -> Option<ForeignHook> {
    let place = match bpf::foreign(filter, side)? {
        FilterPlace::Ahead => HookPlace::Ahead,
        FilterPlace::Ingress => HookPlace::Ingress,
        FilterPlace::Egress => HookPlace::Egress,
    };
    let what = match &filter.program {
        Some(program) => format!("tc filter {} of priority {}", program.name, filter.priority),
        None => format!("tc filter of priority {}", filter.priority),
    };
    Some(ForeignHook::new(place, what))
}

fn of_link(link: &Link, is_pod: bool, is_external: bool) -> BTreeSet<ForeignHook> {
    let mut hooks = BTreeSet::new();
    // At the veth of a pod and at the external interface it comes before our programs.
    if link.xdp && !is_pod && !is_external {
        hooks.insert(ForeignHook::new(HookPlace::Ingress, "XDP"));
    }
    if let LinkKind::Vxlan(device) = link.kind {
        // The programs write an outer header as a device of flannel's own does.
        let tos = match device.tos {
            0 => None,
            1 => Some("TOS inherit".to_owned()),
            tos => Some(format!("TOS {tos:#04x}")),
        };
        let ttl = device.ttl_inherit.then(|| "TTL inherit".to_owned());
        hooks.extend(tos.into_iter().chain(ttl).map(|what| ForeignHook::new(HookPlace::Egress, what)));
    }
    if link.closed_port && is_pod {
        hooks.insert(ForeignHook::new(HookPlace::Bridge, "a bridge port that is locked or not forwarding"));
    }
    if let Some(what) = link.netkit().and_then(|netkit| netkit.particular()).filter(|_| is_pod) {
        hooks.insert(ForeignHook::new(HookPlace::Ingress, what));
    }
    if link.vlan_filtering {
        hooks.insert(ForeignHook::new(HookPlace::Bridge, "VLAN filtering"));
    }
    if let Some(time) = link.ageing_time.filter(|time| *time < SHORTEST_AGEING) {
        hooks.insert(ForeignHook::new(HookPlace::Bridge, format!("ageing_time {time}")));
    }
    hooks
}

/// What the kernel does to packets before `link` sends them, and the fast path does not: it computes checksums, and cuts
/// aggregates, for want of the offloads `missing`. The external interface does so for the packets of both.
fn of_offloads(link: &Link, is_pod: bool, missing: Option<&Vec<&str>>) -> Option<ForeignHook> {
    let passed_by = is_pod || matches!(link.kind, LinkKind::Bridge | LinkKind::Vxlan(_));
    // A VXLAN device has the limits of the card.
    let limit = link.aggregates.lowered().filter(|_| is_pod || link.kind == LinkKind::Bridge);
    let what = match missing.map(Vec::as_slice).unwrap_or_default() {
        [] => limit?,
        [one] => format!("{one} off"),
        [one, other] => format!("{one} and {other} off"),
        [first, others @ ..] => format!("{first} and {} other offloads off", others.len()),
    };
    passed_by.then(|| ForeignHook::new(HookPlace::Egress, what))
}

fn of_chains<'a>(chains: &'a Chains, name: &'a str) -> impl Iterator<Item = ForeignHook> + 'a {
    chains.devices.iter().filter(move |chain| chain.is_of(name)).map(|chain| {
        let place = if chain.egress { HookPlace::EgressChain } else { HookPlace::Ingress };
        ForeignHook::new(place, format!("nftables chain {}", chain.name))
    })
}
