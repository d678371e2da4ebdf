//! The pinned maps as the programs see them, with each lookup written down.

use std::{cell::RefCell, net::SocketAddr};

use flannel_common::{
    family::{V4, V6},
    layout::{
        AddressV6, Config, Flow, Hold, Permit, PodPlace, Route, RouteKind, Subnet, Translation, Tunnel, Vtep,
    },
    map::{FORWARDERS, HOLD},
    mark::Marks,
    path::{Carrier, NodeTables, Tables},
};
use nix::{
    net::if_::if_indextoname,
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

use crate::{
    bpf::{self, FamilyTables, MapFault, Pins, TrieFamily},
    values::Mac,
};

/// A lookup that a decision made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lookup {
    /// The map, as `bpftool` names it.
    pub map: &'static str,
    /// What was looked up.
    pub key: String,
    /// What was found; `None` for nothing.
    pub value: Option<String>,
}

/// The maps.
pub(super) struct PinnedTables {
    pub(super) tables: bpf::Tables,
    marks: Marks,
    /// The programs put packets into IP.
    in_ip: bool,
    /// Now, ns on the programs' clock: the same for all hooks of a packet.
    now: u64,
    lookups: RefCell<Vec<Lookup>>,
    fault: RefCell<Option<MapFault>>,
}

impl PinnedTables {
    /// Those pinned at `pins`, to be read now.
    pub(super) fn open(pins: &Pins, marks: Marks) -> Result<Self, MapFault> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(MapFault::Clock)?;
        let now = u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            tables: bpf::Tables::open(pins)?,
            marks,
            in_ip: false,
            now,
            lookups: RefCell::default(),
            fault: RefCell::default(),
        })
    }

    /// The same of a node where the programs put packets into IP, or not.
    pub(super) fn in_ip(self, in_ip: bool) -> Self {
        Self { in_ip, ..self }
    }

    /// The lookups since this was last asked.
    pub(super) fn take_lookups(&self) -> Result<Vec<Lookup>, MapFault> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(self.lookups.take()),
        }
    }

    /// Writes a lookup down. A map that cannot be read is remembered, and is like one without the entry until then.
    fn found<T>(
        &self,
        map: &'static str,
        key: impl FnOnce() -> String,
        value: Result<Option<T>, MapFault>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let value = value.unwrap_or_else(|fault| {
            self.fault.borrow_mut().get_or_insert(fault);
            None
        });
        let lookup = Lookup { map, key: key(), value: value.as_ref().map(show) };
        let mut lookups = self.lookups.borrow_mut();
        if !lookups.contains(&lookup) {
            lookups.push(lookup);
        }
        value
    }

    /// `3.2 s ago`, or `never`.
    fn ago(&self, stamp: u64) -> String {
        match stamp {
            0 => "never".to_owned(),
            stamp => format!("{:.1} s ago", self.now.saturating_sub(stamp) as f64 / 1e9),
        }
    }
}

/// The name of an interface, or its number where it is gone.
pub(super) fn interface(index: u32) -> String {
    match if_indextoname(index) {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("interface {index} (gone)"),
    }
}

impl NodeTables for PinnedTables {
    fn forwarded(&self, ifindex: u32) -> u64 {
        let value = self.tables.forwarders.get(&ifindex);
        self.found(FORWARDERS, || interface(ifindex), value, |seen| self.ago(seen.seen))
            .map_or(0, |forwarder| forwarder.seen)
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn held(&self) -> Hold {
        let show = |hold: &Hold| {
            let until = match hold.until {
                u64::MAX => "the programs act without end".to_owned(),
                until if until > self.now => {
                    format!("the programs act for {:.0} s more", (until - self.now) as f64 / 1e9)
                }
                until => format!("the programs stopped to act {}", self.ago(until)),
            };
            match hold.since {
                0 => until,
                since => format!("{until}; what was noted before {} counts no more", self.ago(since)),
            }
        };
        let value = self.tables.hold.get();
        self.found(HOLD, || "0".to_owned(), value, show).unwrap_or(Hold { until: 0, since: 0 })
    }

    fn marks(&self) -> Marks {
        self.marks
    }

    /// A constant of the programs, which no map has: what has a port, and no VXLAN device, is UDP; IP in IP shows by its
    /// device.
    fn carrier(&self) -> Carrier {
        if self.in_ip {
            return Carrier::Ipip;
        }
        let config = self.tables.v4.config.get().ok().flatten();
        match config.is_some_and(|config| config.port != 0 && config.local_mac == [0; 6]) {
            true => Carrier::Udp,
            false => Carrier::Vxlan,
        }
    }
}

fn subnet<F: TrieFamily>(subnet: &Subnet<F>) -> String {
    format!("{}/{}", F::address(subnet.network), Into::<u64>::into(subnet.prefix_len))
}

fn route<F: TrieFamily>(route: &Route<F>) -> String {
    let node = F::address(route.vtep);
    let way = if route.kind == RouteKind::Vxlan {
        format!("vxlan {}, VTEP MAC {}", route.vni, Mac(route.vtep_mac))
    } else {
        format!("{:?}", route.kind).to_lowercase()
    };
    if route.kind == RouteKind::Kernel {
        return format!("node {node}, for the kernel path only");
    }
    let (next_hop, device) = (F::address(route.next_hop), interface(route.ifindex));
    format!("node {node}, {way}, next hop {next_hop} on {device}, MTU {}", route.mtu)
}

fn pod(place: &PodPlace) -> String {
    let device = interface(place.ifindex);
    format!("behind {device}, MAC {}, gateway {}, MTU {}", Mac(place.mac), Mac(place.gateway_mac), place.mtu)
}

fn config<F: TrieFamily>(config: &Config<F>) -> String {
    let Config { fast_path, network, subnet: own, vtep, .. } = config;
    let [network, own] = [network, own].map(subnet);
    format!(
        "fast path {}, network {network}, own subnet {own}, VTEP {}",
        fast_path.label(),
        F::address(*vtep)
    )
}

fn flow<F: TrieFamily>(flow: &Flow<F>) -> String {
    let protocol = format!("{:?}", flow.protocol).to_lowercase();
    let [local, remote] = [(flow.local, flow.local_port), (flow.remote, flow.remote_port)]
        .map(|(address, port)| SocketAddr::new(F::address(address), port));
    format!("{protocol} {local} {remote}")
}

impl PinnedTables {
    fn permit(&self, permit: &Permit) -> String {
        format!(
            "netfilter accepted egress {}, ingress {}, of {}",
            self.ago(permit.egress),
            self.ago(permit.ingress),
            interface(permit.ifindex)
        )
    }

