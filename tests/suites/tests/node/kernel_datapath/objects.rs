//! What is on the device.

use std::time::Instant;

use flannel_agent::{
    datapath::{ChangeError, Datapath},
    plan::{Change, State, delta},
};

use super::namespace::*;

/// Brings the kernel to `desired` and returns how many changes that took.
async fn bring_to(desired: &State) -> usize {
    let mut datapath = datapath();
    let changes = delta(desired, &datapath.observe().await.unwrap());
    for (change, result) in changes.iter().zip(datapath.apply(&changes).await) {
        result.unwrap_or_else(|error| panic!("cannot {change}: {error}"));
    }
    assert_eq!(datapath.observe().await.unwrap(), *desired);
    changes.len()
}

/// The same for thousands of neighbours, of which the kernel's list may lack one: all namespaces share its table, and
/// what another one takes out of it moves the place where a long list goes on (`neigh_dump_table`, net/core/neighbour.c).
/// As the reconciler does, this looks again. Returns the changes, of which those to such neighbours may be repeated.
async fn bring_to_in_turns(desired: &State) -> usize {
    let mut datapath = datapath();
    let mut changed = 0;
    for _ in 0..4 {
        let changes = delta(desired, &datapath.observe().await.unwrap());
        if changes.is_empty() {
            return changed;
        }
        changed += changes.len();
        for (change, result) in changes.iter().zip(datapath.apply(&changes).await) {
            result.unwrap_or_else(|error| panic!("cannot {change}: {error}"));
        }
    }
    panic!("after {changed} changes there are still some to make");
}

/// Neighbours that a list may lack, as far as these tests bear it.
const UNLISTED: usize = 4;

#[test]
fn are_those_of_stock_flannel() {
    with_namespace(|| async {
        bring_to(&planned([2]).state).await;
        let routes = ip("route show dev flannel.1");
        assert_eq!(routes.trim(), "10.1.2.0/24 via 10.1.2.0 onlink");
        let route = &ip_json("-d route show dev flannel.1")[0];
        assert_eq!(route["protocol"], "boot");
        assert_eq!(route["scope"], "global");
        assert_eq!(route.get("metric"), None);
        let neighbours = ip("neighbour show dev flannel.1 nud permanent");
        assert_eq!(neighbours.trim(), "10.1.2.0 lladdr 0e:00:00:01:00:02 PERMANENT");
        let fdb = run("bridge", "fdb show dev flannel.1");
        assert!(fdb.contains("0e:00:00:01:00:02 dst 198.18.0.2 self permanent"), "{fdb}");
        let addresses = ip("-4 -o address show dev flannel.1");
        assert!(addresses.contains("inet 10.1.0.0/32 scope global flannel.1"), "{addresses}");
    });
}

#[test]
fn follow_the_leases_and_are_repaired() {
    with_namespace(|| async {
        bring_to(&planned([2, 3, 4]).state).await;
        assert_eq!(bring_to(&planned([2, 3, 4]).state).await, 0);
        assert_eq!(bring_to(&planned([3, 4, 5]).state).await, 6);

        ip("route delete 10.1.3.0/24");
        ip("neighbour delete 10.1.4.0 dev flannel.1");
        run("bridge", "fdb delete 0e:00:00:01:00:05 dev flannel.1 dst 198.18.0.5");
        assert_eq!(bring_to(&planned([3, 4, 5]).state).await, 3);
        // With its last address the device loses its routes and neighbours.
        ip("address delete 10.1.0.0/32 dev flannel.1");
        assert_eq!(bring_to(&planned([3, 4, 5]).state).await, 7);

        // What is left behind by a flannel that died, or changed behind our back.
        ip("route add 10.1.9.0/24 via 10.1.9.0 dev flannel.1 onlink");
        ip("neighbour replace 10.1.3.0 lladdr 0e:00:00:00:00:99 nud permanent dev flannel.1");
        run("bridge", "fdb replace 0e:00:00:01:00:04 dev flannel.1 dst 198.18.0.99 self permanent");
        ip("address add 10.7.7.7/32 dev flannel.1");
        assert_eq!(bring_to(&planned([3, 4, 5]).state).await, 4);

        // A new MAC drops the neighbours and nothing else.
        ip("link set flannel.1 address 0e:00:00:00:00:99");
        assert_eq!(bring_to(&planned([3, 4, 5]).state).await, 4);

        ip("link set flannel.1 down");
        bring_to(&planned([3, 4, 5]).state).await;
        ip("link delete flannel.1");
        bring_to(&planned([3, 4, 5]).state).await;
        bring_to(&State::default()).await;
        assert!(!ip("link show").contains("flannel.1"));
    });
}

