//! What a plan depends on besides the leases: the node around the dataplane.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    time::Duration,
};

use flannel_common::layout::{FastPath, Heeded};
use ipnetwork::IpNetwork;
use tokio::{select, time::sleep};
use tracing::{debug, warn};

use super::{echoes::Echoes, foreign::Look};
use crate::{
    host::cpu,
    netlink::{
        AggregateLimits, Changed, IpsecPolicies, Link, Monitor, Netlink, NetlinkError, PodRoutes, RuleMark,
        Watched,
    },
    plan::{Change, Foreign, IpsecPolicy, Local, NextHops, NoHop, Pods},
    values::{Family, Mac},
};

/// Between attempts to listen to the kernel again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Of more objects of the kernel than these the notices are not heard when we change them: to have each stored until
/// it is read takes the kernel longer than the change itself. Everything is looked at afterwards instead.
const MOST_ECHOES: usize = 1024;

/// What of the node a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Our pods: with fast path `overlay` their links alone, with `off` not even those.
    pub pods: Pods,
    /// What the host's IPsec policies are about: not read with fast path `off`.
    pub policies: Vec<IpsecPolicy>,
    /// Indices of the VXLAN devices that exist.
    pub overlays: BTreeMap<Family, u32>,
    /// Interfaces that can carry packets to other nodes: index, MTU, up. Routes go with their interface
    /// without notice, so a change here says that next hops may have changed.
    pub underlay: BTreeSet<(u32, u32, bool)>,
    /// The families of which our address is gone from the external interface. The kernel then names no next hop for
    /// packets from it.
    pub unaddressed: BTreeSet<Family>,
    /// What others have set up at the interfaces that packets between pods meet.
    pub foreign: Foreign,
    /// The interfaces besides the external one at which that was looked for because peers are reached by them.
    pub exits: BTreeSet<u32>,
}

/// The node around the dataplane.
pub trait Host: Send {
    /// CPU time that this process has taken so far.
    fn cpu_time(&self) -> Duration;

    /// Waits until something changed that a plan or the dataplane may depend on. Never fails: errors are
    /// logged and what follows reports that anything may have changed. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = Changed> + Send;

    /// What has changed since the last survey and raised no notice. Errors are logged: whoever surveys next meets them.
    fn unheard(&mut self) -> impl Future<Output = Changed> + Send {
        async { Changed::default() }
    }

    /// Takes note that we are about to make `changes`.
    fn making(&mut self, changes: &[Change]) {
        let _ = changes;
    }

    /// Takes note that we have made `changes` just now, so that the kernel's notices of them are no news; what else
    /// changed meanwhile.
    fn made(&mut self, changes: &[Change]) -> Changed {
        let _ = changes;
        Changed::default()
    }

    /// Looks around, as the node that `local` says it is. By the interfaces `exits` peers are reached.
    fn survey(
        &mut self,
        local: &Local,
        exits: &BTreeSet<u32>,
    ) -> impl Future<Output = Result<Surroundings, NetlinkError>> + Send;

    /// How the underlay reaches `addresses` from ours, if anything depends on it.
    fn next_hops(
        &mut self,
        local: &Local,
        addresses: &BTreeSet<IpAddr>,
    ) -> impl Future<Output = Result<NextHops, NetlinkError>> + Send;
}

/// The node as netlink shows it.
pub struct KernelHost {
    netlink: Netlink,
    monitor: Monitor,
    policies: IpsecPolicies,
    watched: Watched,
    /// What has been heard and not been told yet.
    heard: Changed,
    /// Neighbours on the external interface may wait for answers to what was asked while it was down.
    asked_in_vain: bool,
    look: Look,
    /// The pods' ports at which their bridge lets not all pass: isolated, and without what it floods.
    restricted: BTreeMap<u32, [bool; 2]>,
    /// What the pods' veths and bridges send in one piece, as it was when they were last seen.
    aggregates: BTreeMap<u32, AggregateLimits>,
    /// The routes to pods that do more than lead there, unless they may have changed since they were read.
    pod_routes: Option<PodRoutes>,
}

