//! Everything there is to see: what the agent says, what the kernel holds, what the maps hold.

use std::collections::BTreeSet;

use super::{Defaults, Place};
use crate::{
    bpf::Pins,
    control::{
        AskError, Client,
        snapshot::{Peers, Snapshot},
    },
    inspect::{
        Kernel, Maps,
        peers::{PeerRow, join},
    },
    netlink::Netlink,
    telemetry::visible,
};

/// What one look found.
pub(super) struct Look {
    /// What the agent says of itself, or why it says nothing.
    pub(super) agent: Result<Snapshot, AskError>,
    /// What it says of peers.
    pub(super) peers: Option<Peers>,
    /// What the kernel holds.
    pub(super) kernel: Kernel,
    /// What the maps hold; absent without programs.
    pub(super) maps: Option<Maps>,
    /// Why the maps cannot be read.
    pub(super) without_maps: Option<String>,
}

impl Look {
    /// Looks. `with_peers` asks the agent for each of them, too.
    pub(super) async fn at(place: &Place, defaults: &Defaults, with_peers: bool) -> anyhow::Result<Self> {
        let client: Client = place.client(defaults);
        let agent = client.snapshot().await;
        let peers = match (&agent, with_peers) {
            (Ok(_), true) => client.peers().await.ok(),
            _ => None,
        };
        let backend = agent.as_ref().ok().and_then(|snapshot| snapshot.backend.as_ref());
        let devices: BTreeSet<String> = backend
            .map(|backend| backend.devices.iter().map(|device| device.name.clone()).collect())
            .unwrap_or_default();
        let kernel = Kernel::read(&mut Netlink::open()?, &devices).await?;
        let told = agent.as_ref().ok().map(|snapshot| snapshot.agent.bpffs.as_path());
        let bpffs = place.bpffs(told.filter(|path| !path.as_os_str().is_empty()), defaults);
        let (maps, without_maps) = match Pins::under(bpffs).map(|pins| Maps::read(&pins)) {
            Ok(Ok(maps)) => (maps, None),
            Ok(Err(why)) => (None, Some(why)),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Self { agent, peers, kernel, maps, without_maps })
    }

    /// A row for each peer.
    pub(super) fn rows(&self) -> Vec<PeerRow> {
        let told = self.agent.as_ref().ok().and_then(|told| told.backend.as_ref());
        join(self.peers.as_ref(), told, &self.kernel, self.maps.as_ref())
    }

    /// Why there is nothing of the agent, in a line.
    pub(super) fn without_agent(&self) -> Option<String> {
        self.agent.as_ref().err().map(|error| visible(&error))
    }
}
