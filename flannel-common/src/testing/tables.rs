//! The maps, without a kernel.

use std::collections::BTreeMap;

use crate::{
    layout::{Config, Exempt, FlowV4, Hold, PeerV4, Permit, PodV4, SubnetV4, VtepV4},
    path::{Note, Tables},
};

/// The maps' contents as the agent would have written them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables {
    /// `config`.
    pub config: Option<Config>,
    /// `routes_v4`.
    pub routes: BTreeMap<SubnetV4, PeerV4>,
    /// `vteps`.
    pub vteps: BTreeMap<[u8; 4], VtepV4>,
    /// `pods_v4`.
    pub pods: BTreeMap<[u8; 4], PodV4>,
    /// `snat_exempt_v4`.
    pub exempt: BTreeMap<SubnetV4, Exempt>,
    /// `flows_v4`.
    pub flows: BTreeMap<FlowV4, Permit>,
    /// `forwarders`: when each veth's pod was last seen to forward.
    pub forwarders: BTreeMap<u32, u64>,
    /// The time.
    pub now: u64,
    /// `hold`: no end unless given.
    pub held_until: Option<u64>,
}

impl Tables for MemoryTables {
    fn config(&self) -> Option<Config> {
        self.config
    }

    fn route_v4(&self, subnet: SubnetV4) -> Option<PeerV4> {
        self.routes.get(&subnet).copied()
    }

    fn vtep(&self, address: [u8; 4]) -> Option<VtepV4> {
        self.vteps.get(&address).copied()
    }

    fn pod_v4(&self, address: [u8; 4]) -> Option<PodV4> {
        self.pods.get(&address).copied()
    }

    fn is_exempt_v4(&self, address: [u8; 4]) -> bool {
        self.exempt.keys().any(|prefix| prefix.contains(address))
    }

    fn flow_v4(&self, flow: &FlowV4) -> Option<Permit> {
        self.flows.get(flow).copied()
    }

    fn forwarded(&self, ifindex: u32) -> u64 {
        self.forwarders.get(&ifindex).copied().unwrap_or_default()
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn held_until(&self) -> u64 {
        self.held_until.unwrap_or(Hold::FOREVER.until)
    }
}

impl MemoryTables {
    /// Writes down what a program notes.
    pub fn write_down(&mut self, note: &Note) {
        match note {
            Note::Permit(flow, permit) => {
                self.flows.insert(*flow, *permit);
            }
            Note::Forget(flow) => {
                self.flows.remove(flow);
            }
            Note::Forwards { ifindex, seen } => {
                self.forwarders.insert(*ifindex, *seen);
            }
        }
    }
}
