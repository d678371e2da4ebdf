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
mod direct;
mod moved;
mod patched;

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

    async fn survey(&mut self, _: &Local) -> Result<Surroundings, NetlinkError> {
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
async fn drift_is_repaired_on_notice_and_without_one_at_the_next_full_look() {
    let agent = Agent::settled([2, 3]).await;
    let whole = agent.state().await;
    agent.world.0.lock().await.datapath.state = State::default();
    agent.notice(OVERLAY_CHANGED).await;
    assert_eq!(agent.state().await, whole);

    agent.world.0.lock().await.datapath.state.routes.clear();
    sleep(FULL).await;
    assert_eq!(agent.state().await, whole);
}

/// Nobody gives notice of these: they are found within some two seconds all the same.
#[tokio::test(start_paused = true)]
async fn what_is_lost_of_maps_and_programs_comes_back_at_once() {
    let agent = Agent::settled([2, 3]).await;
    let whole = agent.state().await;
    let damages: [fn(&mut BpfState); 7] = [
        |bpf| bpf.v4.config = None,
        |bpf| bpf.v4.config.iter_mut().for_each(|config| config.port = 1),
        |bpf| bpf.v4.routes.clear(),
        |bpf| bpf.v4.vteps.clear(),
        |bpf| bpf.v4.exempt.clear(),
        |bpf| bpf.hooks.clear(),
        |bpf| {
            bpf.v4.pods.insert([10, 1, 0, 9], PodPlace { ifindex: 9, mac: [2; 6], gateway_mac: [4; 6] });
        },
    ];
    for damage in damages {
        damage(&mut agent.world.0.lock().await.datapath.state.bpf);
        assert_ne!(agent.state().await, whole);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(agent.state().await, whole);
    }
}

#[tokio::test(start_paused = true)]
async fn looks_at_maps_and_programs_are_not_passes() {
    let agent = Agent::settled([2, 3]).await;
    let before = (agent.observations().await, agent.view.borrow().passes);
    sleep(Duration::from_secs(25)).await;
    assert_eq!((agent.observations().await, agent.view.borrow().passes), before);
    let looks = agent.world.0.lock().await.datapath.looks;
    assert!((20..30).contains(&looks), "{looks} looks in half a minute");
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
async fn its_own_changes_do_not_keep_it_busy() {
    let agent = Agent::settled(2..=200).await;
    let before = agent.observations().await;
    agent.changes().await;
    for _ in 0..1000 {
        agent.notices.send(OVERLAY_CHANGED).unwrap();
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(agent.observations().await, before + 1, "a burst of notices is one pass");
    assert_eq!(agent.changes().await, []);
    sleep(FULL * 4).await;
    assert!(agent.observations().await <= before + 6);
}

#[tokio::test(start_paused = true)]
async fn renewals_and_foreign_changes_need_no_look_at_the_kernel() {
    let agent = Agent::settled([2, 3]).await;
    let before = agent.observations().await;
    let mut renewed = lease(2);
    renewed.expiration = Some(SystemTime::now());
    agent.lease(LeaseEvent::Upsert(renewed)).await;
    agent.notice(Changed { links: true, addresses: true, routes: true, ..Changed::default() }).await;
    assert_eq!(agent.observations().await, before);
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
async fn pods_are_hooked_as_they_appear() {
    let agent = Agent::settled([2]).await;
    agent.world.0.lock().await.pods.links.insert(40);
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    let hooks = agent.state().await.bpf.hooks;
    assert!(hooks.contains(&(40, Hook::FromPod)), "{hooks:?}");
    agent.world.0.lock().await.pods.links.clear();
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    assert!(!agent.state().await.bpf.hooks.contains(&(40, Hook::FromPod)));
}

#[tokio::test(start_paused = true)]
async fn the_address_of_a_new_pod_is_found_without_notice() {
    let agent = Agent::settled([2]).await;
    agent.world.0.lock().await.pods.links.insert(40);
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    let place = PodPlace { ifindex: 40, mac: [2; 6], gateway_mac: [4; 6] };
    agent.world.0.lock().await.pods.places.insert(Ipv4Addr::new(10, 1, 0, 5).into(), place);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(agent.state().await.bpf.v4.pods, BTreeMap::from([([10, 1, 0, 5], place)]));

    // One that never gets an address is not looked for at any price.
    agent.world.0.lock().await.pods.links.insert(41);
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    sleep(FULL * 10).await;
    assert!(agent.world.0.lock().await.surveys < 40);
}

/// A pod that may change its interface can raise notices, lose its address and get it again, without an end.
#[tokio::test(start_paused = true)]
async fn a_pod_that_never_keeps_still_has_a_fifth_of_the_time_and_no_more() {
    const TIME: Duration = Duration::from_secs(60);
    const SURVEY: Duration = Duration::from_millis(50);
    let agent = Agent::settled([2]).await;
    agent.world.0.lock().await.survey = SURVEY;
    agent.world.0.lock().await.pods.links.extend([40, 41, 42]);
    let before = agent.world.0.lock().await.surveys;
    let start = Instant::now();
    let mut turn = 0;
    while start.elapsed() < TIME {
        turn = (turn + 1) % 3;
        let address = Ipv4Addr::new(10, 1, 0, 5).into();
        let place = PodPlace { ifindex: 40 + turn, mac: [2; 6], gateway_mac: [4; 6] };
        agent.world.0.lock().await.pods.places = BTreeMap::from([(address, place)]);
        agent.notices.send(Changed { links: true, ..Changed::default() }).unwrap();
        sleep(Duration::from_millis(7)).await;
    }
    let surveys = agent.world.0.lock().await.surveys - before;
    let fifth = TIME.div_duration_f64(SURVEY * 5) as u32;
    assert!((fifth / 2..=fifth + 2).contains(&surveys), "{surveys} surveys, a fifth are {fifth}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_change_is_retried_with_growing_pauses_while_the_rest_go_on() {
    let agent = Agent::settled([]).await;
    let key = ObjectKey::Route("10.2.2.0/24".parse().unwrap());
    agent.world.0.lock().await.datapath.failures.insert(key, u32::MAX);
    agent.changes().await;
    agent.lease(LeaseEvent::Upsert(lease(2))).await;
    agent.lease(LeaseEvent::Upsert(lease(3))).await;
    let state = agent.state().await;
    assert!(state.routes.contains_key(&"10.2.3.0/24".parse().unwrap()));
    assert_eq!(state.neighbours.len(), 2);
    let summary = agent.view.borrow().clone();
    assert_eq!(summary.pending, 1);
    let error = summary.last_error.unwrap();
    assert_eq!(error, "cannot route 10.2.2.0/24 via 10.2.2.0: injected failure");

    sleep(Duration::from_secs(600)).await;
    let tries = agent.changes().await.iter().filter(|change| change.key() == key).count();
    assert!((25..40).contains(&tries), "{tries} tries in ten minutes");

    agent.world.0.lock().await.datapath.failures.clear();
    sleep(Duration::from_secs(31)).await;
    assert_eq!(agent.state().await, desired([2, 3], &hops()));
    let summary = agent.view.borrow().clone();
    assert_eq!((summary.pending, summary.last_error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_device_is_made_as_soon_as_it_is_there() {
    let agent = Agent::start(World::default());
    agent.world.0.lock().await.datapath.failures.insert(ObjectKey::Device(Family::V4), 8);
    agent.lease(LeaseEvent::Snapshot(vec![lease(2), lease(3)])).await;
    assert_eq!(agent.state().await.devices, BTreeMap::new());
    let error = agent.view.borrow().last_error.clone().unwrap();
    assert!(error.starts_with("cannot set up device flannel.1"), "{error}");
    while agent.state().await.devices.is_empty() {
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(agent.state().await, desired([2, 3], &BTreeMap::new()));
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_read_is_left_as_it_is() {
    let agent = Agent::settled([2]).await;
    let before = agent.state().await;
    agent.world.0.lock().await.datapath.blind = 5;
    agent.changes().await;
    agent.lease(LeaseEvent::Remove(lease(2).subnet)).await;
    assert_eq!((agent.changes().await, agent.state().await), (vec![], before));
    let error = agent.view.borrow().last_error.clone().unwrap();
    assert!(error.starts_with("cannot read the state of the kernel"), "{error}");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(agent.state().await, desired([], &hops()));
    assert_eq!(agent.view.borrow().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_is_given_unless_a_pass_hangs() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let agent = Agent::start(World { next_hops: hops(), ..World::default() });
    timeout(PATIENCE, agent.pulse.beat()).await.expect("it waits for the first snapshot");
    agent.lease(LeaseEvent::Snapshot(vec![lease(2)])).await;
    timeout(PATIENCE, agent.pulse.beat()).await.expect("all is settled");
    // A kernel that does not answer.
    let world = agent.world.0.clone().lock_owned().await;
    agent.notices.send(Changed::EVERYTHING).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(timeout(PATIENCE, agent.pulse.beat()).await.is_err(), "it hangs");
    drop(world);
    timeout(PATIENCE, agent.pulse.beat()).await.expect("it goes on");
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

fn any_event() -> impl Strategy<Value = LeaseEvent> {
    prop_oneof![
        4 => (2..9u8).prop_map(|n| LeaseEvent::Upsert(lease(n))),
        3 => (2..9u8).prop_map(|n| LeaseEvent::Remove(lease(n).subnet)),
        1 => prop::collection::btree_set(2..9u8, 0..6)
            .prop_map(|nodes| LeaseEvent::Snapshot(nodes.into_iter().map(lease).collect())),
    ]
}

fn any_key() -> impl Strategy<Value = ObjectKey> {
    let subnet = |n| format!("10.2.{n}.0/24").parse().unwrap();
    prop_oneof![
        Just(ObjectKey::Device(Family::V4)),
        Just(ObjectKey::Entry(AnyEntryKey::V4(EntryKey::Config))),
        (2..9u8).prop_map(move |n| ObjectKey::Route(subnet(n))),
        (2..9u8).prop_map(|n| ObjectKey::Neighbour(Ipv4Addr::new(10, 2, n, 0).into())),
        (2..9u8).prop_map(|n| ObjectKey::Fdb(Family::V4, Mac([0x0e, 0, 0, 0, 1, n]))),
        (2..9u8).prop_map(|n| ObjectKey::Entry(AnyEntryKey::V4(EntryKey::Vtep(public_ip(n).octets())))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens and whatever fails on the way, in the end the kernel is as leased.
    #[test]
    fn every_story_ends_well(
        story in prop::collection::vec((any_event(), 0..200u64), 0..12),
        failures in prop::collection::btree_map(any_key(), 1..4u32, 0..4),
        blind in 0..3u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let datapath = MemoryDatapath { failures, blind, ..MemoryDatapath::default() };
            let agent = Agent::start(World { datapath, next_hops: hops(), ..World::default() });
            let mut leases = Leases::new();
            let first = (LeaseEvent::Snapshot(vec![lease(2)]), 0);
            for (event, pause) in [first].into_iter().chain(story) {
                lease::apply(&mut leases, event.clone());
                agent.leases.send(event).unwrap();
                sleep(Duration::from_millis(pause)).await;
            }
            sleep(Duration::from_secs(60)).await;
            let nodes = leases.keys().map(|subnet| subnet.v4.unwrap().network().octets()[2]);
            assert_eq!(agent.state().await, desired(nodes, &hops()));
            assert_eq!(agent.view.borrow().pending, 0);
        });
    }
}
