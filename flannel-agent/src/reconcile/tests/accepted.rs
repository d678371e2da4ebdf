//! The kernel forwards by something else: what it has accepted before counts no more.

use super::{
    schedule::{ACCEPTANCE_BURST, ACCEPTANCE_REST},
    *,
};

const FORWARDING: Changed = Changed { forwarding: true, ..NOTHING };
const NOTHING: Changed = Changed { overlay: false, ..OVERLAY_CHANGED };

async fn ends(agent: &Agent) -> u64 {
    agent.world.0.lock().await.datapath.acceptance_ends
}

#[tokio::test(start_paused = true)]
async fn acceptance_ends_once_at_the_start_and_then_with_what_decides_about_it() {
    let agent = Agent::settled([2, 3]).await;
    assert_eq!(ends(&agent).await, 1, "what happened before is not known");
    agent.notice(Changed { routes: true, hooks: true, addresses: true, links: true, ..NOTHING }).await;
    agent.lease(LeaseEvent::Upsert(lease(4))).await;
    sleep(FULL * 3).await;
    assert_eq!(ends(&agent).await, 1);
    let read = agent.observations().await;
    agent.notices.send(FORWARDING).unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(ends(&agent).await, 2, "at once");
    assert_eq!(agent.observations().await, read, "and nothing is read for it");
    agent.notice(Changed { overrun: true, ..NOTHING }).await;
    assert_eq!(ends(&agent).await, 3, "whatever was missed");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_notices_ends_it_twice_a_second_and_its_last_one_counts() {
    let agent = Agent::settled([2, 3]).await;
    let before = ends(&agent).await;
    for _ in 0..1000 {
        agent.notices.send(FORWARDING).unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    let stormed = ends(&agent).await - before;
    let most = 10_000 / ACCEPTANCE_REST.as_millis() as u64 + u64::from(ACCEPTANCE_BURST) + 1;
    assert!((most - 2..=most).contains(&stormed), "{stormed} in ten seconds");
    sleep(ACCEPTANCE_REST).await;
    assert!(ends(&agent).await - before > stormed.min(most - 1), "the last one");
}

#[tokio::test(start_paused = true)]
async fn after_a_calm_a_few_changes_are_obeyed_at_once() {
    let agent = Agent::settled([2, 3]).await;
    sleep(FULL).await;
    let before = ends(&agent).await;
    for end in 1..=4 {
        agent.notices.send(FORWARDING).unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(ends(&agent).await, before + end);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_fails_is_tried_again() {
    let agent = Agent::settled([2]).await;
    let before = ends(&agent).await;
    agent.world.0.lock().await.datapath.acceptance_failures = 3;
    agent.notices.send(FORWARDING).unwrap();
    sleep(ACCEPTANCE_REST * 4).await;
    assert_eq!(ends(&agent).await, before + 1);
}
