//! The loop over doubles, on a clock that jumps.

use std::{
    collections::BTreeMap,
    future::pending,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use flannel_common::layout::{FastPath, PodPlace, RouteKind};
use proptest::prelude::*;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    schedule::{FULL, TOTAL},
    *,
};
use crate::{
    backend::{AnyBackend, HostGw, Objects, Vxlan, VxlanOptions},
    datapath::{ChangeError, ObserveError, memory::MemoryDatapath},
    lease::{Lease, LeaseAttrs, LeaseEvent, LeaseSubnet, wire::VxlanData},
    netlink::NetlinkError,
    plan::{
        AnyEntryKey, BpfState, Change, EntryKey, FlowRefresh, Foreign, Hook, Inputs, LocalStack, NextHop,
        ObjectKey, Pods, State, VxlanDevice, plan,
    },
    values::{Family, Mac},
};

mod accepted;
mod announced;
mod any_order;
mod direct;
mod drift;
mod failures;
mod moved;
mod patched;
mod pods;

const OVERLAY: u32 = 7;

/// The kernel and the node around it, as the doubles share them with the test.
#[derive(Default)]
struct World {
    datapath: MemoryDatapath,
    next_hops: BTreeMap<IpAddr, NextHop>,
    pods: Pods,
    underlay: BTreeSet<(u32, u32, bool)>,
    unaddressed: bool,
    foreign: Foreign,
    surveys: u32,
    /// How long each takes.
    survey: Duration,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<World>>);

impl Datapath for Shared {
    async fn observe(&mut self) -> Result<State, ObserveError> {
        self.0.lock().await.datapath.observe().await
    }

    async fn observe_bpf(&mut self) -> Result<Option<BpfState>, ObserveError> {
        self.0.lock().await.datapath.observe_bpf().await
    }

    async fn end_acceptance(&mut self) -> Result<(), ChangeError> {
        self.0.lock().await.datapath.end_acceptance().await
    }

    async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        self.0.lock().await.datapath.apply(changes).await
    }
}

struct Node(Shared, mpsc::UnboundedReceiver<Changed>);

thread_local! {
    static START: Instant = Instant::now();
}

impl Host for Node {
    /// As if each moment were spent working.
    fn cpu_time(&self) -> Duration {
        START.with(|start| start.elapsed())
    }

    async fn changed(&mut self) -> Changed {
        match self.1.recv().await {
            Some(changed) => changed,
            None => pending().await,
        }
    }

    async fn survey(&mut self, _: &Local, exits: &BTreeSet<u32>) -> Result<Surroundings, NetlinkError> {
        let takes = self.0.0.lock().await.survey;
        sleep(takes).await;
        let mut world = self.0.0.lock().await;
        world.surveys += 1;
        Ok(Surroundings {
            policies: Vec::new(),
            pods: world.pods.clone(),
            overlays: world.datapath.state.devices.keys().map(|family| (*family, OVERLAY)).collect(),
            underlay: world.underlay.clone(),
            unaddressed: world.unaddressed.then_some(Family::V4).into_iter().collect(),
            foreign: world.foreign.clone(),
            exits: exits.clone(),
        })
    }

    async fn next_hops(&mut self, _: &Local, addresses: &BTreeSet<IpAddr>) -> Result<NextHops, NetlinkError> {
        let world = self.0.0.lock().await;
        Ok(world
            .next_hops
            .iter()
            .filter(|(to, _)| addresses.contains(to))
            .map(|(to, hop)| (*to, Ok(*hop)))
            .collect())
    }
}

struct Leased(mpsc::UnboundedReceiver<LeaseEvent>);

impl LeaseSource for Leased {
    async fn next(&mut self) -> LeaseEvent {
        match self.0.recv().await {
            Some(event) => event,
            None => pending().await,
        }
    }
}

struct Agent {
    world: Shared,
    leases: mpsc::UnboundedSender<LeaseEvent>,
    notices: mpsc::UnboundedSender<Changed>,
    exempt: watch::Sender<Exemptions>,
    locals: watch::Sender<Local>,
    view: watch::Receiver<Summary>,
    pulse: Pulse,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(world: World) -> Self {
        Self::start_as(local(), world)
    }