    fn tunnel_seen(&self, tunnel: &Tunnel) -> String {
        format!(
            "the kernel's own: left {}, delivered {}, otherwise {}; MTU {}, TTL {}",
            self.ago(tunnel.egress),
            self.ago(tunnel.ingress),
            self.ago(tunnel.differs),
            tunnel.mtu,
            tunnel.ttl
        )
    }

    fn config_of<F: TrieFamily>(&self, of: &FamilyTables<F>) -> Option<Config<F>> {
        let value = of.config.get().map(|found| found.filter(|found| found.source_port_max != 0));
        self.found(of.config.name(), || "0".to_owned(), value, config)
    }

    fn route_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &Subnet<F>) -> Option<Route<F>> {
        self.found(of.routes.name(), || subnet(key), of.routes.get(key), route)
    }

    fn vtep_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &F::Address) -> Option<Vtep<F>> {
        let show = |vtep: &Vtep<F>| format!("holds {}", subnet(&vtep.subnet));
        self.found(of.vteps.name(), || F::address(*key).to_string(), of.vteps.get(key), show)
    }

    fn pod_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &F::Address) -> Option<PodPlace> {
        self.found(of.pods.name(), || F::address(*key).to_string(), of.pods.get(key), pod)
    }

    fn exempt_of<F: TrieFamily>(&self, of: &FamilyTables<F>, address: F::Address) -> bool {
        let show = |exempt: &flannel_common::layout::Exempt| format!("because it is {}", exempt.sentence());
        let value = of.exempt.holding(address);
        self.found(of.exempt.name(), || F::address(address).to_string(), value, show).is_some()
    }

    fn flow_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &Flow<F>) -> Option<Permit> {
        self.found(of.flows.name(), || flow(key), of.flows.get(key), |permit| self.permit(permit))
    }

    fn translation_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &Flow<F>) -> Option<Translation<F>> {
        let value = of.translations.get(key);
        self.found(
            of.translations.name(),
            || flow(key),
            value,
            |found: &Translation<F>| {
                let other = SocketAddr::new(F::address(found.remote), found.remote_port);
                format!("the other end is {other}, by connection tracking's entry {}", found.id)
            },
        )
    }

    fn tunnel_of<F: TrieFamily>(&self, of: &FamilyTables<F>, key: &F::Address) -> Option<Tunnel> {
        let value = of.tunnels.get(key);
        self.found(
            of.tunnels.name(),
            || F::address(*key).to_string(),
            value,
            |tunnel| self.tunnel_seen(tunnel),
        )
    }
}

/// The maps of a family as the decisions ask for them.
macro_rules! tables {
    ($family:ident, $address:ty, $of:ident) => {
        impl Tables<$family> for PinnedTables {
            fn config(&self) -> Option<Config<$family>> {
                self.config_of(&self.tables.$of)
            }

            fn route(&self, subnet: Subnet<$family>) -> Option<Route<$family>> {
                self.route_of(&self.tables.$of, &subnet)
            }

            fn vtep(&self, address: $address) -> Option<Vtep<$family>> {
                self.vtep_of(&self.tables.$of, &address)
            }

            fn pod(&self, address: $address) -> Option<PodPlace> {
                self.pod_of(&self.tables.$of, &address)
            }

            fn is_exempt(&self, address: $address) -> bool {
                self.exempt_of(&self.tables.$of, address)
            }

            fn flow(&self, flow: &Flow<$family>) -> Option<Permit> {
                self.flow_of(&self.tables.$of, flow)
            }

            fn translation(&self, flow: &Flow<$family>) -> Option<Translation<$family>> {
                self.translation_of(&self.tables.$of, flow)
            }

            fn tunnel(&self, vtep: $address) -> Option<Tunnel> {
                self.tunnel_of(&self.tables.$of, &vtep)
            }
        }
    };
}

tables!(V4, [u8; 4], v4);
tables!(V6, AddressV6, v6);
