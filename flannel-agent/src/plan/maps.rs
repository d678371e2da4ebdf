//! The maps of one IP family: what they should hold.

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use flannel_common::layout::{Config, Exempt, PodPlace, Route, Subnet, Vtep};

use super::{
    Entry, EntryKey, Inputs, LocalStack, exempt,
    routes::{PlannedRoute, prefix_lengths},
};
use crate::values::IpFamily;

/// What the maps of one family hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps<F: IpFamily> {
    /// Map `config_v4` or `config_v6`.
    pub config: Option<Config<F>>,
    /// Map `routes_v4` or `routes_v6`: pod subnets of other nodes.
    pub routes: BTreeMap<Subnet<F>, Route<F>>,
    /// Map `vteps_v4` or `vteps_v6`: public addresses of other nodes.
    pub vteps: BTreeMap<F::Address, Vtep<F>>,
    /// Map `pods_v4` or `pods_v6`: addresses of our pods.
    pub pods: BTreeMap<F::Address, PodPlace>,
    /// Map `snat_exempt_v4` or `snat_exempt_v6`.
    pub exempt: BTreeMap<Subnet<F>, Exempt>,
}

impl<F: IpFamily> Default for Maps<F> {
    fn default() -> Self {
        Self {
            config: None,
            routes: BTreeMap::new(),
            vteps: BTreeMap::new(),
            pods: BTreeMap::new(),
            exempt: BTreeMap::new(),
        }
    }
}

impl<F: IpFamily> Maps<F> {
    /// What they should hold on the node that is `stack` in this family.
    pub(super) fn planned(inputs: &Inputs<'_>, stack: &LocalStack, routes: &[PlannedRoute]) -> Self {
        let mut maps = Self { config: config(inputs, stack, routes), ..Self::default() };
        // Collected rather than inserted: of a map that grows in order, half of each node stays empty.
        let keyed = || routes.iter().filter_map(|route| Some((F::subnet_key(route.subnet)?, route)));
        maps.routes = keyed().filter_map(|(subnet, route)| Some((subnet, value(stack, route)?))).collect();
        let sources = keyed().filter(|(_, route)| route.is_source);
        maps.vteps = sources
            .filter_map(|(subnet, route)| Some((F::address_key(route.public_ip)?, Vtep { subnet })))
            .collect();
        let exempt = exempt::prefixes(stack, inputs.leases, inputs.exemptions).into_iter();
        maps.exempt = exempt.filter_map(|(prefix, why)| Some((F::subnet_key(prefix)?, why))).collect();
        if inputs.local.fast_path.finds_pods() {
            let places = inputs.pods.places.iter();
            maps.pods =
                places.filter_map(|(address, place)| Some((F::address_key(*address)?, *place))).collect();
        }
        maps
    }

    /// Adds or replaces an entry.
    pub(crate) fn put(&mut self, entry: Entry<F>) {
        match entry {
            Entry::Config(config) => self.config = Some(config),
            Entry::Route(subnet, route) => drop(self.routes.insert(subnet, route)),
            Entry::Vtep(address, vtep) => drop(self.vteps.insert(address, vtep)),
            Entry::Pod(address, place) => drop(self.pods.insert(address, place)),
            Entry::Exempt(prefix, why) => drop(self.exempt.insert(prefix, why)),
        }
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, key: &EntryKey<F>) {
        match key {
            EntryKey::Config => self.config = None,
            EntryKey::Route(subnet) => drop(self.routes.remove(subnet)),
            EntryKey::Vtep(address) => drop(self.vteps.remove(address)),
            EntryKey::Pod(address) => drop(self.pods.remove(address)),
            EntryKey::Exempt(prefix) => drop(self.exempt.remove(prefix)),
        }
    }
}

fn config<F: IpFamily>(
    inputs: &Inputs<'_>,
    stack: &LocalStack,
    routes: &[PlannedRoute],
) -> Option<Config<F>> {
    let local = inputs.local;
    let device = stack.device.as_ref();
    let in_udp = local.backend.udp_port();
    // Stock flannel's nodes send from the port they receive at.
    let source_ports = match in_udp {
        Some(port) => port.into()..u32::from(port) + 1,
        None => local.source_ports.start.into()..local.source_ports.end.into(),
    };
    let [tcp_refresh, udp_refresh] = local.flow_refresh.millis();
    Some(Config {
        fast_path: local.fast_path,
        port: in_udp.or(device.map(|device| device.port)).map_or(0, u32::from),
        vtep: F::address_key(stack.address)?,
        network: F::subnet_key(stack.network)?,
        subnet: F::subnet_key(stack.subnet)?,
        vni: device.map_or(0, |device| device.vni),
        tcp_refresh,
        udp_refresh,
        source_port_min: source_ports.start,
        source_port_max: source_ports.end,
        overlay_ifindex: device.and(inputs.overlays.get(&F::FAMILY).copied()).unwrap_or(0),
        prefix_lengths: prefix_lengths(routes),
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        heeded: inputs.foreign.heeding.heeded,
        unknown_vtep: local.xdp.unknown_vtep,
        reserved: [0; 2],
    })
}

fn value<F: IpFamily>(stack: &LocalStack, route: &PlannedRoute) -> Option<Route<F>> {
    let device = stack.device.as_ref();
    let next_hop = match route.hop {
        Some(hop) => F::address_key(hop.address)?,
        None => F::Address::zeroed(),
    };
    Some(Route {
        kind: route.kind,
        // The device has one VNI, and every flannel sends with its own: what a peer publishes is not used.
        vni: device.map_or(0, |device| device.vni),
        vtep: F::address_key(route.public_ip)?,
        next_hop,
        ifindex: route.hop.map_or(0, |hop| hop.ifindex),
        mtu: route.hop.map_or(0, |hop| hop.mtu),
        vtep_mac: route.vtep_mac.0,
        local_mac: device.map_or([0; 6], |device| device.mac.0),
        reserved: [0; 4],
    })
}