impl KernelHost {
    /// Looks at, and listens to, the network namespace of this thread. What the fast path does not need is
    /// not looked for.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open()?,
            monitor: Monitor::open()?,
            policies: IpsecPolicies::default(),
            watched: Watched::default(),
            heard: Changed::default(),
            asked_in_vain: false,
            look: Look::open()?,
            restricted: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            pod_routes: None,
        })
    }

    /// Lets neighbours on the external interface be asked for anew where it has just been set up. Programs send to them
    /// while it is down, which the kernel, without routes, does not.
    async fn ask_again(&mut self) {
        if !self.asked_in_vain {
            return;
        }
        match self.netlink.forget_unresolved(self.watched.external).await {
            Ok(0) => {}
            Ok(neighbours) => debug!(neighbours, "asking for neighbours of the external interface anew"),
            Err(error) => debug!(%error, "neighbours of the external interface are asked for in a second"),
        }
        self.asked_in_vain = false;
    }
}

impl KernelHost {
    /// Takes note of what a change means for what is known here.
    fn note(&mut self, changed: Changed) {
        self.asked_in_vain |= changed.external_up;
        if changed.forwarding || changed.overrun {
            self.pod_routes = None;
        }
    }

    /// Takes note of where pods are on their bridges, and of what those let pass: where that has changed, flows that skip the
    /// bridge are to meet it again.
    fn watch_ports(&mut self, links: &[Link], pods: &Pods) {
        let ports = links.iter().filter(|link| pods.links.contains(&link.index));
        // Nothing skips them unless places are known.
        let skipped: Vec<&Link> = ports.clone().filter(|_| !pods.places.is_empty()).collect();
        let bridges: BTreeSet<u32> = skipped.iter().filter_map(|port| port.master).collect();
        let bridges = links.iter().filter(|link| bridges.contains(&link.index));
        self.aggregates =
            skipped.into_iter().chain(bridges).map(|link| (link.index, link.aggregates)).collect();
        let restricted: BTreeMap<u32, [bool; 2]> = ports
            .map(|port| (port.index, [port.isolated_port, port.unflooded_port]))
            .filter(|(_, [isolated, unflooded])| *isolated || *unflooded)
            .collect();
        self.watched.stations = pods.places.values().map(|place| Mac(place.mac)).collect();
        self.watched.unflooded =
            restricted.iter().filter(|(_, [_, unflooded])| *unflooded).map(|(index, _)| *index).collect();
        if restricted != self.restricted {
            self.heard.forwarding = true;
            self.restricted = restricted;
        }
    }

    /// The routes to pods that do more than lead there.
    async fn pod_routes(&mut self, local: &Local) -> Result<PodRoutes, NetlinkError> {
        if let Some(routes) = &self.pod_routes {
            return Ok(routes.clone());
        }
        let mut routes = PodRoutes::default();
        let networks: Vec<_> = local.stacks.values().map(|stack| stack.network).collect();
        for family in local.stacks.keys() {
            routes.extend(self.netlink.pod_routes(*family, &networks).await?);
        }
        self.pod_routes = Some(routes.clone());
        Ok(routes)
    }
}

impl Host for KernelHost {
    fn cpu_time(&self) -> Duration {
        cpu::time()
    }

    async fn changed(&mut self) -> Changed {
        self.ask_again().await;
        if self.heard.any() {
            return std::mem::take(&mut self.heard);
        }
        let heard = select! {
            heard = self.monitor.changed(&self.watched) => heard,
            heard = self.look.chains_changed() => heard,
            // Whichever way packets have to take is looked at again.
            heard = self.policies.changed() => {
                heard.map(|()| Changed { routes: true, forwarding: true, ..Changed::default() })
            }
        };
        self.heard = match heard {
            Ok(changed) => changed,
            Err(error) => {
                warn!(%error, "cannot listen to the kernel; trying again");
                sleep(RECONNECT).await;
                Changed::EVERYTHING
            }
        };
        self.note(self.heard);
        self.ask_again().await;
        std::mem::take(&mut self.heard)
    }

