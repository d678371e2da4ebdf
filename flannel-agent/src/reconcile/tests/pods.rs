//! Pods come, and their addresses after them.

use super::*;

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
    let place = PodPlace { ifindex: 40, mtu: 1500, mac: [2; 6], gateway_mac: [4; 6] };
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
        let place = PodPlace { ifindex: 40 + turn, mtu: 1500, mac: [2; 6], gateway_mac: [4; 6] };
        agent.world.0.lock().await.pods.places = BTreeMap::from([(address, place)]);
        agent.notices.send(Changed { links: true, ..Changed::default() }).unwrap();
        sleep(Duration::from_millis(7)).await;
    }
    let surveys = agent.world.0.lock().await.surveys - before;
    let fifth = TIME.div_duration_f64(SURVEY * 5) as u32;
    assert!((fifth / 2..=fifth + 2).contains(&surveys), "{surveys} surveys, a fifth are {fifth}");
}