    fn start_as(local: Local, world: World) -> Self {
        let (locals, now) = watch::channel(local);
        let world = Shared(Arc::new(Mutex::new(world)));
        let (leases, source) = mpsc::unbounded_channel();
        let (notices, changes) = mpsc::unbounded_channel();
        let (exempt, exemptions) = watch::channel(Exemptions::default());
        let (stop, stopped) = oneshot::channel();
        let node = Node(world.clone(), changes);
        let (reconciler, view) = Reconciler::new(now, world.clone(), node, Leased(source));
        let pulse = reconciler.pulse();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            reconciler.exempting(exemptions).run(stopped).await;
        });
        Self { world, leases, notices, exempt, locals, view, pulse, stop, task }
    }

    /// An agent that has settled with the leases of `nodes`.
    async fn settled(nodes: impl IntoIterator<Item = u8>) -> Self {
        let agent = Self::start(World { next_hops: hops(), ..World::default() });
        agent.lease(LeaseEvent::Snapshot(nodes.into_iter().map(lease).collect())).await;
        agent
    }

    /// Reports an event and lets a second pass.
    async fn lease(&self, event: LeaseEvent) {
        self.leases.send(event).unwrap();
        sleep(Duration::from_secs(1)).await;
    }

    /// Gives notice of a change and lets a second pass.
    async fn notice(&self, changed: Changed) {
        self.notices.send(changed).unwrap();
        sleep(Duration::from_secs(1)).await;
    }

    async fn state(&self) -> State {
        self.world.0.lock().await.datapath.state.clone()
    }

    async fn observations(&self) -> u64 {
        self.world.0.lock().await.datapath.observations
    }

    /// Changes made or tried since this was last asked.
    async fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.world.0.lock().await.datapath.log)
    }
}

fn local() -> Local {
    Local {
        stacks: BTreeMap::from([(Family::V4, stack())]),
        underlay_ifindex: 2,
        backend: AnyBackend::new(Vxlan { options: VxlanOptions::default(), macs: BTreeMap::new() }),
        objects: Objects::new(),
        direct_routing: false,
        fast_path: FastPath::All,
        xdp: crate::plan::Xdp::OFF,
        flow_refresh: FlowRefresh::of(Duration::from_secs(30)),
        source_ports: 32768..60999,
    }
}

fn stack() -> LocalStack {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    LocalStack {
        network: "10.0.0.0/8".parse().unwrap(),
        subnet: "10.1.0.0/24".parse().unwrap(),
        public_ip: address,
        address,
        device: Some(device()),
    }
}

fn device() -> VxlanDevice {
    VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        port: 8472,
        underlay_ifindex: 2,
        local: Ipv4Addr::new(192, 0, 2, 1).into(),
        mac: Mac([0x0e, 0, 0, 0, 0, 0xff]),
        mtu: 1450,
        learning: false,
        gbp: false,
    }
}

fn public_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, n)
}

fn lease(n: u8) -> Lease {
    let data = VxlanData { vni: 1, vtep_mac: Some(Mac([0x0e, 0, 0, 0, 1, n])) };
    Lease {
        subnet: LeaseSubnet { v4: Some(format!("10.2.{n}.0/24").parse().unwrap()), v6: None },
        attrs: LeaseAttrs::vxlan_v4(public_ip(n), data),
        expiration: Some(SystemTime::UNIX_EPOCH),
        made: None,
        node: None,
    }
}

fn hops() -> BTreeMap<IpAddr, NextHop> {
    (0..=255).map(|n| (public_ip(n).into(), hop(1500))).collect()
}

fn hop(mtu: u32) -> NextHop {
    NextHop { ifindex: 2, address: Ipv4Addr::new(192, 0, 2, 254).into(), mtu }
}

fn desired(nodes: impl IntoIterator<Item = u8>, next_hops: &BTreeMap<IpAddr, NextHop>) -> State {
    desired_as(&local(), nodes, next_hops)
}

fn desired_as(
    local: &Local,
    nodes: impl IntoIterator<Item = u8>,
    next_hops: &BTreeMap<IpAddr, NextHop>,
) -> State {
    let leases = nodes.into_iter().map(lease).map(|lease| (lease.subnet, lease)).collect();
    let next_hops: NextHops = next_hops.iter().map(|(to, hop)| (*to, Ok(*hop))).collect();
    let inputs = Inputs {
        policies: &[],
        local,
        leases: &leases,
        next_hops: &next_hops,
        pods: &Pods::default(),
        overlays: &BTreeMap::from([(Family::V4, OVERLAY)]),
        foreign: &Foreign::default(),
        exemptions: &Exemptions::default(),
    };
    plan(&inputs).state
}

