//! Routes past the device.

use std::collections::BTreeMap;

use flannel_agent::{
    config::{Pool, PoolV4},
    datapath::{Datapath, Stray, kernel::KernelDatapath},
    netlink::Netlink,
    plan::{Change, DirectRoute, State, delta},
};
use ipnetwork::IpNetwork;

use super::namespace::*;

fn direct_datapath() -> KernelDatapath {
    let pool = Pool::V4(PoolV4 {
        network: "10.244.0.0/16".parse().unwrap(),
        subnet_len: 24,
        subnet_min: "10.244.1.0".parse().unwrap(),
        subnet_max: "10.244.200.0".parse().unwrap(),
    });
    let stray = Stray { ifindex: ETH0, pool, own: net("10.244.1.0/24") };
    KernelDatapath::new(Netlink::open().unwrap()).with_direct_routes(stray)
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn to(subnet: &str, via: &str) -> (IpNetwork, DirectRoute) {
    (net(subnet), DirectRoute { ifindex: ETH0, via: via.parse().unwrap() })
}

fn state(routes: impl IntoIterator<Item = (IpNetwork, DirectRoute)>) -> State {
    State { direct_routes: routes.into_iter().collect(), ..State::default() }
}

/// Brings the kernel to `desired` and returns the changes that took.
async fn bring_to(datapath: &mut KernelDatapath, desired: &State) -> Vec<String> {
    let changes = delta(desired, &datapath.observe().await.unwrap());
    for (change, result) in changes.iter().zip(datapath.apply(&changes).await) {
        result.unwrap_or_else(|error| panic!("cannot {change}: {error}"));
    }
    assert_eq!(datapath.observe().await.unwrap(), *desired);
    changes.iter().map(Change::to_string).collect()
}

#[test]
fn are_those_of_stock_flannel() {
    with_namespace(|| async {
        let desired = state([to("10.244.2.0/24", "192.0.2.2")]);
        bring_to(&mut direct_datapath(), &desired).await;
        assert_eq!(ip("route show 10.244.2.0/24").trim(), "10.244.2.0/24 via 192.0.2.2 dev eth0");
        let route = &ip_json("-d route show 10.244.2.0/24")[0];
        assert_eq!((&route["protocol"], &route["scope"]), (&"boot".into(), &"global".into()));
        assert_eq!(route.get("metric"), None);
        assert_eq!(bring_to(&mut direct_datapath(), &desired).await, Vec::<String>::new());
    });
}

#[test]
fn replace_what_leads_elsewhere_whoever_made_it() {
    with_namespace(|| async {
        link("eth1", "");
        ip("address add 198.51.100.1/24 dev eth1");
        for other in [
            "via 192.0.2.9",
            "via 192.0.2.9 proto static",
            "via 198.51.100.9",
            "dev eth1",
            "via 10.244.2.0 dev eth1 onlink",
        ] {
            ip(&format!("route add 10.244.2.0/24 {other}"));
            // One with a metric yields to ours, and is spared.
            ip("route add 10.244.2.0/24 via 192.0.2.8 metric 50");
            bring_to(&mut direct_datapath(), &state([to("10.244.2.0/24", "192.0.2.2")])).await;
            let shown = ip("route show 10.244.2.0/24");
            let lines: Vec<_> = shown.lines().map(str::trim).collect();
            let spared = "10.244.2.0/24 via 192.0.2.8 dev eth0 metric 50";
            assert_eq!(lines, ["10.244.2.0/24 via 192.0.2.2 dev eth0", spared], "after {other}");
            ip("route flush 10.244.2.0/24");
        }
    });
}

#[test]
fn of_an_earlier_process_are_recognised_and_those_of_others_spared() {
    with_namespace(|| async {
        link("eth1", "");
        ip("address add 198.51.100.1/24 dev eth1");
        ip("route add 10.244.7.0/24 via 192.0.2.7");
        let foreign = [
            "10.244.8.0/24 via 192.0.2.254", // The gateway of the default route.
            "10.244.9.0/25 via 192.0.2.7",   // No node's subnet.
            "10.244.8.0/22 via 192.0.2.7",   // Several.
            "10.244.201.0/24 via 192.0.2.7", // Beyond SubnetMax.
            "10.244.1.0/24 via 192.0.2.7",   // Ours.
            "10.245.7.0/24 via 192.0.2.6",   // Another network, and so a router.
            "10.244.10.0/24 via 192.0.2.6",
            "10.244.11.0/24 via 192.0.2.7 proto static",
            "10.244.12.0/24 via 192.0.2.7 metric 5",
            "10.244.13.0/24 via 198.51.100.7", // Another interface.
            "10.244.14.0/24 dev eth0",
            "10.244.15.0/24 via 192.0.2.7 table 100",
        ];
        for route in foreign {
            ip(&format!("route add {route}"));
        }
        let mut datapath = direct_datapath();
        // 192.0.2.7 is no router only as long as nothing else leads over it.
        for route in &foreign[1..5] {
            ip(&format!("route delete {route}"));
        }
        assert_eq!(datapath.observe().await.unwrap(), state([to("10.244.7.0/24", "192.0.2.7")]));
        for route in &foreign[1..5] {
            ip(&format!("route add {route}"));
        }
        assert_eq!(datapath.observe().await.unwrap(), State::default(), "192.0.2.7 is a router now");
        for route in &foreign[1..4] {
            ip(&format!("route replace {}", route.replace("0.2.7", "0.2.9")));
        }
        ip("route delete 10.244.1.0/24");
        let before = ip("route show table all").lines().filter(|line| line.starts_with("10.24")).count();
        assert_eq!(
            bring_to(&mut datapath, &State::default()).await,
            ["delete the route to 10.244.7.0/24 via 192.0.2.7 on interface 42"]
        );
        let after = ip("route show table all").lines().filter(|line| line.starts_with("10.24")).count();
        assert_eq!(after + 1, before);
    });
}

#[test]
fn of_this_process_go_whatever_they_look_like() {
    with_namespace(|| async {
        let mut datapath = direct_datapath();
        // A lease of another length, behind the node that is also the default gateway.
        let odd = state([to("10.244.64.0/20", "192.0.2.254"), to("10.99.0.0/24", "192.0.2.3")]);
        bring_to(&mut datapath, &odd).await;
        bring_to(&mut datapath, &State::default()).await;
        let shown = ip("route show");
        assert!(!shown.contains("10.244.64.0") && !shown.contains("10.99.0.0"), "{shown}");
    });
}

#[test]
fn to_a_node_off_the_link_are_refused_alone_with_the_remedy() {
    with_namespace(|| async {
        let desired = state([
            to("10.244.2.0/24", "192.0.2.2"),
            to("10.244.3.0/24", "203.0.113.3"),
            to("10.244.4.0/24", "192.0.2.4"),
        ]);
        let mut datapath = direct_datapath();
        let changes = delta(&desired, &datapath.observe().await.unwrap());
        let results = datapath.apply(&changes).await;
        let failed: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, true, false]);
        let error = results[1].as_ref().unwrap_err().to_string();
        for part in ["203.0.113.3 is not on the link", "use the vxlan backend", "kernel: "] {
            assert!(error.contains(part), "{part:?} is missing in {error}");
        }
        let observed = datapath.observe().await.unwrap().direct_routes;
        assert_eq!(
            observed,
            BTreeMap::from([to("10.244.2.0/24", "192.0.2.2"), to("10.244.4.0/24", "192.0.2.4")])
        );
    });
}
