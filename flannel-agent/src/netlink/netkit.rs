//! netkit (Linux 6.7): pairs of interfaces for pods, as those of veth, but that either end may run programs of BPF of its
//! own, and that in L3 mode there is no Ethernet: no MACs, no ARP.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoKind, InfoNetkit, LinkAttribute, LinkInfo, LinkMessage, NetkitMode as KernelMode,
        NetkitPolicy as KernelPolicy, NetkitScrub as KernelScrub,
    },
};

use super::Request;
use crate::values::Mac;

/// What there is in the frames of a netkit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetkitMode {
    /// Stations: it may be the port of a bridge.
    L2,
    /// None: each MAC is zero, and a pod is reached by a route over its interface.
    L3,
}

/// One end of a netkit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netkit {
    /// What there is in its frames.
    pub mode: NetkitMode,
    /// By this end programs of both are attached (`primary`); nobody can ask for them at the other one.
    pub primary: bool,
    /// It drops what it sends, unless a program of its own says otherwise (`policy blackhole`).
    pub drops: bool,
    /// What the other end sends keeps mark and priority on its way here (`peer scrub none`).
    pub keeps_marks: bool,
}

/// A pod's end of a netkit that is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodEndOptions<'a> {
    /// Its name in the pod.
    pub(crate) name: &'a str,
    /// The pod's network namespace.
    pub(crate) namespace: BorrowedFd<'a>,
    /// Its MAC; the kernel chooses one otherwise.
    pub(crate) mac: Option<Mac>,
}

/// Creates a netkit in L2 mode, both ends down, the primary one here and called `name`. A kernel without netkit answers with
/// EOPNOTSUPP.
pub(crate) fn create(name: &str, mtu: u32, pod: PodEndOptions<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pod.name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(pod.namespace.as_raw_fd()),
    ];
    peer.attributes.extend(pod.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let data = vec![InfoNetkit::Mode(KernelMode::L2), InfoNetkit::Peer(peer)];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Netkit),
            LinkInfo::Data(InfoData::Netkit(data)),
        ]),
    ];
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// The attributes of an end.
pub(super) fn read(data: &[InfoNetkit]) -> Netkit {
    // Each as the driver has it where a kernel tells nothing of it: the first did not know of `scrub`.
    let mut netkit = Netkit { mode: NetkitMode::L3, primary: false, drops: false, keeps_marks: false };
    for item in data {
        match item {
            InfoNetkit::Mode(KernelMode::L2) => netkit.mode = NetkitMode::L2,
            InfoNetkit::Primary(primary) => netkit.primary = *primary,
            InfoNetkit::Policy(policy) => netkit.drops = *policy != KernelPolicy::Pass,
            InfoNetkit::PeerScrub(scrub) => netkit.keeps_marks = *scrub == KernelScrub::None,
            _ => {}
        }
    }
    netkit
}

impl Netkit {
    /// What keeps the fast path from the pod behind this end, in the words of `ip -d link`.
    pub fn particular(&self) -> Option<&'static str> {
        if !self.primary {
            // What programs the pod has at the host's end is not to be seen.
            Some("netkit whose primary end is the pod's")
        } else if self.keeps_marks {
            // Rules of the host, and ours, go by marks that only the host sets.
            Some("netkit with peer scrub none")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_an_end_is_read() {
        let plain = Netkit { mode: NetkitMode::L2, primary: true, drops: false, keeps_marks: false };
        let told = |more: &[InfoNetkit]| {
            let usual = [
                InfoNetkit::Primary(true),
                InfoNetkit::Policy(KernelPolicy::Pass),
                InfoNetkit::Mode(KernelMode::L2),
                InfoNetkit::PeerPolicy(KernelPolicy::Drop),
                InfoNetkit::Scrub(KernelScrub::None),
            ];
            read(&[&usual, more].concat())
        };
        assert_eq!(told(&[]), plain);
        assert_eq!(told(&[InfoNetkit::Mode(KernelMode::L3)]).mode, NetkitMode::L2, "as was told first");
        assert_eq!(read(&[InfoNetkit::Mode(KernelMode::L3)]).mode, NetkitMode::L3);
        assert!(told(&[InfoNetkit::Policy(KernelPolicy::Drop)]).drops);
        assert!(told(&[InfoNetkit::PeerScrub(KernelScrub::None)]).keeps_marks);
        assert_eq!(plain.particular(), None);
        let particular = |netkit: Netkit| netkit.particular().unwrap_or_default();
        assert!(particular(Netkit { keeps_marks: true, ..plain }).ends_with("scrub none"));
        assert!(particular(Netkit { primary: false, ..plain }).ends_with("the pod's"));
    }
}