/// Above some number the kernel is given routes of several protocols, lest it compares each with all.
#[test]
fn of_very_many_are_still_found_replaced_and_deleted_as_stock_flannels() {
    with_namespace(|| async {
        let many = || 2..3000;
        bring_to_in_turns(&planned(many()).state).await;
        assert!(bring_to_in_turns(&planned(many()).state).await <= UNLISTED);
        let protocol = |subnet: &str| ip_json(&format!("-d route show {subnet}"))[0]["protocol"].clone();
        assert_ne!(protocol("10.1.3.0/24"), "boot");

        // As an administrator, or stock flannel when it takes over.
        ip("route delete 10.1.2.0/24 via 10.1.2.0 dev flannel.1 onlink");
        ip("route replace 10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink");
        assert_eq!(ip("route show 10.1.3.0/24").trim(), "10.1.3.0/24 via 10.1.3.0 dev flannel.1 onlink");
        assert!((1..=1 + UNLISTED).contains(&bring_to_in_turns(&planned(many()).state).await));
        // Whoever deletes few finds those of many, and those of few.
        let changes = bring_to_in_turns(&planned((5..3000).chain([3001])).state).await;
        assert!((12..=12 + UNLISTED).contains(&changes), "{changes}");
        assert_eq!(protocol("10.12.185.0/24"), "boot");

        // Of a protocol that is none of ours for this subnet, it is somebody else's.
        let other = if protocol("10.1.9.0/24") == "170" { 171 } else { 170 };
        ip(&format!("route add 10.1.9.0/24 via 10.1.9.0 dev flannel.1 onlink proto {other} metric 7"));
        bring_to_in_turns(&planned([5]).state).await;
        let left = ip("route show dev flannel.1");
        let left: Vec<_> = left.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(left, ["10.1.5.0/24", "10.1.9.0/24"]);
    });
}

