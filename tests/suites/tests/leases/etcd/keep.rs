use std::time::SystemTime;

use flannel_agent::lease::etcd::{LeaseKeeper, LeaseTiming, OwnLease, OwnLeaseReport};

use super::{proxy::Proxy, *};

const NAME: &str = "10.3.7.0-24";

fn previous() -> Option<LeaseSubnet> {
    Some(subnet("10.3.7.0/24"))
}

async fn kept(etcd: &Etcd, timing: LeaseTiming) -> (OwnLease, LeaseKeeper) {
    let store = EtcdStore::connect(&EtcdOptions { timing, ..options(etcd) }).unwrap();
    let own = store.acquire_lease(&network(), &node(1), previous()).await.unwrap();
    (own.clone(), store.keep_lease(own))
}

async fn report(keeper: &mut LeaseKeeper) -> OwnLeaseReport {
    tokio::time::timeout(SOON, keeper.report()).await.expect("no report")
}

async fn no_report(keeper: &mut LeaseKeeper) {
    let report = tokio::time::timeout(Duration::from_millis(500), keeper.report()).await;
    assert!(report.is_err(), "unexpected {report:?}");
}

fn seconds(ttl: u64, margin: u64) -> LeaseTiming {
    let second = Duration::from_secs(1);
    LeaseTiming { ttl: second * ttl as u32, renew_margin: second * margin as u32, renew_retry: second }
}

/// The key lives on through several of its lifetimes, always as it was written first.
#[tokio::test]
async fn renew_lease() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let (own, mut keeper) = kept(&etcd, seconds(4, 2)).await;
    for _ in 0..4 {
        let report = tokio::time::timeout(SOON, keeper.report()).await;
        let Ok(OwnLeaseReport::Renewed { expiration }) = report else { panic!("{report:?}: {}", log.text()) };
        assert!(expiration > own.expiration);
        assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
    }
}

#[tokio::test]
async fn renew_lease_is_due_a_margin_before_the_end() {
    let etcd = Etcd::start().unwrap();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
}

#[tokio::test]
async fn renewal_goes_on_after_an_outage() {
    let mut etcd = Etcd::start().unwrap();
    let (_own, mut keeper) = kept(&etcd, seconds(20, 18)).await;
    report(&mut keeper).await;
    etcd.stop();
    tokio::time::sleep(Duration::from_secs(4)).await;
    no_report(&mut keeper).await;
    etcd.start_again().unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }));
}

#[tokio::test]
async fn a_reservation_is_not_renewed() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key(NAME), &node(1).to_json()).unwrap();
    let (own, mut keeper) = kept(&etcd, seconds(4, 3)).await;
    assert_eq!(own.expiration, None);
    tokio::time::sleep(Duration::from_secs(2)).await;
    no_report(&mut keeper).await;
    assert_eq!(etcd.ttl(&key(NAME)).unwrap(), None);
}

#[tokio::test]
async fn changed_attributes_are_published() {
    let etcd = Etcd::start().unwrap();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    let mut changed = node(9);
    changed.public_ip = node(1).public_ip;
    keeper.publish(changed.clone());
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), changed.to_json());
    keeper.publish(changed);
    no_report(&mut keeper).await;
}

/// The node moved: its lease does, too, and is ours under both addresses meanwhile.
#[tokio::test]
async fn a_new_address_is_published_in_place() {
    let mut etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let (own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    let mut moved = node(1);
    moved.public_ip = [192, 0, 2, 100].into();
    keeper.publish(moved.clone());
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), moved.to_json());
    assert_eq!(etcd.keys(PREFIX).unwrap().len(), 1);
    assert_eq!(log.count("lease published with this node's new address"), 1, "{}", log.text());

    // With etcd down it is written when etcd is back, also over what a restored backup says.
    etcd.stop();
    let mut again = moved.clone();
    again.public_ip = [192, 0, 2, 101].into();
    keeper.publish(again.clone());
    no_report(&mut keeper).await;
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    let _ = etcd.put(&key(NAME), &moved.to_json());
    while etcd.get(&key(NAME)).unwrap() != Some(again.to_json()) {
        let report = report(&mut keeper).await;
        assert!(!matches!(report, OwnLeaseReport::Lost(_)), "{report:?}");
    }
    let next = store(&etcd).acquire_lease(&network(), &again, None).await.unwrap();
    assert_eq!(next.subnet, own.subnet);
}

