//! Pods whose address a program has taken out of the map, because it was announced from somewhere else.

use super::*;

const ADDRESS: [u8; 4] = [10, 1, 0, 9];

fn pods(ifindex: u32) -> Pods {
    let place = PodPlace { ifindex, mtu: 1500, mac: [2; 6], gateway_mac: [4; 6] };
    let places = BTreeMap::from([(Ipv4Addr::from(ADDRESS).into(), place)]);
    Pods { links: BTreeSet::from([8, 9]), places, ..Pods::default() }
}

/// Neither a look nor a pass that has other reasons puts back where the address was: the kernel is asked first.
#[tokio::test(start_paused = true)]
async fn an_address_that_has_moved_is_looked_for() {
    let local = Local { fast_path: FastPath::Flow, ..local() };
    let agent = Agent::start_as(local, World { next_hops: hops(), pods: pods(8), ..World::default() });
    agent.lease(LeaseEvent::Snapshot(vec![lease(2)])).await;
    let place = async || agent.state().await.bpf.v4.pods.get(&ADDRESS).map(|pod| pod.ifindex);
    assert_eq!(place().await, Some(8));
    for (ifindex, noticed) in [(9, false), (8, true)] {
        agent.changes().await;
        {
            let mut world = agent.world.0.lock().await;
            world.pods = pods(ifindex);
            world.datapath.state.bpf.v4.pods.clear();
        }
        if noticed {
            agent.notices.send(OVERLAY_CHANGED).unwrap();
        }
        sleep(Duration::from_secs(2)).await;
        assert_eq!(place().await, Some(ifindex));
        let made = agent.changes().await;
        assert!(!format!("{made:?}").contains(&format!("ifindex: {}", 17 - ifindex)), "{made:?}");
    }
}
