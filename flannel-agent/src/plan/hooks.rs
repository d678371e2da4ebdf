//! What of somebody else's packets on the fast path would pass by, and what is left to the kernel for it.
//!
//! A packet that is redirected leaves its interface at once. A limit, a filter or a mirror that somebody has set up there
//! would not see it, as it does with stock flannel. So what belongs to one interface decides for that interface, or for
//! the pods behind it; everything else goes on by the fast path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use flannel_common::{
    layout::{FastPath, Heeded},
    path::Hook,
};

use super::{Inputs, PodRoute, PodRoutes, Pods};
use crate::values::Family;

/// Where at an interface packets meet a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookPlace {
    /// On what it receives, before our program's place.
    Ahead,
    /// On what it receives, behind our program's place.
    Ingress,
    /// On what it sends.
    Egress,
    /// The same in netfilter, which the kernel does not ask about what a program redirects (`nf_skip_egress`,
    /// include/linux/netfilter_netdev.h).
    EgressChain,
    /// In the bridge that it is, or is a port of.
    Bridge,
    /// Not at one interface: in routing, or in the queues of any.
    Host,
}

/// Something of somebody else's that packets meet at an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignHook {
    /// Where.
    pub place: HookPlace,
    /// What, in the words of the tool that shows it.
    pub what: String,
}

impl ForeignHook {
    /// `what` at `place`.
    pub fn new(place: HookPlace, what: impl Into<String>) -> Self {
        Self { place, what: what.into() }
    }
}

impl fmt::Display for ForeignHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.place {
            HookPlace::Ahead | HookPlace::Ingress => f.write_str(" at ingress"),
            HookPlace::Egress | HookPlace::EgressChain => f.write_str(" at egress"),
            HookPlace::Bridge | HookPlace::Host => Ok(()),
        }
    }
}

/// An interface that packets between pods of different nodes meet on the kernel's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookedInterface {
    /// Its name.
    pub name: String,
    /// The bridge it is a port of.
    pub bridge: Option<u32>,
    /// What others have there.
    pub hooks: BTreeSet<ForeignHook>,
}

/// What others have set up where packets between pods of different nodes come by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Every interface that packets between pods of different nodes meet, by its index: the external one, the VXLAN
    /// devices, the veths of pods and their bridges, and those by which peers are reached.
    pub interfaces: BTreeMap<u32, HookedInterface>,
    /// The routes to pods that do more than lead there.
    pub routes: PodRoutes,
    /// What goes by marks and classes of packets.
    pub heeding: Heeding,
}

/// What on the host routes or queues packets by a mark or class that rules have given them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heeding {
    /// The bits.
    pub heeded: Heeded,
    /// In the words of the tools that show it.
    pub what: BTreeSet<String>,
}

impl Heeding {
    /// Also `what`, which goes by `heeded`.
    pub fn add(&mut self, heeded: Heeded, what: String) {
        self.heeded.marks |= heeded.marks;
        self.heeded.classes |= heeded.classes;
        self.what.insert(what);
    }
}

impl Foreign {
    /// Also the hooks `more`, by interface.
    #[must_use]
    pub fn with(mut self, more: &BTreeMap<u32, BTreeSet<ForeignHook>>) -> Self {
        for (index, hooks) in more {
            if let Some(interface) = self.interfaces.get_mut(index) {
                interface.hooks.extend(hooks.iter().cloned());
            }
        }
        self
    }
}

/// What is left to the kernel's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// What comes from other nodes, by the external interface.
    Arrivals,
    /// Only its early decapsulation, by XDP.
    EarlyDecapsulation,
    /// What goes to other nodes by this interface.
    Departures,
    /// The whole of a family's traffic, for its VXLAN device.
    Overlay(Family),
    /// The pods on this bridge.
    Bridge,
    /// The pod behind this veth.
    Pod,
    /// What has a mark or class of the host's.
    Marked,
}

/// As in the log.
impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrivals => f.write_str("packets that arrive from other nodes"),
            Self::EarlyDecapsulation => f.write_str("the removal of outer headers before tc"),
            Self::Departures => f.write_str("packets that leave for other nodes by this interface"),
            Self::Overlay(family) => write!(f, "pods' {family} packets"),
            Self::Bridge => f.write_str("packets of the pods on this bridge"),
            Self::Pod => f.write_str("packets of the pod behind this interface"),
            Self::Marked => f.write_str("packets with a mark or class that routing or queueing goes by"),
        }
    }
}

/// Why a stretch is the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooked {
    /// Name of the interface.
    pub interface: String,
    /// One of the hooks there.
    pub hook: ForeignHook,
}

/// The stretches that are left to the kernel, each by the interface it hangs on.
pub type LeftToKernel = BTreeMap<(u32, Stretch), Hooked>;

