//! A cluster of three members, as etcd is run for real.

use flannel_agent::lease::etcd::OwnLeaseReport;

use super::*;

fn store_of(members: &[Etcd; 3]) -> EtcdStore {
    let endpoints = members.each_ref().map(Etcd::endpoint).join(",");
    EtcdStore::connect(&EtcdOptions { endpoints, ..EtcdOptions::default() }).unwrap()
}

/// Whichever of them is the leader, or is the one that is asked.
#[tokio::test]
async fn each_of_three_members_may_be_killed() {
    let mut members = Etcd::start_three().unwrap();
    let store = store_of(&members);
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.1.0/24"))).await.unwrap();
    let mut watch = store.watch(own.subnet);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    for killed in 0..3 {
        members[killed].stop();
        let number = u8::try_from(killed).unwrap() + 2;
        let text = format!("10.3.{number}.0/24");
        // etcdctl asks one member once; without a leader for a moment, that one has to be asked again.
        flannel_lab::eventually(SOON, "the others take a write", || {
            members[(killed + 1) % 3].put(&key(&text.replace('/', "-")), &node(number).to_json())
        })
        .unwrap();
        loop {
            match next(&mut watch).await {
                LeaseEvent::Upsert(new) if new == lease(&text, number) => break,
                // Written again by the attempt after one that timed out and was done nevertheless.
                LeaseEvent::Upsert(_) => {}
                event => panic!("{event:?}"),
            }
        }
        let again = tokio::time::timeout(SOON, store.acquire_lease(&network(), &node(1), None))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(again.subnet, own.subnet);
        members[killed].start_again().unwrap();
    }
}

#[tokio::test]
async fn all_members_killed_and_back() {
    let mut members = Etcd::start_three().unwrap();
    let store = store_of(&members);
    let own = store.acquire_lease(&network(), &node(1), Some(subnet("10.3.1.0/24"))).await.unwrap();
    let mut watch = store.watch(own.subnet);
    let mut keeper = store.keep_lease(own);
    assert_eq!(next(&mut watch).await, LeaseEvent::Snapshot(Vec::new()));
    // One is left, which can no longer decide anything.
    members[..2].iter_mut().for_each(Etcd::stop);
    let joining = store_of(&members);
    let joined = tokio::spawn(async move { joining.acquire_lease(&network(), &node(2), None).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!joined.is_finished(), "without a quorum there is no lease");
    members[2].stop();
    silent(&mut watch).await;
    Etcd::start_all(&mut members).unwrap();
    let joined = tokio::time::timeout(SOON, joined).await.unwrap().unwrap().unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(&event, LeaseEvent::Upsert(lease) if lease.subnet == joined.subnet), "{event:?}");
    members[0].delete(&key("10.3.1.0-24")).unwrap();
    let report = tokio::time::timeout(SOON, keeper.report()).await.unwrap();
    assert!(matches!(report, OwnLeaseReport::Retaken { .. }), "{report:?}");
}
