//! What is said of an imagined packet.

use std::fmt;

use flannel_common::{
    family::Family,
    path::{Hook, Move, Verdict},
    reason::{Direction, Reason},
};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{Imagined, Lookup};

/// The way of a packet, as far as this node knows it.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The packet.
    pub packet: Imagined,
    /// Each step, in order.
    pub steps: Vec<Step>,
    /// Where it goes.
    pub outcome: Outcome,
    /// What may drop it before that, by a condition that cannot be judged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub perhaps: Vec<String>,
}

impl Answer {
    /// What the programs count for the packet, in order, but for what they note about flows and tunnels.
    pub fn counted(&self) -> Vec<(Direction, Reason)> {
        self.steps.iter().filter_map(Step::counted).collect()
    }
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Who decides.
    pub at: At,
    /// Interface at which that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What is decided.
    pub what: String,
    /// What a program counts it for.
    #[serde(serialize_with = "label", skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What a program looked up for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lookups: Vec<Lookup>,
}

impl Step {
    /// One of the kernel's.
    pub(super) const fn of_kernel(at: At, interface: Option<String>, what: String) -> Self {
        Self { at, interface, what, reason: None, lookups: Vec::new() }
    }

    fn counted(&self) -> Option<(Direction, Reason)> {
        let At::Hook(hook) = self.at else { return None };
        Some((hook.direction(), self.reason?))
    }
}

fn label<S: Serializer>(reason: &Option<Reason>, serializer: S) -> Result<S::Ok, S::Error> {
    reason.map(Reason::label).serialize(serializer)
}

/// Who decides at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// One of our programs.
    Hook(Hook),
    /// A bridge: the packet stays on its link.
    Bridge,
    /// The kernel's routing.
    Route,
    /// The kernel's IPsec policies.
    Ipsec,
    /// Our rules in netfilter.
    Rules,
    /// Chains of netfilter that drop packets, whoever has made them.
    Netfilter,
    /// The kernel's neighbour table.
    Neighbour,
    /// The forwarding table of a VXLAN device.
    Fdb,
    /// A VXLAN device.
    Device,
    /// The device of IP in IP: the ipip backend's.
    Ipip,
    /// The device that the agent serves, and the agent: the udp backend's.
    Tun,
}

impl At {
    /// Name of the program, or of the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hook(hook) => hook.program(),
            Self::Bridge => "bridge",
            Self::Route => "route",
            Self::Ipsec => "ipsec",
            Self::Rules => "rules",
            Self::Netfilter => "netfilter",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Device => "vxlan device",
            Self::Ipip => "ipip device",
            Self::Tun => "udp device",
        }
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.label().serialize(serializer)
    }
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Out of an interface, to a node or a router.
    Leaves {
        /// The interface.
        interface: String,
        /// To whom.
        to: String,
        /// Past the host's stack.
        fast: bool,
    },
    /// To a local pod, behind this interface.
    Pod {
        /// Host side of its veth.
        interface: String,
        /// Past the host's stack.
        fast: bool,
    },
    /// To all pods on this bridge, and to the node.
    Flooded {
        /// The bridge.
        interface: String,
        /// It comes from an isolated port, so other isolated ports do not get it.
        isolated: bool,
    },
    /// To this node itself.
    Node,
    /// Nowhere.
    Dropped {
        /// By whom, and why.
        by: String,
    },
    /// It cannot be told.
    Unknown {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |fast| if fast { "past the host's stack" } else { "by the kernel path" };
        match self {
            Self::Leaves { interface, to, fast } => {
                write!(f, "leaves by {interface} for {to}, {}", way(*fast))
            }
            Self::Pod { interface, fast } => {
                write!(f, "reaches the pod behind {interface}, {}", way(*fast))
            }
            Self::Flooded { interface, isolated: false } => {
                write!(f, "reaches all pods on {interface}, {}", way(false))
            }
            Self::Flooded { interface, isolated: true } => {
                write!(f, "reaches the pods on {interface} whose ports are not isolated, {}", way(false))
            }
            Self::Node => f.write_str("is for this node itself"),
            Self::Dropped { by } => write!(f, "is dropped: {by}"),
            Self::Unknown { why } => write!(f, "cannot be followed further: {why}"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, interface, fast) = match self {
            Self::Leaves { interface, fast, .. } => ("leaves", Some(interface), Some(*fast)),
            Self::Pod { interface, fast } => ("pod", Some(interface), Some(*fast)),
            Self::Flooded { interface, .. } => ("flooded", Some(interface), Some(false)),
            Self::Node => ("node", None, None),
            Self::Dropped { .. } => ("dropped", None, None),
            Self::Unknown { .. } => ("unknown", None, None),
        };
        let mut outcome = serializer.serialize_struct("Outcome", 4)?;
        outcome.serialize_field("kind", kind)?;
        outcome.serialize_field("interface", &interface)?;
        outcome.serialize_field("fast", &fast)?;
        outcome.serialize_field("text", &self.to_string())?;
        outcome.end()
    }
}

/// What a verdict does, in a few words.
pub(super) fn does(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "lets it pass, uncounted",
        Verdict::Kernel(_) => "leaves it to the kernel path",
        Verdict::Exempt(_) => "leaves it to the kernel path, marked as exempt from masquerading",
        Verdict::Checked(_) => "leaves it to the tunnel's device, marked as checked",
        Verdict::LeaveDecapsulated(..) => "decapsulates it and leaves it to the kernel path",
        Verdict::V4(how, _) => moves(how),
        Verdict::V6(how, _) => moves(how),
        Verdict::Switch(..) => "hands it to the pod",
        Verdict::DecapsulateEarly(..) => "decapsulates it early",
        Verdict::Seen(_) => "counts it and lets it pass",
        Verdict::Drop(_) => "drops it",
    }
}

const fn moves<F: Family>(how: &Move<F>) -> &'static str {
    match how {
        Move::Encapsulate(_) => "encapsulates and redirects it",
        Move::HandOver(_) => "hands it to the tunnel's device",
        Move::SendDirect(_) => "redirects it as it is",
        Move::Decapsulate(_) => "decapsulates it and hands it to the pod",
        Move::Deliver(_) => "hands it to the pod",
    }
}
