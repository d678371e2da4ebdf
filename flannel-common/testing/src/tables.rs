//! The maps, without a kernel.

use std::collections::BTreeMap;

use flannel_common::{
    family::{Family, V4, V6},
    layout::{
        AddressV6, Config, Exempt, Flow, Hold, Permit, PodPlace, Route, RouteKind, SubnetV4, SubnetV6,
        Translation, Tunnel, Vtep,
    },
    mark::Marks,
    path::{Carrier, NodeTables, Note, Tables},
};

/// The maps' contents as the agent would have written them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables {
    /// `config_v4`.
    pub config: Option<Config<V4>>,
    /// `routes_v4`.
    pub routes: BTreeMap<SubnetV4, Route<V4>>,
    /// `vteps_v4`.
    pub vteps: BTreeMap<[u8; 4], Vtep<V4>>,
    /// `pods_v4`.
    pub pods: BTreeMap<[u8; 4], PodPlace>,
    /// `snat_exempt_v4`.
    pub exempt: BTreeMap<SubnetV4, Exempt>,
    /// `flows_v4`.
    pub flows: BTreeMap<Flow<V4>, Permit>,
    /// `translations_v4`.
    pub translations: BTreeMap<Flow<V4>, Translation<V4>>,
    /// `tunnels_v4`.
    pub tunnels: BTreeMap<[u8; 4], Tunnel>,
    /// `forwarders`: when each veth's pod was last seen to forward.
    pub forwarders: BTreeMap<u32, u64>,
    /// Those for IPv6.
    pub v6: MemoryTablesV6,
    /// The time.
    pub now: u64,
    /// `hold`: no end unless given.
    pub held_until: Option<u64>,
    /// `hold`: what was noted up to then counts no more.
    pub since: u64,
    /// The bits of marks: the default ones unless given.
    pub marks: Marks,
    /// What carries packets: VXLAN unless given.
    pub carrier: Carrier,
}

/// The contents of the maps with `_v6` in their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTablesV6 {
    /// `config_v6`.
    pub config: Option<Config<V6>>,
    /// `routes_v6`.
    pub routes: BTreeMap<SubnetV6, Route<V6>>,
    /// `vteps_v6`.
    pub vteps: BTreeMap<AddressV6, Vtep<V6>>,
    /// `pods_v6`.
    pub pods: BTreeMap<AddressV6, PodPlace>,
    /// `snat_exempt_v6`.
    pub exempt: BTreeMap<SubnetV6, Exempt>,
    /// `flows_v6`.
    pub flows: BTreeMap<Flow<V6>, Permit>,
    /// `translations_v6`.
    pub translations: BTreeMap<Flow<V6>, Translation<V6>>,
    /// `tunnels_v6`.
    pub tunnels: BTreeMap<AddressV6, Tunnel>,
}

impl NodeTables for MemoryTables {
    fn forwarded(&self, ifindex: u32) -> u64 {
        self.forwarders.get(&ifindex).copied().unwrap_or_default()
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn held(&self) -> Hold {
        Hold { until: self.held_until.unwrap_or(Hold::FOREVER.until), since: self.since }
    }

    fn marks(&self) -> Marks {
        self.marks
    }

    fn carrier(&self) -> Carrier {
        self.carrier
    }
}

impl Tables<V4> for MemoryTables {
    fn config(&self) -> Option<Config<V4>> {
        self.config
    }

    fn route(&self, subnet: SubnetV4) -> Option<Route<V4>> {
        self.routes.get(&subnet).copied()
    }

    fn vtep(&self, address: [u8; 4]) -> Option<Vtep<V4>> {
        self.vteps.get(&address).copied()
    }

    fn pod(&self, address: [u8; 4]) -> Option<PodPlace> {
        self.pods.get(&address).copied()
    }

    fn is_exempt(&self, address: [u8; 4]) -> bool {
        self.exempt.keys().any(|prefix| prefix.contains(address))
    }

    fn flow(&self, flow: &Flow<V4>) -> Option<Permit> {
        self.flows.get(flow).copied()
    }

    fn translation(&self, flow: &Flow<V4>) -> Option<Translation<V4>> {
        self.translations.get(flow).copied()
    }

    fn tunnel(&self, vtep: [u8; 4]) -> Option<Tunnel> {
        self.tunnels.get(&vtep).copied()
    }
}

impl Tables<V6> for MemoryTables {
    fn config(&self) -> Option<Config<V6>> {
        self.v6.config
    }

    fn route(&self, subnet: SubnetV6) -> Option<Route<V6>> {
        self.v6.routes.get(&subnet).copied()
    }

    fn vtep(&self, address: AddressV6) -> Option<Vtep<V6>> {
        self.v6.vteps.get(&address).copied()
    }

    fn pod(&self, address: AddressV6) -> Option<PodPlace> {
        self.v6.pods.get(&address).copied()
    }

    fn is_exempt(&self, address: AddressV6) -> bool {
        self.v6.exempt.keys().any(|prefix| prefix.contains(address))
    }

    fn flow(&self, flow: &Flow<V6>) -> Option<Permit> {
        self.v6.flows.get(flow).copied()
    }

    fn translation(&self, flow: &Flow<V6>) -> Option<Translation<V6>> {
        self.v6.translations.get(flow).copied()
    }

    fn tunnel(&self, vtep: AddressV6) -> Option<Tunnel> {
        self.v6.tunnels.get(&vtep).copied()
    }
}

impl MemoryTables {
    /// Those of the same nodes with the ipip backend, which carries IPv4 only.
    pub fn of_ipip(mut self) -> Self {
        self.carrier = Carrier::Ipip;
        self.v6 = MemoryTablesV6::default();
        if let Some(config) = &mut self.config {
            (config.port, config.vni, config.local_mac, config.overlay_ifindex) = (0, 0, [0; 6], 0);
        }
        for route in self.routes.values_mut() {
            (route.vni, route.vtep_mac, route.local_mac) = (0, [0; 6], [0; 6]);
            if route.kind == RouteKind::Vxlan {
                route.kind = RouteKind::Ipip;
            }
        }
        self
    }

    /// Writes down what a program notes.
    pub fn write_down(&mut self, note: &Note<V4>) {
        match note {
            Note::Forwards { ifindex, seen } => {
                self.forwarders.insert(*ifindex, *seen);
            }
            Note::Moved(address) => {
                self.pods.remove(address);
            }
            note => write_down(&mut self.flows, &mut self.translations, note),
        }
    }

    /// Writes down what a program notes about an IPv6 packet.
    pub fn write_down_v6(&mut self, note: &Note<V6>) {
        match note {
            Note::Forwards { ifindex, seen } => {
                self.forwarders.insert(*ifindex, *seen);
            }
            Note::Moved(address) => {
                self.v6.pods.remove(address);
            }
            note => write_down(&mut self.v6.flows, &mut self.v6.translations, note),
        }
    }
}

fn write_down<F: Family>(
    flows: &mut BTreeMap<Flow<F>, Permit>,
    translations: &mut BTreeMap<Flow<F>, Translation<F>>,
    note: &Note<F>,
) {
    match note {
        Note::Permit(flow, permit) | Note::Candidate(flow, permit) | Note::Ask(flow, permit) => {
            flows.insert(*flow, *permit);
        }
        Note::Forget(flow) | Note::BrokenOff(flow) | Note::Changed(flow) => {
            flows.remove(flow);
        }
        Note::Untranslate(flow) => {
            flows.remove(flow);
            translations.remove(flow);
        }
        // Not of a flow.
        Note::Forwards { .. } | Note::Moved(_) => {}
    }
}
