//! Leases that are taken one by one.

use super::*;

/// Long enough for a lease, too short for a pass.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Agent {
    async fn tell(&self, event: LeaseEvent) {
        self.leases.send(event).unwrap();
        sleep(AT_ONCE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_its_own_is_usable_at_once_and_without_a_look_at_the_others() {
    let agent = Agent::settled([2, 3]).await;
    let before = agent.observations().await;
    agent.tell(LeaseEvent::Upsert(lease(4))).await;
    assert_eq!(agent.state().await, desired([2, 3, 4], &hops()));
    assert_eq!(agent.view.borrow().peers, 3);
    agent.tell(LeaseEvent::Remove(lease(2).subnet)).await;
    assert_eq!(agent.state().await, desired([3, 4], &hops()));
    let mut moved = lease(3);
    moved.attrs = LeaseAttrs::vxlan_v4(
        public_ip(77),
        VxlanData { vni: 1, vtep_mac: Some(Mac([0x0e, 0, 0, 0, 1, 77])) },
    );
    agent.tell(LeaseEvent::Upsert(moved)).await;
    let state = agent.state().await;
    assert_eq!(state.fdb.get(&(Family::V4, Mac([0x0e, 0, 0, 0, 1, 77]))), Some(&public_ip(77).into()));
    assert_eq!((state.fdb.len(), state.bpf.v4.vteps.len()), (2, 2));
    assert_eq!(agent.observations().await, before);
    // What the pass that follows some time finds is what there should be.
    agent.changes().await;
    sleep(FULL * 2).await;
    assert_eq!(agent.changes().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_stands_in_the_way_of_waits_for_a_pass() {
    let agent = Agent::settled([2, 3]).await;
    let mut rival = lease(4);
    rival.attrs =
        LeaseAttrs::vxlan_v4(public_ip(4), VxlanData { vni: 1, vtep_mac: Some(Mac([0x0e, 0, 0, 0, 1, 3])) });
    rival.expiration = None;
    agent.tell(LeaseEvent::Upsert(rival.clone())).await;
    assert_eq!(agent.state().await, desired([2, 3], &hops()));
    sleep(Duration::from_secs(1)).await;
    // Of two with one MAC the one that ends last is followed.
    assert_eq!(
        agent.state().await.fdb.get(&(Family::V4, Mac([0x0e, 0, 0, 0, 1, 3]))),
        Some(&public_ip(4).into())
    );
    agent.lease(LeaseEvent::Remove(rival.subnet)).await;
    assert_eq!(agent.state().await, desired([2, 3], &hops()));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_leases_is_one_pass() {
    let agent = Agent::settled([2]).await;
    let before = agent.observations().await;
    for n in 3..=250 {
        agent.leases.send(LeaseEvent::Upsert(lease(n))).unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(agent.state().await, desired(2..=250, &hops()));
    assert_eq!(agent.observations().await, before + 1);
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_storm_the_log_ends_with_the_number_of_peers_there_are() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let lines = || {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("peers changed")).map(str::to_owned).collect::<Vec<_>>()
    };
    let agent = Agent::settled([2]).await;
    // Few need no summary.
    agent.tell(LeaseEvent::Upsert(lease(3))).await;
    sleep(TOTAL * 2).await;
    assert_eq!(lines(), [] as [&str; 0]);
    for n in 4..=250 {
        agent.leases.send(LeaseEvent::Upsert(lease(n))).unwrap();
    }
    sleep(TOTAL * 2).await;
    assert!(lines().last().unwrap().ends_with(" peers=249"), "{:#?}", lines());
    // Each is taken by itself, and says so itself.
    for n in 3..=250 {
        agent.leases.send(LeaseEvent::Remove(lease(n).subnet)).unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    sleep(TOTAL * 2).await;
    assert!(lines().last().unwrap().ends_with(" peers=1"), "{:#?}", lines());
    assert_eq!(agent.view.borrow().peers, 1);
    // Then a single change is logged by itself again.
    let logged = lines().len();
    agent.tell(LeaseEvent::Upsert(lease(3))).await;
    sleep(TOTAL * 2).await;
    assert_eq!(lines().len(), logged);
}

#[tokio::test(start_paused = true)]
async fn what_fails_of_a_lease_is_tried_again() {
    let agent = Agent::settled([2, 3]).await;
    let key = ObjectKey::Route("10.2.4.0/24".parse().unwrap());
    agent.world.0.lock().await.datapath.failures.insert(key, 2);
    agent.tell(LeaseEvent::Upsert(lease(4))).await;
    assert_eq!(agent.view.borrow().pending, 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(agent.view.borrow().pending, 0);
    assert_eq!(agent.state().await, desired([2, 3, 4], &hops()));
}
