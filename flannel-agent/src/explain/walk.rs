//! A packet on its way through the node.

use std::{collections::BTreeSet, net::IpAddr};

use flannel_common::{
    layout::PodPlace,
    mark::Marks,
    packet::Arrival,
    path::{Carrier, Hook, NodeTables as _, Verdict, decide, left},
    reason::Reason,
};
use netlink_packet_route::{neighbour::NeighbourState, route::RouteType};

use super::{
    At, ExplainError, Imagined, Outcome, Step, Told,
    answer::does,
    met::Met,
    node::ThisNode,
    packet::AtHook,
    tables::{PinnedTables, interface},
};
use crate::{
    bpf::{AttachedProgram, Pins, attached},
    inspect::checks::Surroundings,
    masq::{Passing, met},
    netlink::{IpsecTable, Link, LinkKind, Netlink, Pods, RouteQuery, TakenRoute, Tunnel, refusal_means},
    values::{Family, Mac},
};

/// The walk so far, and what it is made over.
pub(super) struct Walk {
    pub(super) tables: PinnedTables,
    pub(super) marks: Marks,
    pub(super) told: Told,
    pub(super) netlink: Netlink,
    pub(super) node: ThisNode,
    pub(super) links: Vec<Link>,
    /// Addresses of this node.
    pub(super) own: BTreeSet<IpAddr>,
    attached: Vec<AttachedProgram>,
    pub(super) ipsec: IpsecTable,
    /// Where the kernel says that pods are, once it was asked.
    pods: Option<Pods>,
    pub(super) steps: Vec<Step>,
    /// What may have dropped it so far.
    pub(super) perhaps: Vec<String>,
}

/// Whether a device is one of IP in IP, to no one address.
pub(super) const fn is_ipip(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Tunnel(Tunnel::Ipip { .. }))
}

impl Walk {
    pub(super) async fn begin(
        pins: &Pins,
        marks: Marks,
        told: Told,
        family: Family,
    ) -> Result<Self, ExplainError> {
        let tables = PinnedTables::open(pins, marks)?;
        let node = tables.this_node(family)?.ok_or(ExplainError::NotConfigured(family))?;
        let mut netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let own = netlink.addresses(family, None).await?.into_iter().map(|own| own.network.ip()).collect();
        let attached = attached(pins)?;
        let is_served =
            |link: &Link| attached.iter().any(|at| (at.hook, at.ifindex) == (Hook::ToOverlay, link.index));
        let in_ip = links.iter().any(|link| is_ipip(&link.kind) && is_served(link));
        let tables = tables.in_ip(in_ip);
        let ipsec = IpsecTable::read().await?;
        Ok(Self {
            tables,
            marks,
            told,
            netlink,
            node,
            links,
            own,
            attached,
            ipsec,
            pods: None,
            steps: Vec::new(),
            perhaps: Vec::new(),
        })
    }

    /// Where a pod's address is: by the map, or else as the kernel has it.
    pub(super) async fn place(&mut self, address: IpAddr) -> Result<Option<PodPlace>, ExplainError> {
        if let Some(place) = self.tables.place(address)? {
            return Ok(Some(place));
        }
        if self.pods.is_none() {
            self.pods = Some(self.netlink.pods(&[self.node.subnet], &self.links).await?);
        }
        Ok(self.pods.as_ref().and_then(|pods| pods.places.get(&address)).copied())
    }

    /// What packets between nodes are put into.
    pub(super) fn carrier(&self) -> Carrier {
        self.tables.carrier()
    }

    /// The interface of an index.
    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    pub(super) fn mac_of(&self, index: u32) -> Mac {
        self.link(index).and_then(|link| link.mac).unwrap_or(Mac([0; 6]))
    }

    /// An interface that the program of `hook` is attached to.
    pub(super) fn interface_with(&self, hook: Hook) -> Option<u32> {
        self.attached.iter().find(|at| at.hook == hook).map(|at| at.ifindex)
    }

