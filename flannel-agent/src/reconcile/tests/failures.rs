//! What cannot be done, or read, is tried again.

use super::*;

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
