//! Routes without a tunnel.

use ipnetwork::IpNetwork;

use super::*;
use crate::plan::DirectRoute;

fn host_gw() -> Local {
    let stack = LocalStack { device: None, ..stack() };
    let stacks = BTreeMap::from([(Family::V4, stack)]);
    Local { stacks, backend: AnyBackend::new(HostGw), fast_path: FastPath::Off, ..local() }
}

fn direct_lease(n: u8) -> Lease {
    Lease { attrs: LeaseAttrs::plain_v4(public_ip(n), "host-gw"), ..lease(n) }
}

fn direct(n: u8) -> (IpNetwork, DirectRoute) {
    (lease(n).subnet.of(Family::V4).unwrap(), DirectRoute { ifindex: 2, via: public_ip(n).into() })
}

#[tokio::test(start_paused = true)]
async fn direct_routes_follow_the_leases_and_are_repaired() {
    // One of a peer that left while nobody looked.
    let stale = State { direct_routes: BTreeMap::from([direct(9)]), ..State::default() };
    let world = World { datapath: MemoryDatapath::holding(stale), ..World::default() };
    let agent = Agent::start_as(host_gw(), world);
    agent.lease(LeaseEvent::Snapshot(vec![direct_lease(2), lease(3), direct_lease(4)])).await;
    let whole = State { direct_routes: BTreeMap::from([direct(2), direct(4)]), ..State::default() };
    assert_eq!(agent.state().await, whole);
    assert_eq!(agent.view.borrow().peers, 2);

    agent.world.0.lock().await.datapath.state = State::default();
    agent.notice(Changed { routes: true, ..Changed::default() }).await;
    assert_eq!(agent.state().await, whole);

    // The kernel drops the routes of an interface that goes down without a word.
    agent.world.0.lock().await.datapath.state = State::default();
    agent.world.0.lock().await.underlay.insert((2, 1500, true));
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    assert_eq!(agent.state().await, whole);

    agent.lease(LeaseEvent::Remove(lease(2).subnet)).await;
    assert_eq!(agent.state().await.direct_routes, BTreeMap::from([direct(4)]));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_off_the_link_stays_pending_alone_and_is_tried_when_addresses_change() {
    let agent = Agent::start_as(host_gw(), World::default());
    let key = ObjectKey::DirectRoute(direct(2).0);
    agent.world.0.lock().await.datapath.failures.insert(key, u32::MAX);
    agent.lease(LeaseEvent::Snapshot(vec![direct_lease(2), direct_lease(3)])).await;
    assert_eq!(agent.state().await.direct_routes, BTreeMap::from([direct(3)]));
    assert_eq!(agent.view.borrow().pending, 1);
    sleep(Duration::from_secs(300)).await;
    agent.world.0.lock().await.datapath.failures.clear();
    agent.notices.send(Changed { addresses: true, ..Changed::default() }).unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(agent.state().await.direct_routes, BTreeMap::from([direct(2), direct(3)]));
}
