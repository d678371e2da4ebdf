//! Both families, each with its device, as stock flannel makes them.

use std::net::Ipv6Addr;

use flannel_agent::{
    backend::{AnyBackend, HostGw},
    config::{Pool, PoolV6},
    datapath::{Datapath, Stray, kernel::KernelDatapath},
    lease::{Lease, LeaseAttrs, LeaseSubnet, Leases, wire::RawJson},
    netlink::Netlink,
    plan::{Change, DirectRoute, Local, LocalStack, State, VxlanDevice, delta},
    values::Family,
};
use ipnetwork::IpNetwork;

use super::namespace::*;

const OUR_V6: &str = "2001:db8::1";

fn device_v6() -> VxlanDevice {
    VxlanDevice {
        name: "flannel-v6.1".into(),
        local: OUR_V6.parse().unwrap(),
        mac: mac(0xfff6),
        mtu: 1430,
        ..device()
    }
}

fn stack_v6() -> LocalStack {
    LocalStack {
        network: "fd00:10::/32".parse().unwrap(),
        subnet: "fd00:10:0:1::/64".parse().unwrap(),
        public_ip: OUR_V6.parse().unwrap(),
        address: OUR_V6.parse().unwrap(),
        device: Some(device_v6()),
    }
}

fn dual() -> Local {
    Local { stacks: [(Family::V4, stack()), (Family::V6, stack_v6())].into(), ..local() }
}

/// The lease of node `n` with both families.
fn dual_lease(n: u16) -> Lease {
    let v4 = lease(n);
    let data = format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac(n + 0x600));
    Lease {
        subnet: LeaseSubnet { v6: Some(format!("fd00:10:0:{n:x}00::/64").parse().unwrap()), ..v4.subnet },
        attrs: LeaseAttrs {
            public_ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)),
            backend_v6_data: Some(RawJson::parse(&data).unwrap()),
            ..v4.attrs
        },
        ..v4
    }
}

fn dual_state(nodes: impl IntoIterator<Item = u16>) -> State {
    let leases: Leases = nodes.into_iter().map(dual_lease).map(|lease| (lease.subnet, lease)).collect();
    planned_as(&dual(), &leases).state
}

fn dual_datapath() -> KernelDatapath {
    datapath().with_device("flannel-v6.1".into(), stack_v6().network)
}

async fn bring_to(datapath: &mut KernelDatapath, desired: &State) -> Vec<String> {
    let changes = delta(desired, &datapath.observe().await.unwrap());
    for (change, result) in changes.iter().zip(datapath.apply(&changes).await) {
        result.unwrap_or_else(|error| panic!("cannot {change}: {error}"));
    }
    assert_eq!(datapath.observe().await.unwrap(), *desired);
    changes.iter().map(Change::to_string).collect()
}

fn underlay() {
    ip("address add 2001:db8::1/64 dev eth0 nodad");
}

#[test]
fn ipv6_has_what_stock_flannel_gives_it() {
    with_namespace(|| async {
        underlay();
        bring_to(&mut dual_datapath(), &dual_state(2..5)).await;
        let shown = &ip_json("-d link show flannel-v6.1")[0];
        assert_eq!((&shown["mtu"], &shown["address"]), (&1430.into(), &mac(0xfff6).to_string().into()));
        let data = shown["linkinfo"]["info_data"].as_object().unwrap();
        for (name, value) in [
            ("id", 1.into()),
            ("local6", OUR_V6.into()),
            ("link", "eth0".into()),
            ("port", 8472.into()),
            ("learning", false.into()),
            ("udp_csum", true.into()),
            ("udp_zero_csum6_tx", false.into()),
            ("udp_zero_csum6_rx", false.into()),
        ] {
            assert_eq!(data.get(name), Some(&value), "{name} in {data:?}");
        }
        let accept_ra = "/proc/sys/net/ipv6/conf/flannel-v6.1/accept_ra";
        assert_eq!(std::fs::read_to_string(accept_ra).unwrap().trim(), "0");
        let addresses = ip("-6 -o address show dev flannel-v6.1 scope global");
        assert!(addresses.contains("inet6 fd00:10:0:1::/128 scope global"), "{addresses}");
        assert!(!addresses.contains("tentative"), "it can be used at once: {addresses}");
        let routes = ip("-6 route show dev flannel-v6.1 proto boot");
        assert!(routes.contains("fd00:10:0:200::/64 via fd00:10:0:200:: metric 1024 onlink"), "{routes}");
        let neighbours = ip("-6 neighbour show dev flannel-v6.1 nud permanent");
        assert!(
            neighbours.contains(&format!("fd00:10:0:200:: lladdr {} PERMANENT", mac(0x602))),
            "{neighbours}"
        );
        let fdb = run("bridge", "fdb show dev flannel-v6.1");
        assert!(fdb.contains(&format!("{} dst 2001:db8::2 self permanent", mac(0x602))), "{fdb}");
        let fdb = run("bridge", "fdb show dev flannel.1");
        assert!(!fdb.contains("2001:"), "{fdb}");
    });
}