const OVERLAY_CHANGED: Changed = Changed {
    overlay: true,
    links: false,
    addresses: false,
    routes: false,
    hooks: false,
    forwarding: false,
    external_up: false,
    overrun: false,
};

#[tokio::test(start_paused = true)]
async fn nothing_is_touched_before_the_first_snapshot() {
    let agent = Agent::start(World::default());
    agent.notice(Changed::EVERYTHING).await;
    agent.lease(LeaseEvent::Upsert(lease(2))).await;
    sleep(FULL * 3).await;
    assert_eq!(agent.changes().await, []);
    assert!(!agent.view.borrow().synced);
    agent.lease(LeaseEvent::Snapshot(vec![])).await;
    assert_eq!(agent.state().await, desired([], &BTreeMap::new()));
    assert!(agent.view.borrow().synced);
}

#[tokio::test(start_paused = true)]
async fn peers_join_and_leave() {
    let agent = Agent::settled([2, 3]).await;
    assert_eq!(agent.state().await, desired([2, 3], &hops()));
    agent.lease(LeaseEvent::Upsert(lease(4))).await;
    agent.lease(LeaseEvent::Remove(lease(2).subnet)).await;
    assert_eq!(agent.state().await, desired([3, 4], &hops()));
    agent.lease(LeaseEvent::Snapshot(vec![lease(5)])).await;
    assert_eq!(agent.state().await, desired([5], &hops()));
    let summary = agent.view.borrow().clone();
    assert_eq!((summary.peers, summary.pending, summary.last_error), (1, 0, None));
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_device_is_hooked_as_soon_as_it_exists() {
    let agent = Agent::start(World::default());
    agent.leases.send(LeaseEvent::Snapshot(vec![])).unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(agent.state().await.bpf.hooks.contains(&(OVERLAY, Hook::ToOverlay)));
}

#[tokio::test(start_paused = true)]
async fn exemptions_follow_the_operator() {
    let agent = Agent::settled([2]).await;
    let exempt = || async {
        let keys = agent.state().await.bpf.v4.exempt.into_keys();
        keys.map(|key| key.network).collect::<Vec<_>>()
    };
    assert_eq!(exempt().await, [[10, 0, 0, 0]]);
    let prefixes = BTreeSet::from(["203.0.113.0/24".parse().unwrap()]);
    agent.exempt.send_replace(Exemptions { prefixes, nodes: true });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(exempt().await, [[10, 0, 0, 0], [203, 0, 113, 0], public_ip(2).octets()]);
    agent.lease(LeaseEvent::Remove(lease(2).subnet)).await;
    agent.exempt.send_modify(|exemptions| exemptions.prefixes.clear());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(exempt().await, [[10, 0, 0, 0]]);
}

#[tokio::test(start_paused = true)]
async fn next_hops_follow_the_routes() {
    let agent = Agent::settled([2]).await;
    let routes = Changed { routes: true, ..Changed::default() };
    let kind_and_mtu = || async {
        let peer = agent.state().await.bpf.v4.routes.values().next().copied().unwrap();
        (peer.kind, peer.mtu)
    };
    assert_eq!(kind_and_mtu().await, (RouteKind::Vxlan, 1500));
    agent.world.0.lock().await.next_hops.insert(public_ip(2).into(), hop(1400));
    agent.notice(routes).await;
    assert_eq!(kind_and_mtu().await, (RouteKind::Vxlan, 1400));
    agent.world.0.lock().await.next_hops.clear();
    agent.notice(routes).await;
    assert_eq!(kind_and_mtu().await, (RouteKind::Kernel, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_at_the_end() {
    let agent = Agent::settled([2, 3]).await;
    agent.changes().await;
    let world = agent.world.clone();
    agent.stop.send(()).unwrap();
    agent.task.await.unwrap();
    let world = world.0.lock().await;
    assert_eq!(world.datapath.log, []);
    assert_eq!(world.datapath.state, desired([2, 3], &hops()));
}
