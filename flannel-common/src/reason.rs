//! The one table of why a packet took the path it took.
//!
//! Counters, metrics, the CLI and the documentation are all made from it. A number is never reused:
//! add at the end, and raise nothing else.

/// Which way a packet travels, seen from a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Direction {
    /// From this node to others.
    Egress = 0,
    /// From other nodes to this one.
    Ingress = 1,
}

impl Direction {
    /// Both, in the order of their slots.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `egress` or `ingress`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A program moved it: it skipped what the fast path skips.
    Fast,
    /// It was left to the kernel, every byte as it was.
    Kernel,
    /// A program dropped it, because the operator asked for that, or because nobody but an attacker sends it.
    Drop,
    /// Not a path: what was noted about a flow while a packet of it went by, which is counted for its path
    /// as well.
    Note,
}

impl Class {
    /// `fast`, `kernel`, `drop` or `note`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::Drop => "drop",
            Self::Note => "note",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $number:literal, $class:ident, $label:literal, $sentence:literal;)+) => {
        /// Why a packet took the path it took.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $(#[doc = $sentence] $variant = $number,)+
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name in counters, metrics and tables: `snake_case`, stable.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)+ }
            }

            /// What became of the packet.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }
        }
    };
}

reasons! {
    EncapPod = 0, Fast, "encap_pod", "a pod's packet was encapsulated in VXLAN and sent to the other node, past the host's stack";
    EncapOverlay = 1, Fast, "encap_overlay", "a packet that the kernel routed into the overlay was encapsulated in place of the VXLAN device";
    DeliverPod = 2, Fast, "deliver_pod", "another node's packet was decapsulated and handed to the pod, past the host's stack";
    NoConfig = 3, Kernel, "no_config", "the agent has not configured the programs";
    NotIp = 4, Kernel, "not_ip", "the frame carries no packet of a family that the cluster's network has (ARP, ...)";
    Vlan = 5, Kernel, "vlan", "the frame carries a VLAN tag";
    NotUnicast = 6, Kernel, "not_unicast", "the destination MAC is a group address";
    Truncated = 7, Kernel, "truncated", "the frame is shorter than its headers say";
    Length = 8, Kernel, "length", "the frame's length differs from the one in its IP header";
    IpOptions = 9, Kernel, "ip_options", "the IP header has options, or extension headers";
    Fragment = 10, Kernel, "fragment", "the packet is a fragment";
    Ttl = 11, Kernel, "ttl", "the TTL ends here: the kernel answers with ICMP time exceeded";
    TooBig = 12, Kernel, "too_big", "one segment and its VXLAN header exceed the underlay's MTU: the kernel fragments it or answers with ICMP";
    NoRoute = 13, Kernel, "no_route", "the destination is in no other node's pod subnet";
    PeerOnKernel = 14, Kernel, "peer_on_kernel", "the route to this node is for the kernel path only";
    NeighbourDiffers = 15, Kernel, "neighbour_differs", "the kernel chose another next hop in the overlay than the lease names";
    Spoofed = 16, Kernel, "spoofed", "the source address belongs to a pod behind another veth";
    NotVxlan = 17, Kernel, "not_vxlan", "not a VXLAN packet for this node's MAC, address and port";
    HeaderChecksum = 18, Kernel, "header_checksum", "the checksum of an IP header is wrong";
    VxlanFlags = 19, Kernel, "vxlan_flags", "VXLAN flags or reserved bits other than a VNI are set";
    Vni = 20, Kernel, "vni", "the VXLAN network identifier is not ours";
    UnknownVtep = 21, Kernel, "unknown_vtep", "no lease names the sender's address";
    InnerSource = 22, Kernel, "inner_source", "the inner source is neither in the sender's pod subnet nor the sender itself";
    InnerMac = 23, Kernel, "inner_mac", "the inner destination MAC is not that of our VXLAN device";
    NotOurPod = 24, Kernel, "not_our_pod", "the inner destination is not in this node's pod subnet";
    UnknownPod = 25, Kernel, "unknown_pod", "the pod's address is in no entry of the pods map (yet)";
    PodGone = 26, Kernel, "pod_gone", "the veth of the pod is gone";
    Ecn = 27, Kernel, "ecn", "the outer header says congestion, the inner one does not take part: the kernel drops it (RFC 6040)";
    Refused = 28, Kernel, "refused", "the kernel refused to change the packet's headers (nested tunnel, no memory, unsupported GSO)";
    UdpAggregate = 29, Kernel, "udp_aggregate", "an aggregate of UDP datagrams: a socket that takes them one by one needs it without the tunnel's GSO flags, which only the VXLAN device clears";
    PodOnKernel = 30, Kernel, "pod_on_kernel", "pods' packets go through the host's stack on this node (--fast-path=overlay)";
    SnatExempt = 31, Kernel, "snat_exempt", "left to the host's stack with the mark that keeps it from being masqueraded";
    FlowUnknown = 32, Kernel, "flow_unknown", "netfilter is not known to have accepted this flow of this pod (yet)";
    FlowHalf = 33, Kernel, "flow_half", "netfilter has accepted this flow in one direction only so far";
    FlowStale = 34, Kernel, "flow_stale", "netfilter has accepted this flow, but not lately: this packet asks it again";
    FlowControl = 35, Kernel, "flow_control", "TCP SYN, FIN or RST, which connection tracking must see";
    FlowProtocol = 36, Kernel, "flow_protocol", "neither TCP nor UDP: only their flows are learned";
    FlowLearned = 37, Note, "flow_learned", "netfilter has let a packet of an established flow pass unchanged: this direction of it may skip the stack";
    FlowForgotten = 38, Note, "flow_forgotten", "a packet of a known flow begins it anew or ends it, or netfilter no longer takes it for established: the flow must be learned again";
    Lapsed = 39, Kernel, "lapsed", "no agent has run for as long as --fast-path-hold says: the maps may be out of date";
    RoutePod = 40, Fast, "route_pod", "a pod's packet was sent to the other node as it is, without a tunnel, past the host's stack";
    HandPod = 41, Fast, "hand_pod", "another node's packet that came without a tunnel was handed to the pod, past the host's stack";
    NotDirect = 42, Kernel, "not_direct", "it came without a tunnel, but not for this node's MAC, or its source is in no subnet that is reached without one by this interface";
    DeliverOverlay = 43, Fast, "deliver_overlay", "a packet that the VXLAN device has decapsulated was handed to the pod, past the rest of the host's stack";
    PodForwards = 44, Kernel, "pod_forwards", "an aggregate of TCP for a pod that forwards: it needs it without the tunnel's GSO flags, which only the VXLAN device clears";
    ForwarderLearned = 45, Note, "forwarder_learned", "a pod has sent TCP that no socket of its own made: it forwards for others";
    EncapDevice = 46, Fast, "encap_device", "an aggregate of a pod's IPv6 packets was handed to the VXLAN device, past the rest of the host's stack: only that gives each segment its outer UDP checksum";
    Ipv6Aggregate = 47, Kernel, "ipv6_aggregate", "an aggregate over IPv6, each segment of which the VXLAN device gives an outer UDP checksum";
    OuterChecksum = 48, Kernel, "outer_checksum", "over IPv6 the outer UDP checksum can be made only from the inner one of TCP, UDP or ICMPv6, and may be absent only where the VXLAN device says so; or it is all that covers a UDP packet without a checksum of its own";
    VtepDropped = 49, Drop, "vtep_dropped", "VXLAN from an address that no lease names, dropped by XDP (--xdp-unknown-vtep=drop)";
    VtepSeen = 50, Note, "vtep_seen", "VXLAN from an address that no lease names, seen by XDP and let pass (--xdp-unknown-vtep=count)";
    DecapsulatedEarly = 51, Note, "decapsulated_early", "decapsulated by XDP, before the kernel merges packets into aggregates";
    TunnelStale = 52, Kernel, "tunnel_stale", "the kernel's own VXLAN packet to this node, or from it, has not been seen lately: this one takes the kernel path through the tunnel, with all rules about the outer packet";
    TunnelSeen = 53, Note, "tunnel_seen", "the kernel's own VXLAN packet has left for this node, or was delivered from it: the programs may encapsulate, or decapsulate, in its place";
    TunnelClosed = 54, Note, "tunnel_closed", "ICMP about the tunnel itself: packets for this node take the kernel path until one has been seen to leave";
    TunnelDiffers = 55, Note, "tunnel_differs", "the kernel's own VXLAN packet has left otherwise than the programs would send it (another next hop, interface or outer header, as by a rule for it): packets for this node take the kernel path";
    HostMark = 56, Kernel, "host_mark", "it has a mark or class by which the host routes or queues packets (ip rule fwmark, tc filters, classful qdiscs): such packets take the kernel path";
    NotGateway = 58, Kernel, "not_gateway", "the frame is not for the gateway's MAC: the pod sends it through another one";
    FlowChanged = 59, Note, "flow_changed", "a packet of an accepted flow left the kernel path with another DSCP, TTL or TCP sequence number than routing gives it: rules change them, so that the flow does not skip the stack";
    PodMoved = 60, Note, "pod_moved", "a pod has announced an address that was known behind another veth, or with another MAC: until the agent has looked, the kernel path takes its packets";
    PodVxlan = 61, Drop, "pod_vxlan", "a pod made VXLAN of our own network for a node, which would have taken what is in it for another pod's";
    Translated = 62, Fast, "translated", "a packet of a flow to a Service, or another that netfilter translates, was translated in netfilter's place and skipped the host's stack";
    FlowTranslated = 63, Note, "flow_translated", "netfilter has let a packet of an established flow pass that it translates: if the flow lasts, the agent will be asked how";
    FlowAsked = 64, Note, "flow_asked", "the agent was asked how netfilter translates a flow";
    FlowFields = 65, Kernel, "flow_fields", "netfilter has accepted other packets of this flow, but none lately with this DSCP, TTL and ECN, which rules and routes may go by";
    SwitchPod = 66, Fast, "switch_pod", "a pod's packet was handed to another pod on the same bridge, past bridge and netfilter";
}

/// Slots each [`Direction`] has in the `counters` map: room for reasons to come.
pub const SLOTS: u32 = 128;

/// Entries of the `counters` map.
pub const COUNTERS: u32 = SLOTS * 2;

const _: () = {
    let mut at = 0;
    while at < Reason::ALL.len() {
        assert!((Reason::ALL[at] as u32) < SLOTS);
        at += 1;
    }
};

/// Index in the `counters` map.
#[inline(always)]
pub const fn slot(direction: Direction, reason: Reason) -> u32 {
    direction as u32 * SLOTS + reason as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_ascend_and_labels_are_unique() {
        let mut labels = BTreeSet::new();
        let mut next = 0;
        for reason in Reason::ALL {
            assert!((next..SLOTS).contains(&(*reason as u32)), "{} is out of order", reason.label());
            next = *reason as u32 + 1;
            assert!(labels.insert(reason.label()), "{} stands twice", reason.label());
            assert!(
                reason.label().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
    }
}
