//! What would happen to an imagined packet: the programs' decisions by their very code over the pinned maps, and
//! what the kernel's own tables say in between.
//!
//! [`explain`] walks the packet from hook to hook as the kernel would ([`walk`], [`outgoing`], [`incoming`]). Nothing is
//! sent, loaded or changed, and no agent needs to run. Of netfilter the rules of flannel are shown, and the packet is led
//! through all chains that may drop it ([`filtered`]); it is followed up to a rule of others that may translate it.

mod answer;
mod bridge;
mod cut_off;
mod filtered;
mod incoming;
mod ipsec;
mod joined;
mod met;
mod node;
mod outgoing;
mod packet;
mod tables;
mod walk;

use std::{collections::BTreeMap, net::IpAddr};

use flannel_common::mark::Marks;

pub use answer::{Answer, At, Outcome, Step};
pub use packet::{Imagined, Impossible};
pub use tables::Lookup;

use crate::{
    bpf::{HookError, MapFault, Pins},
    inspect::checks::Filters,
    masq::RuleOptions,
    netlink::NetlinkError,
    values::Family,
};
use walk::Walk;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The packet.
    pub packet: Imagined,
    /// It arrives from another node, wherever its source is.
    pub arrives: bool,
    /// The node that sends it in VXLAN, by its public address; none for the one whose lease holds its source.
    pub from_node: Option<IpAddr>,
}

/// A question that has no answer here.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The packet cannot be.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// The maps cannot be read.
    #[error("{0}; the maps are there while an agent runs with --fast-path other than off, and under --bpffs")]
    Maps(#[from] MapFault),
    /// It is not known where the programs are.
    #[error(transparent)]
    Hooks(#[from] HookError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The cluster has no such family.
    #[error("this node has no {0} network of flannel: its agent has not configured the programs for it")]
    NotConfigured(Family),
    /// Nothing of the packet is of this node.
    #[error(
        "neither {0} nor {1} is an address of this node or in its pod subnet: ask on the node of one of them, or add \
         --ingress"
    )]
    Elsewhere(IpAddr, IpAddr),
    /// Nobody would send it.
    #[error("{0} is in this node's pod subnet, and no pod here has it: see `ip -br address` in the pod")]
    NoPod(IpAddr),
    /// Where it would come in is not known.
    #[error(
        "no program is attached to an external interface, and no lease holds {0}: nothing tells where it would arrive"
    )]
    NoUnderlay(IpAddr),
}

/// What a running agent tells, nothing where none runs, and what the programs of netfilter tell.
#[derive(Debug, Default)]
pub struct Told {
    /// What it keeps rules by.
    pub rules: Vec<RuleOptions>,
    /// For the sake of what it leaves an interface's packets to the kernel path, by the interface's name.
    pub hooks: BTreeMap<String, String>,
    /// What drops packets on the kernel path; `None` where that is not to be looked at.
    pub filters: Option<Filters>,
}

/// What becomes of a packet on this node. `marks` are the bits that the running programs use, `told` what the agent tells.
///
/// # Errors
/// When it cannot be told.
pub async fn explain(
    pins: &Pins,
    marks: Marks,
    told: Told,
    question: &Question,
) -> Result<Answer, ExplainError> {
    let Question { packet, arrives, from_node } = *question;
    packet.check()?;
    let mut walk = Walk::begin(pins, marks, told, Family::of(packet.source)).await?;
    let outcome = if arrives || from_node.is_some() {
        walk.arrives(packet, from_node).await?
    } else if walk.own.contains(&packet.source) {
        walk.leaves_the_node(packet).await?
    } else if let Some(place) = walk.place(packet.source).await? {
        walk.leaves_a_pod(packet, place).await?
    } else if walk.node.subnet.contains(packet.source) {
        walk.leaves_a_station(packet).await?
    } else if walk.node.subnet.contains(packet.destination) || walk.own.contains(&packet.destination) {
        walk.arrives(packet, None).await?
    } else {
        return Err(ExplainError::Elsewhere(packet.source, packet.destination));
    };
    if let Outcome::Leaves { interface, .. } = &outcome {
        walk.seen_as_it_leaves(interface)?;
    }
    Ok(Answer { packet, steps: walk.steps, outcome, perhaps: walk.perhaps })
}