/// What the fast path of `inputs` would pass by.
pub(super) fn left_to_kernel(inputs: &Inputs<'_>) -> LeftToKernel {
    let local = inputs.local;
    let mut left = LeftToKernel::new();
    if let Some(what) = inputs.foreign.heeding.what.first()
        && matches!(local.fast_path, FastPath::Overlay | FastPath::Flow)
    {
        let interface = inputs.foreign.interfaces.get(&local.underlay_ifindex);
        let interface = interface.map_or_else(String::new, |interface| interface.name.clone());
        let hook = ForeignHook::new(HookPlace::Host, what);
        left.insert((local.underlay_ifindex, Stretch::Marked), Hooked { interface, hook });
    }
    let mut look = |index: u32, stretch: Stretch, counts: &dyn Fn(HookPlace) -> bool| {
        let Some(interface) = inputs.foreign.interfaces.get(&index) else { return };
        if let Some(hook) = interface.hooks.iter().find(|hook| counts(hook.place)) {
            let hooked = Hooked { interface: interface.name.clone(), hook: hook.clone() };
            left.insert((index, stretch), hooked);
        }
    };
    let past_the_stack = local.fast_path.finds_pods();
    if local.fast_path != FastPath::Off {
        for exit in exits_with_chains(inputs) {
            look(exit, Stretch::Departures, &|place| place == HookPlace::EgressChain);
        }
        for (family, overlay) in inputs.overlays {
            // Netfilter and routing send packets there with fast path `overlay`, too, and take them from there.
            let counts =
                |place| past_the_stack || matches!(place, HookPlace::Egress | HookPlace::EgressChain);
            look(*overlay, Stretch::Overlay(*family), &counts);
        }
    }
    if !past_the_stack {
        return left;
    }
    look(local.underlay_ifindex, Stretch::Arrivals, &|place| place == HookPlace::Ingress);
    if local.xdp.hook == Some(Hook::XdpUnderlay) {
        // What is ahead of our program of tc would get packets without the headers it looks for.
        let counts = |place| matches!(place, HookPlace::Ahead | HookPlace::Ingress);
        look(local.underlay_ifindex, Stretch::EarlyDecapsulation, &counts);
    }
    for link in &inputs.pods.links {
        look(*link, Stretch::Pod, &|place| place != HookPlace::Ahead);
        if let Some(bridge) = inputs.foreign.interfaces.get(link).and_then(|veth| veth.bridge) {
            look(bridge, Stretch::Bridge, &|_| true);
        }
    }
    for (address, place) in &inputs.pods.places {
        if let Some((route, special)) = route_to_pod(inputs, *address).special {
            let interface = inputs.foreign.interfaces.get(&place.ifindex);
            let interface = interface.map_or_else(String::new, |interface| interface.name.clone());
            let hook = ForeignHook::new(HookPlace::Host, format!("route {route} with {special}"));
            left.entry((place.ifindex, Stretch::Pod)).or_insert(Hooked { interface, hook });
        }
    }
    left
}

/// What is particular about the routes to the pod at `address`.
pub(super) fn route_to_pod(inputs: &Inputs<'_>, address: IpAddr) -> PodRoute {
    let subnet = inputs.local.stack(Family::of(address)).map(|stack| stack.subnet);
    subnet.map_or_else(PodRoute::default, |subnet| inputs.foreign.routes.towards(address.into(), subnet))
}

/// The interfaces by which packets leave for other nodes, and at which others have chains that those would not meet.
fn exits_with_chains(inputs: &Inputs<'_>) -> Vec<u32> {
    let is_inside = |index: &u32| {
        inputs.overlays.values().any(|overlay| overlay == index)
            || inputs.pods.links.contains(index)
            || inputs.pods.links.iter().any(|link| {
                inputs.foreign.interfaces.get(link).is_some_and(|veth| veth.bridge == Some(*index))
            })
    };
    let exits = inputs.foreign.interfaces.keys().copied().filter(|index| has_egress_chain(inputs, *index));
    exits.filter(|index| !is_inside(index)).collect()
}

/// Whether others have a chain at what interface `index` sends, which would not see what programs redirect there.
pub(super) fn has_egress_chain(inputs: &Inputs<'_>, index: u32) -> bool {
    let interface = inputs.foreign.interfaces.get(&index);
    interface.is_some_and(|it| it.hooks.iter().any(|hook| hook.place == HookPlace::EgressChain))
}

/// Those of the pods of `inputs` that the fast path may serve: all links, but only the places of these, each with the MTU of
/// the route to it.
pub(super) fn served(inputs: &Inputs<'_>, left: &LeftToKernel) -> Pods {
    let mut pods = inputs.pods.clone();
    if !left.is_empty() {
        pods.places.retain(|address, place| {
            serves_link(inputs, left, place.ifindex) && {
                let family = Family::of(*address);
                !inputs
                    .overlays
                    .get(&family)
                    .is_some_and(|overlay| left.contains_key(&(*overlay, Stretch::Overlay(family))))
            }
        });
    }
    for (address, place) in &mut pods.places {
        if let Some(mtu) = route_to_pod(inputs, *address).mtu {
            place.mtu = place.mtu.min(mtu);
        }
    }
    pods
}

/// Whether the fast path may serve the pod behind veth `link`.
pub(super) fn serves_link(inputs: &Inputs<'_>, left: &LeftToKernel, link: u32) -> bool {
    let bridge = inputs.foreign.interfaces.get(&link).and_then(|veth| veth.bridge);
    !left.contains_key(&(link, Stretch::Pod))
        && !bridge.is_some_and(|bridge| left.contains_key(&(bridge, Stretch::Bridge)))
}