#[tokio::test]
async fn changed_attributes_of_a_reservation_leave_it_without_end() {
    let etcd = Etcd::start().unwrap();
    etcd.put(&key(NAME), &node(1).to_json()).unwrap();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    let mut changed = node(9);
    changed.public_ip = node(1).public_ip;
    keeper.publish(changed.clone());
    assert_eq!(report(&mut keeper).await, OwnLeaseReport::Renewed { expiration: None });
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), changed.to_json());
    assert_eq!(etcd.ttl(&key(NAME)).unwrap(), None);
}

#[tokio::test]
async fn a_deleted_lease_is_taken_back() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
    etcd.delete(&key(NAME)).unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
    assert!(etcd.ttl(&key(NAME)).unwrap().unwrap() > 86_300);
    assert_eq!(log.count("it is ours again"), 1, "{}", log.text());
}

/// A lease kept through a way that is then cut, with what is needed to mend it.
async fn kept_behind_proxy(etcd: &Etcd) -> (LeaseKeeper, Proxy) {
    let proxy = Proxy::to(etcd).await;
    let endpoints = format!("http://{}", proxy.address);
    let store = EtcdStore::connect(&EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap();
    let own = store.acquire_lease(&network(), &node(1), previous()).await.unwrap();
    let mut keeper = store.keep_lease(own);
    no_report(&mut keeper).await;
    (keeper, proxy.cut())
}

/// The deletion itself is not in the history any more.
#[tokio::test]
async fn watch_subnet_reports_removal_after_compaction() {
    let etcd = Etcd::start().unwrap();
    let (mut keeper, proxy) = kept_behind_proxy(&etcd).await;
    etcd.delete(&key(NAME)).unwrap();
    etcd.compact().unwrap();
    let _proxy = proxy.mend().await;
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
}

#[tokio::test]
async fn watch_subnet_recovers_from_compaction() {
    let etcd = Etcd::start().unwrap();
    let (mut keeper, proxy) = kept_behind_proxy(&etcd).await;
    etcd.put_for(80_000, &key(NAME), &node(1).to_json()).unwrap();
    etcd.compact().unwrap();
    let _proxy = proxy.mend().await;
    no_report(&mut keeper).await;
    etcd.delete(&key(NAME)).unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }), "and it goes on");
}

#[tokio::test]
async fn a_lease_missing_from_a_restored_store_is_taken_back() {
    let mut etcd = Etcd::start().unwrap();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
}

/// The store is written to by others before we are back: its revision does not show that it is another.
#[tokio::test]
async fn a_lease_missing_from_a_store_that_passed_what_we_knew_is_taken_back() {
    let mut etcd = Etcd::start().unwrap();
    let (mut keeper, proxy) = kept_behind_proxy(&etcd).await;
    let known = etcd.revision().unwrap();
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    etcd.pass(known).unwrap();
    let _proxy = proxy.mend().await;
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Retaken { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
}

/// Others go by what the backup says of us: by a VXLAN device, or an address, that was ours then.
#[tokio::test]
async fn what_a_restored_backup_says_of_us_is_written_anew() {
    let mut another_device = node(9);
    another_device.public_ip = node(1).public_ip;
    let mut another_address = node(1);
    another_address.public_ip = [192, 0, 2, 100].into();
    for (attrs, passes) in
        [(another_device, false), (another_address.clone(), false), (another_address, true)]
    {
        let mut etcd = Etcd::start().unwrap();
        let (mut keeper, proxy) = kept_behind_proxy(&etcd).await;
        let proxy = proxy.mend().await;
        etcd.back_up("backup").unwrap();
        keeper.publish(attrs.clone());
        assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }));
        // Its watch has told of that write, too.
        no_report(&mut keeper).await;
        let proxy = proxy.cut();
        let known = etcd.revision().unwrap();
        etcd.restore("backup").unwrap();
        etcd.start_again().unwrap();
        assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
        if passes {
            etcd.pass(known).unwrap();
        }
        let _proxy = proxy.mend().await;
        let report = report(&mut keeper).await;
        assert!(matches!(report, OwnLeaseReport::Renewed { .. }), "{passes}: {report:?}");
        assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), attrs.to_json());
    }
}