#[test]
fn what_ipv6_loses_comes_back_and_what_is_not_leased_goes() {
    with_namespace(|| async {
        underlay();
        let mut datapath = dual_datapath();
        let wanted = dual_state(2..6);
        bring_to(&mut datapath, &wanted).await;
        for damage in [
            "-6 route delete fd00:10:0:300::/64",
            "-6 neighbour delete fd00:10:0:400:: dev flannel-v6.1",
            "-6 neighbour replace fd00:10:0:300:: lladdr 0e:00:00:00:00:99 nud permanent dev flannel-v6.1",
            "-6 address delete fd00:10:0:1::/128 dev flannel-v6.1",
            "-6 route add fd00:10:0:900::/64 via fd00:10:0:900:: dev flannel-v6.1 onlink",
            "-6 address add fd00:10:0:77::1/64 dev flannel-v6.1 nodad",
            "link set flannel-v6.1 address 0e:00:00:00:00:99",
            "link set flannel-v6.1 mtu 1400",
            "link set flannel-v6.1 down",
            "link delete flannel-v6.1",
        ] {
            ip(damage);
            assert_ne!(datapath.observe().await.unwrap(), wanted, "{damage}");
            let changes = bring_to(&mut datapath, &wanted).await;
            assert!(!changes.iter().any(|change| change.contains("10.1.")), "IPv4 is whole: {changes:?}");
        }
        run("bridge", &format!("fdb delete {} dev flannel-v6.1 self", mac(0x603)));
        run("bridge", "fdb add 0e:00:00:00:00:77 dev flannel-v6.1 dst 2001:db8::77 self permanent");
        bring_to(&mut datapath, &wanted).await;
        // Peers leave; another process takes over.
        bring_to(&mut dual_datapath(), &dual_state(2..4)).await;
    });
}

#[test]
fn what_others_have_on_the_device_stays() {
    with_namespace(|| async {
        underlay();
        bring_to(&mut dual_datapath(), &dual_state(2..4)).await;
        ip("-6 address add 2001:db8:77::1/128 dev flannel-v6.1 nodad");
        ip("-6 route add 2001:db8:1::/64 dev flannel-v6.1");
        ip("-6 route add 2001:db8:2::/64 via fd00:10:0:200:: dev flannel-v6.1 onlink proto static");
        ip("-6 route add 2001:db8:3::/64 via fd00:10:0:200:: dev flannel-v6.1 onlink metric 50");
        ip("-6 route add 2001:db8:4::/64 via 2001:db8::fe dev eth0");
        assert_eq!(bring_to(&mut dual_datapath(), &dual_state(2..4)).await, [""; 0]);
    });
}

#[test]
fn a_device_of_stock_flannels_is_adopted_and_one_of_another_address_is_not() {
    with_namespace(|| async {
        underlay();
        let stock = format!(
            "link add flannel-v6.1 address {} mtu 1430 type vxlan id 1 dev eth0 local {OUR_V6} dstport 8472 nolearning",
            mac(0xfff6)
        );
        ip(&stock);
        ip("link set flannel-v6.1 up");
        let index = index_of("flannel-v6.1");
        bring_to(&mut dual_datapath(), &dual_state(2..4)).await;
        assert_eq!(index_of("flannel-v6.1"), index);
        ip("link delete flannel-v6.1");
        ip(&stock.replace(OUR_V6, "2001:db8::9"));
        let index = index_of("flannel-v6.1");
        bring_to(&mut dual_datapath(), &dual_state(2..4)).await;
        assert_ne!(index_of("flannel-v6.1"), index);
    });
}

#[test]
fn direct_routes_of_ipv6_are_made_replaced_and_recognised() {
    with_namespace(|| async {
        underlay();
        let pool = Pool::V6(PoolV6 {
            network: "fd00:10::/48".parse().unwrap(),
            subnet_len: 64,
            subnet_min: "fd00:10:0:1::".parse().unwrap(),
            subnet_max: "fd00:10:0:ffff::".parse().unwrap(),
        });
        let own: IpNetwork = "fd00:10:0:1::/64".parse().unwrap();
        let datapath = || {
            KernelDatapath::new(Netlink::open().unwrap()).with_direct_routes(Stray {
                ifindex: ETH0,
                pool,
                own,
            })
        };
        let to = |subnet: &str, via: &str| {
            let route = DirectRoute { ifindex: ETH0, via: via.parse().unwrap() };
            (subnet.parse::<IpNetwork>().unwrap(), route)
        };
        let state = |routes: &[(IpNetwork, DirectRoute)]| State {
            direct_routes: routes.iter().copied().collect(),
            ..State::default()
        };
        let two = to("fd00:10:0:2::/64", "2001:db8::2");
        let mut first = datapath();
        bring_to(&mut first, &state(&[two, to("fd00:10:0:3::/64", "2001:db8::3")])).await;
        assert_eq!(
            ip("-6 route show fd00:10:0:2::/64").trim(),
            "fd00:10:0:2::/64 via 2001:db8::2 dev eth0 metric 1024 pref medium"
        );
        ip("-6 route replace fd00:10:0:2::/64 via 2001:db8::9 dev eth0");
        bring_to(&mut first, &state(&[two, to("fd00:10:0:3::/64", "2001:db8::3")])).await;
        assert_eq!(ip("-6 route show fd00:10:0:2::/64").lines().count(), 1, "replaced, not added");
        // Of an earlier process, and of an administrator: within our own subnet, and by a router.
        ip("-6 route add fd00:10:0:1:8::/80 via 2001:db8::5");
        ip("-6 route add 2001:db8:5::/64 via 2001:db8::fe");
        ip("-6 route add fd00:10:0:7::/64 via 2001:db8::fe");
        bring_to(&mut datapath(), &state(&[two])).await;
        let left = ip("-6 route show proto boot");
        for (route, stays) in
            [("fd00:10:0:1:8::/80", true), ("fd00:10:0:7::", true), ("fd00:10:0:3::", false)]
        {
            assert_eq!(left.contains(route), stays, "{route} in {left}");
        }
    });
}

#[test]
fn a_host_gw_node_has_no_device_of_either_family() {
    let stacks = [(Family::V4, stack()), (Family::V6, stack_v6())]
        .map(|(family, stack)| (family, LocalStack { device: None, ..stack }));
    let local = Local { stacks: stacks.into(), backend: AnyBackend::new(HostGw), ..local() };
    assert_eq!(planned_as(&local, &Leases::new()).state, State::default());
}