    pub(super) fn has(&self, hook: Hook, ifindex: u32) -> bool {
        self.attached.iter().any(|at| (at.hook, at.ifindex) == (hook, ifindex))
    }

    /// What the program of `hook` does with a frame at an interface; [`Verdict::Pass`] where it is not attached.
    pub(super) fn at(
        &mut self,
        hook: Hook,
        frame: &[u8],
        arrival: &Arrival,
    ) -> Result<Verdict, ExplainError> {
        let at = Some(interface(arrival.ifindex));
        if !self.has(hook, arrival.ifindex) {
            let sake = self.for_the_sake_of(arrival.ifindex);
            // A qdisc keeps what there is room for; a chain is looked into by itself.
            if sake.contains("filter") || sake.contains("program") {
                self.perhaps.push(sake.trim_start_matches(", for ").to_owned());
            }
            let what = format!("is not attached here{sake}: the kernel path");
            self.steps.push(Step::of_kernel(At::Hook(hook), at, what));
            return Ok(Verdict::Pass);
        }
        let packet = AtHook { bytes: frame, own: &self.own };
        let verdict = decide(hook, &packet, &self.tables, arrival);
        let verdict = match self.misfit(&verdict) {
            Some(reason) => left(hook, &packet, &self.tables, reason),
            None => verdict,
        };
        let reason = verdict.reason();
        let why = reason.map_or_else(String::new, |reason| format!(": {}", reason.sentence()));
        self.steps.push(Step {
            at: At::Hook(hook),
            interface: at,
            what: format!("{}{why}", does(&verdict)),
            reason,
            lookups: self.tables.take_lookups()?,
        });
        Ok(verdict)
    }

    /// Notes what of others sees a packet as it leaves by `interface`, which may drop it there.
    pub(super) fn seen_as_it_leaves(&mut self, interface: &str) -> Result<(), ExplainError> {
        let Some(link) = self.links.iter().find(|link| link.name == interface) else { return Ok(()) };
        // Chains of nftables are looked into by themselves.
        let is_program = |what: &String| what.ends_with("at egress") && !what.starts_with("nftables");
        let seen = Surroundings::first_at(link)?.into_iter().filter(is_program);
        self.perhaps.extend(seen.map(|what| format!("{what} of {interface}")));
        Ok(())
    }

    /// For the sake of what the agent has attached no program to an interface, if it tells.
    fn for_the_sake_of(&self, ifindex: u32) -> String {
        let link = self.link(ifindex);
        let bridge = link.and_then(|link| self.link(link.master?));
        let mut hooks =
            link.into_iter().chain(bridge).filter_map(|link| Some((self.told.hooks.get(&link.name)?, link)));
        hooks.next().map_or_else(String::new, |(hook, link)| format!(", for {hook} of {}", link.name))
    }

    /// Why a pod cannot be handed what `verdict` says: the kernel tells the programs when they do it.
    fn misfit(&self, verdict: &Verdict) -> Option<Reason> {
        let (pod, len) = match verdict {
            Verdict::DecapsulateEarly(..) => return None,
            _ => verdict.pod()?,
        };
        match self.link(pod.ifindex) {
            None => Some(Reason::PodGone),
            Some(link) if link.mtu < len => Some(Reason::TooBig),
            Some(_) => None,
        }
    }

