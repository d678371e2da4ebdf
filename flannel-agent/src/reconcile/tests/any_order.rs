//! Whatever happens in whichever order, the kernel ends up as planned.

use super::*;

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
