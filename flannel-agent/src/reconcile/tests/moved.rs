//! The node itself changes.

use super::*;

/// This node with another address of its external interface, or that made anew.
fn moved(ifindex: u32, address: Ipv4Addr) -> Local {
    let address = IpAddr::V4(address);
    let device = VxlanDevice { underlay_ifindex: ifindex, local: address, ..device() };
    let stack = LocalStack { public_ip: address, address, device: Some(device), ..stack() };
    Local { stacks: BTreeMap::from([(Family::V4, stack)]), underlay_ifindex: ifindex, ..local() }
}

#[tokio::test(start_paused = true)]
async fn the_device_moves_with_the_node_and_takes_its_peers_along() {
    let agent = Agent::settled([2, 3]).await;
    let mac = agent.state().await.devices[&Family::V4].mac;
    agent.changes().await;
    for now in [moved(2, Ipv4Addr::new(192, 0, 2, 77)), moved(9, Ipv4Addr::new(192, 0, 2, 77)), local()] {
        agent.locals.send(now.clone()).unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(agent.state().await, desired_as(&now, [2, 3], &hops()));
        assert_eq!(agent.state().await.devices[&Family::V4].mac, mac);
        let changes = agent.changes().await;
        let devices = changes.iter().filter(|change| matches!(change, Change::PutDevice(_))).count();
        assert_eq!(devices, 1, "{changes:#?}");
        let hooks = agent.state().await.bpf.hooks;
        assert!(hooks.contains(&(now.underlay_ifindex, Hook::FromUnderlay)), "{hooks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_mtu_takes_no_new_device() {
    let agent = Agent::settled([2, 3]).await;
    agent.changes().await;
    let stack = LocalStack { device: Some(VxlanDevice { mtu: 1350, ..device() }), ..stack() };
    let now = Local { stacks: BTreeMap::from([(Family::V4, stack)]), ..local() };
    agent.locals.send(now.clone()).unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(agent.state().await, desired_as(&now, [2, 3], &hops()));
    let changes = agent.changes().await;
    assert!(matches!(changes[..], [Change::PutDevice(_)]), "{changes:?}");
}

#[tokio::test(start_paused = true)]
async fn what_failed_on_the_old_interface_is_tried_on_the_new_at_once() {
    let agent = Agent::settled([]).await;
    agent.world.0.lock().await.datapath.failures.insert(ObjectKey::Device(Family::V4), u32::MAX);
    agent.world.0.lock().await.datapath.state = State::default();
    agent.notice(OVERLAY_CHANGED).await;
    sleep(Duration::from_secs(300)).await;
    agent.world.0.lock().await.datapath.failures.clear();
    agent.locals.send(moved(9, Ipv4Addr::new(192, 0, 2, 1))).unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(agent.state().await.devices[&Family::V4].underlay_ifindex, 9);
}

#[tokio::test(start_paused = true)]
async fn next_hops_outlast_our_address_but_not_their_interface() {
    let agent = Agent::settled([2]).await;
    let kind = || async { agent.state().await.bpf.v4.routes.values().next().copied().unwrap().kind };
    let world = agent.world.clone();
    let set = async |unaddressed, up, next_hops: BTreeMap<IpAddr, NextHop>| {
        let mut world = world.0.lock().await;
        world.unaddressed = unaddressed;
        world.underlay = BTreeSet::from([(2, 1500, up)]);
        world.next_hops = next_hops;
    };
    let addresses = Changed { addresses: true, ..Changed::default() };
    set(true, true, BTreeMap::new()).await;
    agent.notice(addresses).await;
    assert_eq!(kind().await, RouteKind::Vxlan);
    set(true, false, BTreeMap::new()).await;
    agent.notice(Changed { links: true, ..Changed::default() }).await;
    assert_eq!(kind().await, RouteKind::Kernel);
    set(false, true, hops()).await;
    agent.notice(addresses).await;
    assert_eq!(kind().await, RouteKind::Vxlan);
}
