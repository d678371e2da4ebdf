use std::time::Instant;

use flannel_agent::lease::etcd::{Inherited, LeaseTiming};

use super::{proxy::Proxy, *};

const OWN: &str = "10.3.1.0/24";

async fn begun(etcd: &Etcd) -> (EtcdStore, flannel_agent::lease::etcd::EtcdWatch) {
    let store = store(etcd);
    let mut watch = store.watch(subnet(OWN));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    (store, watch)
}

#[tokio::test]
async fn watch_lease_added() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.1.0-24"), &node(1).to_json()).unwrap();
    let (_store, mut watch) = begun(&etcd).await;
    etcd.put(&key("10.3.1.0-24"), &node(1).to_json()).unwrap();
    silent(&mut watch).await;
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
    silent(&mut watch).await;
}

/// Of two leases the older one is told, however often it is written.
#[tokio::test]
async fn when_a_lease_was_made() {
    let etcd = Etcd::start().unwrap();
    let (_store, mut watch) = begun(&etcd).await;
    let mut made = Vec::new();
    for (name, number) in [("10.3.2.0-24", 2), ("10.3.3.0-24", 3), ("10.3.2.0-24", 2)] {
        etcd.put(&key(name), &node(number).to_json()).unwrap();
        let event = tokio::time::timeout(SOON, watch.next()).await.unwrap();
        let LeaseEvent::Upsert(lease) = event else { panic!("{event:?}") };
        made.push(lease.made.unwrap());
    }
    assert!(made[0] < made[1] && made[2] == made[0], "{made:?}");
}

#[tokio::test]
async fn watch_lease_removed() {
    let etcd = Etcd::start().unwrap();
    let (_store, mut watch) = begun(&etcd).await;
    etcd.put_for(3, &key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")), "expired");
    silent(&mut watch).await;
}

#[tokio::test]
async fn complete_lease() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    let mut watch = store(&etcd).watch(subnet(OWN));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.2.0/24", 2)]));
    etcd.put(&key("10.3.2.0-24"), &node(3).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 3)), "renewed, changed");
    etcd.delete(&key("10.3.2.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")));
}