    /// Of limits of aggregates, and of rules of the legacy ebtables, the kernel tells nothing.
    async fn unheard(&mut self) -> Changed {
        if self.aggregates.is_empty() {
            return Changed::default();
        }
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => {
                debug!(%error, "cannot look at the limits of interfaces");
                return Changed::default();
            }
        };
        let differs = |link: &Link| {
            self.aggregates.get(&link.index).is_some_and(|aggregates| *aggregates != link.aggregates)
        };
        Changed {
            links: links.iter().any(differs),
            hooks: self.look.ebtables_changed(),
            ..Changed::default()
        }
    }

    fn making(&mut self, changes: &[Change]) {
        if changes.iter().filter(|change| !change.is_bpf()).count() > MOST_ECHOES {
            self.monitor.pause();
        }
    }

    fn made(&mut self, changes: &[Change]) -> Changed {
        match self.monitor.resume() {
            Ok(false) => {
                let echoes = Echoes::of(changes);
                let heard = self.monitor.heard_but(&self.watched, |notice| echoes.hold(notice));
                self.note(heard);
                heard
            }
            // Without a socket, whoever waits next tries again.
            Ok(true) | Err(_) => {
                self.pod_routes = None;
                Changed { overrun: true, ..Changed::default() }
            }
        }
    }

    async fn survey(&mut self, local: &Local, exits: &BTreeSet<u32>) -> Result<Surroundings, NetlinkError> {
        let links = self.netlink.links().await?;
        let mut overlays: BTreeMap<Family, u32> = local
            .devices()
            .filter_map(|(family, device)| {
                let link = links.iter().find(|link| link.name == device.name)?;
                link.as_vxlan_device().map(|_| (family, link.index))
            })
            .collect();
        if let Some(name) = local.backend.tunnel_device() {
            overlays.extend(links.iter().find(|link| link.name == name).map(|link| (Family::V4, link.index)));
        }
        let watched = Watched {
            overlays: overlays.values().copied().collect(),
            external: local.underlay_ifindex,
            networks: Some(local.stacks.values().map(|stack| stack.network).collect()),
            ..self.watched.clone()
        };
        if watched != self.watched {
            self.pod_routes = None;
        }
        self.watched = watched;
        let subnets: Vec<IpNetwork> = local.stacks.values().map(|stack| stack.subnet).collect();
        let pods = match local.fast_path {
            FastPath::Flow | FastPath::All => self.netlink.pods(&subnets, &links).await?,
            FastPath::Overlay => {
                let links = self.netlink.pod_links(&subnets, &links).await?;
                Pods { links, ..Pods::default() }
            }
            FastPath::Off => Pods::default(),
        };
        self.watch_ports(&links, &pods);
        let mut foreign = match local.fast_path {
            FastPath::Off => Foreign::default(),
            _ => self.look.around(local, &links, &self.watched.overlays, &pods, exits)?,
        };
        for family in local.stacks.keys().filter(|_| local.fast_path != FastPath::Off) {
            for RuleMark { mark, mask } in self.netlink.rule_marks(*family).await? {
                let heeded = Heeded { marks: mask, classes: 0 };
                foreign.heeding.add(heeded, format!("ip rule fwmark {mark:#x}/{mask:#x}"));
            }
        }
        if local.fast_path != FastPath::Off {
            foreign.routes = self.pod_routes(local).await?;
        }
        let external = local.underlay_ifindex;
        let underlay = links
            .iter()
            .filter(|link| !self.watched.overlays.contains(&link.index))
            // Pods come and go, and no node is reached through one.
            .filter(|link| link.index == external || !link.leads_elsewhere())
            .map(|link| (link.index, link.mtu, link.up))
            .collect();
        let mut unaddressed = BTreeSet::new();
        for (family, stack) in local.stacks.iter().filter(|_| needs_next_hops(local)) {
            let addresses = self.netlink.addresses(*family, Some(external)).await?;
            if !addresses.iter().any(|held| held.network.ip() == stack.address) {
                unaddressed.insert(*family);
            }
        }
        let mut policies = match local.fast_path {
            FastPath::Off => Vec::new(),
            _ => self.policies.read().await?,
        };
        policies.sort_unstable();
        policies.dedup();
        let exits = exits.clone();
        Ok(Surroundings { pods, policies, overlays, underlay, unaddressed, foreign, exits })
    }

    async fn next_hops(
        &mut self,
        local: &Local,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<NextHops, NetlinkError> {
        let mut hops = NextHops::new();
        for (family, stack) in local.stacks.iter().filter(|_| needs_next_hops(local)) {
            let of_family = addresses.iter().copied().filter(|address| Family::of(*address) == *family);
            let found = self.netlink.next_hops(stack.address, &of_family.collect()).await?;
            hops.extend(found.into_iter().map(|(to, hop)| (to, hop.map_err(NoHop::from))));
        }
        // A tunnel through itself is left to the kernel, which knows how to refuse it.
        for hop in hops.values_mut() {
            if hop.is_ok_and(|hop| self.watched.overlays.contains(&hop.ifindex)) {
                *hop = Err(NoHop::Tunnel);
            }
        }
        Ok(hops)
    }
}

/// Whether anything is decided by how the underlay reaches peers.
fn needs_next_hops(local: &Local) -> bool {
    local.fast_path != FastPath::Off || local.direct_routing
}