    /// The kernel's route for a packet, or what becomes of it instead.
    pub(super) async fn route(
        &mut self,
        query: &RouteQuery,
    ) -> Result<Result<TakenRoute, Outcome>, ExplainError> {
        let answer = self.netlink.taken_route(query).await?;
        let arrived = query.arrived_by.map(interface);
        let dropped = |by: String| Ok(Err(Outcome::Dropped { by }));
        let destination = query.destination;
        match answer {
            Err(refusal) => {
                let means = refusal_means(&refusal);
                let what = format!("the kernel has no route to {destination} for it: {refusal}{means}");
                self.steps.push(Step::of_kernel(At::Route, arrived, what.clone()));
                dropped(what)
            }
            Ok(route) if route.kind == RouteType::Local => {
                let what = format!("{destination} is this node's own");
                self.steps.push(Step::of_kernel(At::Route, arrived, what));
                Ok(Err(Outcome::Node))
            }
            Ok(route) if route.kind == RouteType::Unicast => {
                let via = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
                let device = route.ifindex.map_or_else(|| "nothing".to_owned(), interface);
                let table =
                    if route.table == 254 { String::new() } else { format!(", table {}", route.table) };
                let what = format!("{destination}{via} dev {device}{table}");
                self.steps.push(Step::of_kernel(At::Route, arrived, what));
                Ok(Ok(route))
            }
            Ok(route) => {
                let what =
                    format!("the route to {destination} is {}", format!("{:?}", route.kind).to_lowercase());
                self.steps.push(Step::of_kernel(At::Route, arrived, what.clone()));
                dropped(what)
            }
        }
    }

    /// The rules of flannel's that a packet meets between its route and its way out.
    pub(super) fn rules(&mut self, packet: &Imagined, out: &str, forwarded: bool, mark: u32) {
        let Imagined { source, destination, .. } = *packet;
        let passing = Passing { source, destination, mark, forwarded };
        let found: Vec<String> = self.told.rules.iter().flat_map(|rules| met(rules, &passing)).collect();
        if !found.is_empty() {
            self.steps.push(Step::of_kernel(At::Rules, Some(out.to_owned()), found.join("\n")));
        }
    }

    /// The MAC that the kernel has for `address` on an interface, if any.
    pub(super) async fn neighbour(
        &mut self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<Mac>, ExplainError> {
        if self.link(ifindex).is_some_and(Link::has_no_stations) {
            return Ok(Some(Mac([0; 6])));
        }
        let found = self.netlink.neighbour(ifindex, address).await?;
        let what = match &found {
            Some(found) if found.state == NeighbourState::Failed => {
                format!("{address} has not answered when the kernel asked for its MAC; it asks again")
            }
            Some(found) => {
                let mac = found.mac.map_or_else(|| "not known yet".to_owned(), |mac| mac.to_string());
                format!("{address} is {mac} ({})", format!("{:?}", found.state).to_lowercase())
            }
            None => format!("{address} is not known yet: the kernel asks for its MAC"),
        };
        self.steps.push(Step::of_kernel(At::Neighbour, Some(interface(ifindex)), what));
        Ok(found.and_then(|found| found.mac))
    }

    /// Brings a packet that the kernel has routed to a local pod to it.
    pub(super) async fn bring_to_pod(
        &mut self,
        packet: Imagined,
        place: PodPlace,
        mark: u32,
    ) -> Result<Outcome, ExplainError> {
        if let Some(dropped) = self.shut(packet.destination, place.ifindex) {
            return Ok(dropped);
        }
        let is_port = self.link(place.ifindex).is_some_and(|link| link.master.is_some());
        if is_port && let Some(dropped) = self.filtered(&packet, mark, Met::OutOfPort(place.ifindex)) {
            return Ok(dropped);
        }
        let frame = packet.frame(Mac(place.mac), Mac(place.gateway_mac));
        let arrival = Arrival { ifindex: place.ifindex, mark, ..Arrival::default() };
        self.at(Hook::ToPod, &frame, &arrival)?;
        Ok(Outcome::Pod { interface: interface(place.ifindex), fast: false })
    }
}

/// Why a packet of this size cannot go on by a way of that MTU.
pub(super) fn too_big(size: u16, mtu: u32, interface: &str) -> Option<Outcome> {
    (u32::from(size) > mtu).then(|| Outcome::Dropped {
        by: format!(
            "{size} bytes do not fit the MTU of {mtu} on {interface}, and the packet may not be fragmented: its sender is \
             told by ICMP"
        ),
    })
}