/// Upstream's TestEnsureV4AddressOnLink.
#[test]
fn ensure_v4_address_on_link() {
    with_namespace(|| async {
        bring_to(&planned([2]).state).await;
        let addresses = || {
            let shown = ip_json("-4 address show dev flannel.1");
            let infos = shown[0]["addr_info"].as_array().unwrap().clone();
            let text = |info: &serde_json::Value| {
                format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"])
            };
            infos.iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(addresses(), ["10.1.0.0/32"]);
        // Inside the network it is what is left of another subnet of ours; outside it is somebody else's.
        ip("address add 10.9.0.0/32 dev flannel.1");
        ip("address add 10.1.0.1/24 dev flannel.1");
        ip("address add 172.16.0.1/24 dev flannel.1");
        bring_to(&planned([2]).state).await;
        assert_eq!(addresses(), ["10.1.0.0/32", "172.16.0.1/24"]);
        ip("address delete 10.1.0.0/32 dev flannel.1");
        ip("address add 10.9.0.0/32 dev flannel.1");
        bring_to(&planned([2]).state).await;
        let mut replaced = addresses();
        replaced.sort();
        assert_eq!(replaced, ["10.1.0.0/32", "172.16.0.1/24"]);
    });
}

#[test]
fn of_others_are_left_alone() {
    with_namespace(|| async {
        bring_to(&planned([2]).state).await;
        ip("address add 172.16.0.1/32 dev flannel.1");
        ip("route add 172.16.1.0/24 dev flannel.1");
        ip("route add 172.16.2.0/24 via 10.1.2.0 dev flannel.1 onlink proto static");
        ip("route add 172.16.3.0/24 via 10.1.2.0 dev flannel.1 onlink metric 50");
        ip("route add 172.16.4.0/24 via 10.1.2.0 dev flannel.1 onlink table 100");
        ip("route add 172.16.5.0/24 via 192.0.2.254 dev eth0 onlink");
        ip("neighbour add 192.0.2.254 lladdr 0e:00:00:00:00:99 nud permanent dev eth0");
        let others = || {
            let routes = ip("route show table all").lines().filter(|line| line.contains("172.16.")).count();
            (
                routes,
                ip("address show dev flannel.1").contains("172.16.0.1/32"),
                ip("neighbour show dev eth0"),
            )
        };
        let before = others();
        assert_eq!(bring_to(&planned([2]).state).await, 0);
        bring_to(&planned([3]).state).await;
        assert_eq!(others(), before);
    });
}

#[test]
fn that_are_refused_do_not_hold_up_the_rest() {
    with_namespace(|| async {
        let mut datapath = datapath();
        let without_device = datapath
            .apply(&[
                Change::PutAddress("10.1.0.0/32".parse().unwrap()),
                Change::DeleteNeighbour("10.1.2.0".parse().unwrap()),
            ])
            .await;
        assert!(matches!(without_device[..], [Err(ChangeError::Blocked), Ok(())]), "{without_device:?}");

        let multicast = "224.0.0.0/24".parse().unwrap();
        let results = datapath
            .apply(&[
                Change::PutDevice(device()),
                Change::PutAddress("10.1.0.0/32".parse().unwrap()),
                Change::PutRoute {
                    subnet: "10.1.2.0/24".parse().unwrap(),
                    via: "255.255.255.255".parse().unwrap(),
                },
                Change::PutRoute { subnet: multicast, via: "10.1.2.0".parse().unwrap() },
                Change::PutRoute { subnet: "10.1.3.0/24".parse().unwrap(), via: "10.1.3.0".parse().unwrap() },
                Change::DeleteRoute {
                    subnet: "10.1.4.0/24".parse().unwrap(),
                    via: "10.1.4.0".parse().unwrap(),
                },
                Change::DeleteFdb { mac: mac(4), public_ip: "198.18.0.4".parse().unwrap() },
                Change::DeleteAddress("10.1.9.0/32".parse().unwrap()),
            ])
            .await;
        let failed: Vec<_> = results.iter().map(|result| result.is_err()).collect();
        assert_eq!(failed, [false, false, true, false, false, false, false, false], "{results:?}");
        let error = results[2].as_ref().unwrap_err().to_string();
        assert!(error.contains("gateway"), "the kernel's own words are missing: {error}");
    });
}

#[test]
fn of_thousands_of_peers_take_a_moment() {
    with_namespace(|| async {
        for peers in [1000, 10_000] {
            let desired = planned(2..peers + 2).state;
            let start = Instant::now();
            let changes = bring_to_in_turns(&desired).await;
            println!("{peers} leases: {changes} changes made and read back in {:?}", start.elapsed());
            let start = Instant::now();
            assert!(bring_to_in_turns(&desired).await <= UNLISTED);
            println!("{peers} leases: two looks in {:?}", start.elapsed());
            let start = Instant::now();
            let changes = bring_to_in_turns(&planned([]).state).await;
            assert!(
                (3 * usize::from(peers)..=3 * usize::from(peers) + UNLISTED).contains(&changes),
                "{changes}"
            );
            println!("{peers} leases: removed in {:?}", start.elapsed());
        }
    });
}