/// The prefix has no slash at its end: neither has upstream's.
#[tokio::test]
async fn keys_beside_the_leases_are_leases_too() {
    let etcd = Etcd::start().unwrap();
    let (store, mut watch) = begun(&etcd).await;
    etcd.put(&format!("{PREFIX}/subnets-x/10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
    etcd.put(&format!("{PREFIX}/ebpf/10.3.3.0-24"), "anything").unwrap();
    silent(&mut watch).await;
    assert_eq!(store.undecodable(), 0);
}

/// Upstream's pattern is open at its left end.
#[tokio::test]
async fn a_second_key_of_a_subnet_neither_takes_it_nor_takes_it_away() {
    let etcd = Etcd::start().unwrap();
    let plain = key("10.3.2.0-24");
    etcd.put(&plain, &node(2).to_json()).unwrap();
    etcd.put(&key("x10.3.2.0-24"), &node(3).to_json()).unwrap();
    let mut watch = store(&etcd).watch(subnet(OWN));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.2.0/24", 2)]));
    etcd.put(&key("x10.3.2.0-24"), &node(4).to_json()).unwrap();
    silent(&mut watch).await;
    etcd.delete(&key("x10.3.2.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)), "still there");
    // Where there is no other, it is as good as any.
    etcd.put(&key("x10.3.2.0-24"), &node(4).to_json()).unwrap();
    etcd.delete(&plain).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 4)));
    etcd.put(&plain, &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
}

#[tokio::test]
async fn a_watch_resumes_after_etcd_restarts() {
    let mut etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    let mut watch = store(&etcd).watch(subnet(OWN));
    next(&mut watch).await;
    etcd.stop();
    silent(&mut watch).await;
    // Another agent writes, in the moment before we are back: it must not be missed.
    etcd.start_again().unwrap();
    etcd.put(&key("10.3.3.0-24"), &node(3).to_json()).unwrap();
    etcd.delete(&key("10.3.2.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.3.0/24", 3)));
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")));
    assert_eq!(log.count("watch resumed"), 1, "{}", log.text());
}

/// A gap that cannot be bridged: everything is read anew, also what only changed. Upstream does not apply that.
#[tokio::test]
async fn watch_subnets_recovers_from_compaction() {
    let mut etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    etcd.put(&key("10.3.5.0-24"), &node(5).to_json()).unwrap();
    let proxy = Proxy::to(&etcd).await;
    let endpoint = format!("http://{}", proxy.address);
    let store = EtcdStore::connect(&EtcdOptions { endpoints: endpoint, ..EtcdOptions::default() }).unwrap();
    let mut watch = store.watch(subnet(OWN));
    let before = vec![lease("10.3.2.0/24", 2), lease("10.3.5.0/24", 5)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(before));
    let proxy = proxy.cut();
    etcd.put(&key("10.3.5.0-24"), &node(55).to_json()).unwrap();
    etcd.put(&key("10.3.3.0-24"), &node(3).to_json()).unwrap();
    etcd.delete(&key("10.3.2.0-24")).unwrap();
    etcd.compact().unwrap();
    let _proxy = proxy.mend().await;
    let after = vec![lease("10.3.3.0/24", 3), lease("10.3.5.0/24", 55)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(after));
    etcd.put(&key("10.3.4.0-24"), &node(4).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.4.0/24", 4)), "and it goes on");
    etcd.stop();
}

/// The deletion is the last thing that happened, and what the history is compacted to: etcd as it was until 2025
/// tells a watch that begins there of neither.
#[tokio::test]
async fn a_deletion_at_the_very_horizon_is_noticed() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    let proxy = Proxy::to(&etcd).await;
    let endpoints = format!("http://{}", proxy.address);
    let store = EtcdStore::connect(&EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
    let mut watch = store.watch(subnet(OWN));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.2.0/24", 2)]));
    let proxy = proxy.cut();
    etcd.delete(&key("10.3.2.0-24")).unwrap();
    etcd.compact().unwrap();
    let _proxy = proxy.mend().await;
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
}

#[tokio::test]
async fn watch_subnet_survives_compaction_after_reconnect() {
    let mut etcd = Etcd::start().unwrap();
    let (_store, mut watch) = begun(&etcd).await;
    etcd.stop();
    etcd.start_again().unwrap();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
    etcd.compact().unwrap();
    etcd.put(&key("10.3.3.0-24"), &node(3).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.3.0/24", 3)));
}

#[tokio::test]
async fn a_store_that_forgot_leases_takes_none_away_at_once() {
    let mut etcd = Etcd::start().unwrap();
    let timing = LeaseTiming { ttl: Duration::from_secs(8), ..LeaseTiming::default() };
    let store = EtcdStore::connect(&EtcdOptions { timing, ..options(&etcd) }).unwrap();
    for number in 2..6 {
        etcd.put(&key(&format!("10.3.{number}.0-24")), &node(number).to_json()).unwrap();
    }
    let mut watch = store.watch(subnet(OWN));
    assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(all) if all.len() == 4));
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    let old: Vec<_> = (2..6).map(|number| lease(&format!("10.3.{number}.0/24"), number)).collect();
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(old.clone()));
    // One node writes its lease again, one comes back with another subnet, one is new.
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(old[0].clone()));
    etcd.put(&key("10.3.8.0-24"), &node(3).to_json()).unwrap();
    let moved = lease("10.3.8.0/24", 3);
    let all = vec![old[0].clone(), old[2].clone(), old[3].clone(), moved.clone()];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(all));
    etcd.put(&key("10.3.9.0-24"), &node(9).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.9.0/24", 9)));
    // The others are given up, in the end.
    let all = vec![old[0].clone(), moved, lease("10.3.9.0/24", 9)];
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(all));
    silent(&mut watch).await;
}

