//! Everything there is to see: what the agent says, what the kernel holds, what the maps hold.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{Defaults, Place};
use crate::{
    bpf::Pins,
    control::{
        AskError, Client,
        snapshot::{Peers, Snapshot},
    },
    inspect::{
        Kernel, Maps,
        checks::{Finding, Surroundings, of_node},
        peers::{PeerRow, join},
    },
    netlink::Netlink,
    telemetry::visible,
    values::Family,
};

/// What one look found.
pub(super) struct Look {
    /// What the agent says of itself, or why it says nothing.
    pub(super) agent: Result<Snapshot, AskError>,
    /// What it says of peers.
    pub(super) peers: Option<Peers>,
    /// What the kernel holds.
    pub(super) kernel: Kernel,
    /// Where programs and maps are pinned.
    pins: Option<Pins>,
    /// What the maps hold; absent without programs.
    pub(super) maps: Option<Maps>,
    /// Why the maps cannot be read.
    pub(super) without_maps: Option<String>,
}

impl Look {
    /// Looks. `with_peers` asks the agent for each of them, too.
    pub(super) async fn at(place: &Place, defaults: &Defaults, with_peers: bool) -> anyhow::Result<Self> {
        let agent = place.client(defaults).snapshot().await;
        Self::with(agent, place, defaults, with_peers).await
    }

    /// Looks, after the agent was asked.
    pub(super) async fn with(
        agent: Result<Snapshot, AskError>,
        place: &Place,
        defaults: &Defaults,
        with_peers: bool,
    ) -> anyhow::Result<Self> {
        let client: Client = place.client(defaults);
        let peers = match (&agent, with_peers) {
            (Ok(_), true) => client.peers().await.ok(),
            _ => None,
        };
        let backend = agent.as_ref().ok().and_then(|snapshot| snapshot.backend.as_ref());
        let devices: BTreeSet<String> = backend
            .map(|backend| backend.devices.iter().map(|device| device.name.clone()).collect())
            .unwrap_or_default();
        let kernel = Kernel::read(&mut Netlink::open()?, &devices).await?;
        let told = agent.as_ref().ok().map(|snapshot| snapshot.agent.bpffs.clone());
        let (pins, without_pins) = match Pins::under(&place.bpffs(told, defaults)) {
            Ok(pins) => (Some(pins), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (maps, without_maps) = match pins.as_ref().map(Maps::read) {
            Some(Ok(maps)) => (maps, None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, without_pins),
        };
        Ok(Self { agent, peers, kernel, pins, maps, without_maps })
    }

    /// A row for each peer.
    pub(super) fn rows(&self) -> Vec<PeerRow> {
        let told = self.agent.as_ref().ok().and_then(|told| told.backend.as_ref());
        join(self.peers.as_ref(), told, &self.kernel, self.maps.as_ref())
    }

    /// Seconds since something is known to have come from each peer, read anew, by its subnet.
    pub(super) fn heard_now(&self) -> BTreeMap<IpNetwork, u64> {
        let Some(Ok(Some(maps))) = self.pins.as_ref().map(Maps::read) else { return BTreeMap::new() };
        let told = self.agent.as_ref().ok().and_then(|told| told.backend.as_ref());
        let rows = join(self.peers.as_ref(), told, &self.kernel, Some(&maps));
        rows.into_iter().filter_map(|row| Some((row.subnet, row.heard_seconds_ago?))).collect()
    }

    /// What of the node may be in the way of packets.
    pub(super) async fn surroundings(&self) -> anyhow::Result<Surroundings> {
        let lease = self.agent.as_ref().ok().and_then(|told| told.lease.as_ref());
        let subnets = lease.map(|lease| lease.subnets.clone()).filter(|subnets| !subnets.is_empty());
        let of_maps = || self.maps.as_ref().map(|maps| maps.subnets.clone());
        let subnets = subnets.or_else(of_maps).unwrap_or_default();
        let external = self.agent.as_ref().ok().and_then(|told| told.interface.as_ref());
        let external = external.map(|interface| interface.index);
        let families = self.families();
        Ok(Surroundings::read(&mut Netlink::open()?, &self.kernel, &families, &subnets, external).await?)
    }

    /// What was found of the node.
    pub(super) fn of_node(&self, around: &Surroundings) -> Vec<Finding> {
        let told = self.agent.as_ref().ok();
        of_node(told, &self.kernel, self.maps.as_ref(), self.without_maps.as_deref(), around)
    }

    /// The families of the cluster, as far as they can be known.
    fn families(&self) -> Vec<Family> {
        let lease = self.agent.as_ref().ok().and_then(|told| told.lease.as_ref());
        let networks = lease.map(|lease| lease.networks.as_slice()).unwrap_or_default();
        let known = Family::BOTH.into_iter().filter(|family| {
            networks.iter().any(|network| Family::of_network(*network) == *family)
                || self.kernel.tunnels.contains_key(family)
                || self.maps.as_ref().is_some_and(|maps| maps.configured.contains(family))
        });
        let known: Vec<Family> = known.collect();
        if known.is_empty() { vec![Family::V4] } else { known }
    }

    /// Why there is nothing of the agent, in a line.
    pub(super) fn without_agent(&self) -> Option<String> {
        self.agent.as_ref().err().map(|error| visible(&error))
    }
}
