//! What the pinned maps hold, which outlives the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use flannel_common::{
    family::Address as _,
    layout::{RouteKind, Subnet},
    path::Hook,
};
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};

use crate::{
    bpf::{FamilyTables, MapFill, Pins, Tables, TrieFamily, fill},
    values::{Family, Mac},
};

/// What the maps hold.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// Families for which the programs are set up.
    pub configured: BTreeSet<Family>,
    /// Our pod subnets, as the programs know them.
    pub subnets: Vec<IpNetwork>,
    /// The networks that these are cut from.
    pub networks: Vec<IpNetwork>,
    /// How the programs reach the pods of others.
    pub routes: BTreeMap<IpNetwork, MapRoute>,
    /// Public addresses from which packets through the tunnel are taken.
    pub vteps: BTreeMap<IpAddr, IpNetwork>,
    /// How long ago the kernel's own packet was seen to come from a peer, by its public address.
    pub heard: BTreeMap<IpAddr, Duration>,
    /// Flows that may skip the stack, by the pod subnet at the other end.
    pub flows: BTreeMap<IpNetwork, usize>,
    /// How long ago netfilter accepted a packet from there that belongs to one of these; it is asked again and again.
    pub accepted: BTreeMap<IpNetwork, Duration>,
    /// How full the maps are.
    pub fill: Vec<MapFill>,
    /// The programs whose links are pinned: interface and hook. None where they are attached by filters.
    pub pinned: Vec<(String, Hook)>,
    /// How long the programs go on without an agent; `None` for ever, zero where that is over.
    pub hold: Option<Duration>,
}

/// How the programs reach a pod subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoute {
    /// How.
    pub kind: RouteKind,
    /// Public address of the node.
    pub public_ip: IpAddr,
    /// MAC of its VXLAN device.
    pub mac: Mac,
    /// Interface of the underlay.
    pub ifindex: u32,
    /// Where on the link of that the packets are sent.
    pub next_hop: IpAddr,
    /// Largest outer packet, bytes.
    pub mtu: u32,
}

impl Maps {
    /// Reads the maps pinned at `pins`; `None` where there are none.
    ///
    /// # Errors
    /// In a sentence, where they cannot be read.
    pub fn read(pins: &Pins) -> Result<Option<Self>, String> {
        match pins.maps().try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                let advice = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => "; run this as root",
                    _ => "",
                };
                return Err(format!("{}: {error}{advice}", pins.maps().display()));
            }
        }
        let tables = Tables::open(pins).map_err(|error| error.to_string())?;
        let fill = fill(pins, &tables).map_err(|error| error.to_string())?;
        let mut maps = Self { fill, ..Self::default() };
        let now =
            clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|error| format!("monotonic clock: {error}"))?;
        let now = Duration::from(now);
        maps.take(&tables.v4, now).map_err(|error| error.to_string())?;
        maps.take(&tables.v6, now).map_err(|error| error.to_string())?;
        maps.pinned = pins.pinned_links().map_err(|error| error.to_string())?;
        let hold = tables.hold.get().map_err(|error| error.to_string())?;
        maps.hold = hold
            .filter(|hold| hold.until != u64::MAX)
            .map(|hold| Duration::from_nanos(hold.until).saturating_sub(now));
        Ok(Some(maps))
    }

    fn take<F: TrieFamily>(
        &mut self,
        tables: &FamilyTables<F>,
        now: Duration,
    ) -> Result<(), crate::bpf::MapFault> {
        if let Some(config) = tables.config.get()? {
            self.configured.insert(F::FAMILY);
            self.subnets.extend(network::<F>(config.subnet));
            self.networks.extend(network::<F>(config.network));
        }
        for (subnet, route) in tables.routes.entries()? {
            let Some(subnet) = network::<F>(subnet) else { continue };
            let route = MapRoute {
                kind: route.kind,
                public_ip: F::address(route.vtep),
                mac: Mac(route.vtep_mac),
                ifindex: route.ifindex,
                next_hop: F::address(route.next_hop),
                mtu: route.mtu,
            };
            self.routes.insert(subnet, route);
        }
        for (address, vtep) in tables.vteps.entries()? {
            if let Some(subnet) = network::<F>(vtep.subnet) {
                self.vteps.insert(F::address(address), subnet);
            }
        }
        for (address, tunnel) in tables.tunnels.entries()? {
            if tunnel.ingress > 0 {
                let ago = now.saturating_sub(Duration::from_nanos(tunnel.ingress));
                self.heard.insert(F::address(address), ago);
            }
        }
        let mut by_remote = BTreeMap::<F::Address, (usize, u64)>::new();
        for (flow, permit) in tables.flows.entries()? {
            let (flows, last) = by_remote.entry(flow.remote).or_default();
            *flows += 1;
            *last = permit.ingress.max(*last);
        }
        let lengths: BTreeSet<u8> = self
            .routes
            .keys()
            .filter(|subnet| Family::of_network(**subnet) == F::FAMILY)
            .map(IpNetwork::prefix)
            .collect();
        for (remote, (flows, last)) in by_remote {
            let holder = lengths.iter().rev().find_map(|length| {
                let base = F::address(remote.masked(u64::from(*length)));
                IpNetwork::new(base, *length).ok().filter(|subnet| self.routes.contains_key(subnet))
            });
            if let Some(subnet) = holder {
                *self.flows.entry(subnet).or_default() += flows;
                if last > 0 {
                    let ago = now.saturating_sub(Duration::from_nanos(last));
                    let accepted = self.accepted.entry(subnet).or_insert(ago);
                    *accepted = ago.min(*accepted);
                }
            }
        }
        Ok(())
    }
}

fn network<F: TrieFamily>(subnet: Subnet<F>) -> Option<IpNetwork> {
    let length: u64 = subnet.prefix_len.into();
    IpNetwork::new(F::address(subnet.network), u8::try_from(length).ok()?).ok()
}