/// Its revision does not show that the store is another, nor does its cluster's id.
#[tokio::test]
async fn a_store_replaced_and_written_to_before_we_are_back_is_noticed() {
    for compacts in [false, true] {
        let mut etcd = Etcd::start().unwrap();
        for number in 2..4 {
            etcd.put_for(80_000, &key(&format!("10.3.{number}.0-24")), &node(number).to_json()).unwrap();
        }
        etcd.back_up("backup").unwrap();
        let proxy = Proxy::to(&etcd).await;
        let endpoints = format!("http://{}", proxy.address);
        let store = EtcdStore::connect(&EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
        let mut watch = store.watch(subnet(OWN));
        assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(all) if all.len() == 2));
        // What the backup lacks: a node that is new, one that left, and one with another device.
        etcd.put_for(80_000, &key("10.3.4.0-24"), &node(4).to_json()).unwrap();
        assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.4.0/24", 4)));
        etcd.delete(&key("10.3.2.0-24")).unwrap();
        assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")));
        etcd.put_for(80_000, &key("10.3.3.0-24"), &node(33).to_json()).unwrap();
        assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.3.0/24", 33)));
        let proxy = proxy.cut();
        let known = etcd.revision().unwrap();
        etcd.restore("backup").unwrap();
        etcd.start_again().unwrap();
        etcd.put_for(80_000, &key("10.3.5.0-24"), &node(5).to_json()).unwrap();
        etcd.pass(known).unwrap();
        if compacts {
            etcd.compact().unwrap();
        }
        let _proxy = proxy.mend().await;
        let all = [(2, 2), (3, 3), (4, 4), (5, 5)].map(|(net, of)| lease(&format!("10.3.{net}.0/24"), of));
        assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(all.to_vec()), "{compacts}");
        etcd.put(&key("10.3.6.0-24"), &node(6).to_json()).unwrap();
        assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.6.0/24", 6)), "and it goes on");
    }
}

#[tokio::test]
async fn leases_in_force_at_the_start_stay_where_the_store_may_be_another() {
    let old: Vec<_> = (2..6).map(|number| lease(&format!("10.3.{number}.0/24"), number)).collect();
    let etcd = Etcd::start().unwrap();
    let timing = LeaseTiming { ttl: Duration::from_secs(6), ..LeaseTiming::default() };
    let store = EtcdStore::connect(&EtcdOptions { timing, ..options(&etcd) }).unwrap();
    let start = |newcomer| store.watch_after(subnet(OWN), Inherited { leases: old.clone(), newcomer });
    let subnets = |event| -> Vec<String> {
        let LeaseEvent::Snapshot(all) = event else { panic!("{event:?}") };
        all.iter().map(|lease: &Lease| format!("{} {}", lease.subnet, lease.expiration.is_some())).collect()
    };
    // Empty, as when flannel's leases are still in the v2 store; or with few of those that were.
    for newcomer in [true, false] {
        let mut watch = start(newcomer);
        assert_eq!(subnets(next(&mut watch).await).len(), 4, "{newcomer}");
    }
    // One node has come with its subnet, one with another, and one new node has part of a third one's.
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    etcd.put(&key("10.3.8.0-24"), &node(3).to_json()).unwrap();
    etcd.put(&key("10.3.4.128-25"), &node(9).to_json()).unwrap();
    let leased = ["10.3.2.0/24 false", "10.3.4.128/25 false", "10.3.8.0/24 false"];
    let mut watch = start(true);
    let kept = subnets(next(&mut watch).await);
    assert_eq!(kept, [leased[0], leased[1], "10.3.5.0/24 true", leased[2]]);
    assert_eq!(subnets(next(&mut watch).await), leased, "the last is given up");
    // A node that was there before knows by its absence that it has left.
    assert_eq!(subnets(next(&mut start(false)).await), leased);
}