#[tokio::test]
async fn a_subnet_that_another_node_holds_is_lost() {
    let mut etcd = Etcd::start().unwrap();
    // A store that has seen some writes; a new one shows by being far behind.
    for _ in 0..5 {
        etcd.put("/elsewhere", "x").unwrap();
    }
    let (own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
    etcd.wipe().unwrap();
    etcd.start_again().unwrap();
    // Whoever is first: we take it back, and then it is overwritten; or it is another's when we come.
    etcd.put(&key(NAME), &node(2).to_json()).unwrap();
    let lost = loop {
        match report(&mut keeper).await {
            OwnLeaseReport::Lost(lost) => break lost,
            OwnLeaseReport::Retaken { .. } | OwnLeaseReport::Renewed { .. } => {}
        }
    };
    assert_eq!((lost.subnet, lost.holder), (own.subnet, node(2).node_address()));
    assert!(
        lost.to_string().contains("node 192.0.2.2 holds it now: pods of both nodes have the same"),
        "{lost}"
    );
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(2).to_json(), "left alone");
    no_report(&mut keeper).await;
}

#[tokio::test]
async fn a_lease_renewed_by_somebody_else_counts() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let (_own, mut keeper) = kept(&etcd, seconds(600, 595)).await;
    etcd.put_for(300, &key(NAME), &node(1).to_json()).unwrap();
    no_report(&mut keeper).await;
    assert_eq!(log.count("somebody else renewed our lease"), 1, "{}", log.text());
    // With 300 s left and a margin of 595 s, it is due at once.
    let OwnLeaseReport::Renewed { expiration } = report(&mut keeper).await else { panic!("not renewed") };
    assert!(expiration.unwrap() > SystemTime::now() + Duration::from_secs(590));
}

#[tokio::test]
async fn a_damaged_lease_is_mended() {
    let etcd = Etcd::start().unwrap();
    let (_own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
    etcd.put(&key(NAME), "{damaged").unwrap();
    report(&mut keeper).await;
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
}

/// Of our device at another address, or with another device at our address: both are ours. Whoever keeps at it is named.
#[tokio::test]
async fn a_lease_that_others_change_is_put_right() {
    let etcd = Etcd::start().unwrap();
    let (log, _guard) = Log::capture();
    let store = store(&etcd);
    let mended = LeaseStore::mended(&store);
    let own = store.acquire_lease(&network(), &node(1), previous()).await.unwrap();
    let mut keeper = store.keep_lease(own);
    no_report(&mut keeper).await;
    let (mut another_device, mut another_address) = (node(9), node(1));
    another_device.public_ip = node(1).public_ip;
    another_address.public_ip = [192, 0, 2, 100].into();
    for (changes, attrs) in (1..).zip([&another_device, &another_address, &another_device]) {
        etcd.put_for(80_000, &key(NAME), &attrs.to_json()).unwrap();
        assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }), "{}", log.text());
        assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
        assert_eq!(mended.borrow().times, changes);
        assert_eq!(mended.borrow().contested.is_some(), changes == 3);
    }
    let contested = mended.borrow().contested.clone().unwrap();
    for attrs in [another_device, node(1)] {
        assert!(contested.contains(&attrs.to_json()), "{contested}");
    }
    assert!(etcd.ttl(&key(NAME)).unwrap().unwrap() > 86_300);
}

/// The clone takes the lease for its own, and gives way when its node shows that it is alive.
#[tokio::test]
async fn a_clone_leaves_the_lease_to_its_node() {
    let etcd = Etcd::start().unwrap();
    let (own, mut keeper) = kept(&etcd, LeaseTiming::default()).await;
    no_report(&mut keeper).await;
    let mut elsewhere = node(1);
    elsewhere.public_ip = [192, 0, 2, 100].into();
    let of_clone = store(&etcd);
    let taken = of_clone.acquire_lease(&network(), &elsewhere, previous()).await.unwrap();
    assert_eq!(taken.subnet, own.subnet);
    let mut kept_by_clone = of_clone.keep_lease(taken);
    let OwnLeaseReport::Lost(lost) = report(&mut kept_by_clone).await else { panic!("not lost") };
    let text = lost.to_string();
    assert!(text.contains("node 192.0.2.1 still writes") && text.contains("is a clone"), "{text}");
    assert!(matches!(report(&mut keeper).await, OwnLeaseReport::Renewed { .. }));
    assert_eq!(etcd.get(&key(NAME)).unwrap().unwrap(), node(1).to_json());
}

/// A restart of the agent: the lease stays, and is the one the next run gets.
#[tokio::test]
async fn the_lease_outlives_its_keeper() {
    let etcd = Etcd::start().unwrap();
    let (own, keeper) = kept(&etcd, LeaseTiming::default()).await;
    drop(keeper);
    let (again, _keeper) = kept(&etcd, LeaseTiming::default()).await;
    assert_eq!(again.subnet, own.subnet);
    assert_eq!(etcd.keys(PREFIX).unwrap().len(), 1);
}
