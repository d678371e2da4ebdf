//! The peers, one by one, and what differs from the plan.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::Skipped;

/// A peer, in one family, as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its pod subnet.
    pub subnet: IpNetwork,
    /// The name of its node, where the store knows it.
    pub node: Option<String>,
    /// Its address on the underlay.
    pub public_ip: IpAddr,
    /// How packets get there: `direct`, or the backend: `vxlan`, `udp` and the like.
    pub way: String,
    /// MAC of its VXLAN device.
    pub mac: Option<String>,
    /// Why the programs leave its packets to the kernel.
    pub on_kernel: Option<String>,
    /// How the underlay reaches it, where that was looked up.
    pub next_hop: Option<NextHop>,
    /// Its changes that failed, with the error.
    pub pending: Vec<String>,
    /// What the last probe found.
    pub probe: Option<Probe>,
}

/// What a probe of a peer found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// When.
    pub at: u64,
    /// Round trip through the overlay, seconds; absent where no answer came.
    pub overlay_rtt_seconds: Option<f64>,
    /// Round trip to its public address, seconds; absent where no answer came, as where a firewall drops echoes.
    pub underlay_rtt_seconds: Option<f64>,
    /// The largest packet that reached it through the overlay unfragmented, bytes; absent where that was not looked for.
    pub path_mtu: Option<u32>,
    /// What is wrong on the way to it, a sentence each.
    pub found: Vec<String>,
}

/// What somebody else than the agent found of a peer: what is sent to the control socket, by subnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The peer's pod subnet.
    pub subnet: IpNetwork,
    /// What was found.
    pub probe: Probe,
}

/// How the underlay reaches an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The address on the link.
    pub address: IpAddr,
    /// Index of the interface.
    pub ifindex: u32,
    /// Largest packet, bytes.
    pub mtu: u32,
}

/// The peers, and the leases of others that are not followed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peers {
    /// By pod subnet.
    pub peers: Vec<Peer>,
    /// All of them.
    pub skipped: Vec<Skipped>,
}

/// What differs between the plan and the kernel, maps included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drift {
    /// Each with the change that would put it right.
    pub differences: Vec<Difference>,
    /// Why the kernel could not be read.
    pub error: Option<String>,
}

/// An object that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The change that would put it right.
    pub change: String,
    /// Why it was not made, if it was tried.
    pub error: Option<String>,
}
