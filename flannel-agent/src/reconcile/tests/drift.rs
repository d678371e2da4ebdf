//! What others change, and what nobody has.

use super::*;

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
            bpf.v4
                .pods
                .insert([10, 1, 0, 9], PodPlace { ifindex: 9, mtu: 1500, mac: [2; 6], gateway_mac: [4; 6] });
        },
    ];
    for damage in damages {
        damage(&mut agent.world.0.lock().await.datapath.state.bpf);
        assert_ne!(agent.state().await, whole);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(agent.state().await, whole);
    }
}

/// An appliance without a lease, say, that an administrator has made known to the kernel.
#[tokio::test(start_paused = true)]
async fn what_others_add_beside_the_peers_stays_until_the_next_start_and_what_they_change_of_peers_does_not()
{
    let agent = Agent::settled([2, 3]).await;
    let whole = agent.state().await;
    let foreign = desired([9], &hops());
    {
        let state = &mut agent.world.0.lock().await.datapath.state;
        state.routes.extend(foreign.routes.clone());
        state.neighbours.extend(foreign.neighbours.clone());
        state.fdb.extend(foreign.fdb.clone());
        state.routes.values_mut().for_each(|via| *via = "10.9.0.1".parse().unwrap());
    }
    agent.notice(OVERLAY_CHANGED).await;
    let found = agent.state().await;
    for (subnet, via) in &whole.routes {
        assert_eq!(found.routes.get(subnet), Some(via));
    }
    assert_eq!(found.routes.len(), whole.routes.len() + 1);
    assert_eq!(found.neighbours.len(), whole.neighbours.len() + 1);
    assert_eq!(found.fdb.len(), whole.fdb.len() + 1);
    // A lease that comes and goes takes along what has become its own.
    agent.lease(LeaseEvent::Upsert(lease(9))).await;
    agent.lease(LeaseEvent::Remove(lease(9).subnet)).await;
    assert_eq!(agent.state().await, whole);
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