#[tokio::test]
async fn an_undecodable_lease_is_skipped_counted_and_logged_once() {
    let mut etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    etcd.put(&key("10.3.2.0-24"), "{damaged").unwrap();
    etcd.put(&key("10.3.3.0-24"), &node(3).to_json()).unwrap();
    let store = store(&etcd);
    let mut watch = store.watch(subnet(OWN));
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(vec![lease("10.3.3.0/24", 3)]));
    etcd.put(&key("10.3.2.0-24"), "{damaged").unwrap();
    etcd.put(&key("nonsense"), "x").unwrap();
    etcd.put(&key("10.3.4.0-24"), r#"{"PublicIP":null}"#).unwrap();
    etcd.put(&key("10.3.5.0-24"), &node(5).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.5.0/24", 5)), "the others go on");
    assert_eq!(store.undecodable(), 3);
    // Shown as long as they are there; what names no subnet is nobody's lease.
    let unusable = || store.unusable().borrow().iter().map(|lease| lease.subnet).collect::<Vec<_>>();
    assert_eq!(unusable(), [subnet("10.3.2.0/24"), subnet("10.3.4.0/24")]);
    etcd.stop();
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(_)));
    assert_eq!(log.count("skipping a lease that cannot be used"), 3, "{}", log.text());
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)), "mended");
    assert_eq!(unusable(), []);
}

#[tokio::test]
async fn a_damaged_lease_leaves_the_last_good_one_in_force() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    let mut watch = store(&etcd).watch(subnet(OWN));
    next(&mut watch).await;
    etcd.put(&key("10.3.2.0-24"), "{damaged").unwrap();
    silent(&mut watch).await;
    etcd.delete(&key("10.3.2.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Remove(subnet("10.3.2.0/24")));
}

/// Connections stay up, but nothing answers any more: no error will ever come by itself.
#[tokio::test]
async fn a_silent_watch_is_noticed() {
    let (first, log) = (Etcd::start().unwrap(), Log::capture());
    let (_store, mut watch) = begun(&first).await;
    first.freeze().unwrap();
    let begun = Instant::now();
    while log.0.count("watch interrupted") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "not noticed: {}", log.0.text());
        silent(&mut watch).await;
    }
    first.thaw().unwrap();
    first.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
}

#[tokio::test]
async fn a_watch_moves_on_when_its_member_goes() {
    let etcd = Etcd::start().unwrap();
    let proxy = Proxy::to(&etcd).await;
    let endpoints = format!("http://{},{}", proxy.address, etcd.endpoint());
    // Whichever is asked first: several are tried until one begins with the proxy.
    for _ in 0..20 {
        let options = EtcdOptions { endpoints: endpoints.clone(), ..EtcdOptions::default() };
        let mut watch = EtcdStore::connect(&options).unwrap().watch(subnet(OWN));
        assert!(matches!(next(&mut watch).await, LeaseEvent::Snapshot(_)));
        silent(&mut watch).await;
        if proxy.connections() > 0 {
            let _down = proxy.cut();
            etcd.put(&key("10.3.2.0-24"), &node(2).to_json()).unwrap();
            assert_eq!(next(&mut watch).await, LeaseEvent::Upsert(lease("10.3.2.0/24", 2)));
            return;
        }
    }
    panic!("the first endpoint was never the first to be asked");
}

/// Upstream's TestResyncWatchCancelWithBlockedReceiver: a consumer that does not take its events can still go.
#[tokio::test]
async fn resync_watch_cancel_with_blocked_receiver() {
    let etcd = Etcd::start().unwrap();
    let (_store, watch) = begun(&etcd).await;
    for number in 2..90 {
        etcd.put(&key("10.3.2.0-24"), &node(number).to_json()).unwrap();
    }
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    drop(watch);
    let begun = Instant::now();
    while tasks() >= before {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
