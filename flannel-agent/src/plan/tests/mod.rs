//! Plans of clusters that are made up here: what the tests have in common.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use flannel_common::{
    family::V4,
    layout::{Exempt, PodPlace, RouteKind, SubnetV4},
};
use ipnetwork::{Ipv4Network, Ipv6Network};
use proptest::prelude::*;

use super::*;
use crate::{
    backend::{Alloc, HostGw, Ipip, Vxlan, VxlanOptions},
    datapath::{Datapath, memory::MemoryDatapath},
    lease::{
        self, Lease, LeaseAttrs, LeaseEvent,
        wire::{RawJson, VxlanData},
    },
    values::{IpFamily, Mac, overlap},
};

mod backends;
mod families;
mod hooks;
mod inherited;
mod order;
mod patch;
mod peers;
mod pod_routes;
mod programs;
mod properties;

/// The backends that plans differ by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Vxlan,
    HostGw,
    Alloc,
    Ipip,
}

impl Backend {
    fn of_node(self) -> AnyBackend {
        match self {
            Self::Vxlan => AnyBackend::new(Vxlan { options: VxlanOptions::default(), macs: BTreeMap::new() }),
            Self::HostGw => AnyBackend::new(HostGw),
            Self::Alloc => AnyBackend::new(Alloc),
            Self::Ipip => AnyBackend::new(Ipip { direct_routing: true }),
        }
    }
}

const OUR_MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 0xff]);
const OUR_MAC_V6: Mac = Mac([0x0e, 0, 0, 0, 0, 0xf6]);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn net4(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn subnet_key(network: Ipv4Network) -> SubnetV4 {
    V4::subnet_key(network.into()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

fn local(fast_path: FastPath) -> Local {
    Local {
        stacks: BTreeMap::from([(Family::V4, stack())]),
        underlay_ifindex: 2,
        backend: Backend::Vxlan.of_node(),
        objects: Objects::new(),
        direct_routing: false,
        fast_path,
        xdp: Xdp::OFF,
        flow_refresh: FlowRefresh::of(Duration::from_secs(30)),
        source_ports: 32768..60999,
    }
}

fn stack() -> LocalStack {
    LocalStack {
        network: net("10.0.0.0/8"),
        subnet: net("10.1.0.0/24"),
        public_ip: ip("192.0.2.1"),
        address: ip("192.0.2.1"),
        device: Some(device()),
    }
}

fn stack_v6() -> LocalStack {
    let device = VxlanDevice {
        name: "flannel-v6.1".into(),
        local: ip("2001:db8::1"),
        mac: OUR_MAC_V6,
        mtu: 1430,
        ..device()
    };
    LocalStack {
        network: net("fd00:10::/32"),
        subnet: net("fd00:10:0:1::/64"),
        public_ip: ip("2001:db8::1"),
        address: ip("2001:db8::1"),
        device: Some(device),
    }
}

fn stack_of(family: Family) -> LocalStack {
    match family {
        Family::V4 => stack(),
        Family::V6 => stack_v6(),
    }
}

/// The node of some backend in a cluster of `families`.
fn local_with(backend: Backend, fast_path: FastPath, families: &[Family]) -> Local {
    let stack = |family| {
        let stack = stack_of(family);
        LocalStack { device: stack.device.clone().filter(|_| backend == Backend::Vxlan), ..stack }
    };
    let stacks = families.iter().map(|family| (*family, stack(*family))).collect();
    Local { stacks, backend: backend.of_node(), ..local(fast_path) }
}

fn local_by(backend: Backend, fast_path: FastPath) -> Local {
    local_with(backend, fast_path, &[Family::V4])
}

fn device() -> VxlanDevice {
    VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        port: 8472,
        underlay_ifindex: 2,
        local: ip("192.0.2.1"),
        mac: OUR_MAC,
        mtu: 1450,
        learning: false,
        gbp: false,
    }
}

fn lease(subnet: &str, public_ip: &str, vtep_mac: Mac) -> Lease {
    let data = VxlanData { vni: 7, vtep_mac: Some(vtep_mac) };
    Lease {
        subnet: LeaseSubnet { v4: Some(net4(subnet)), v6: None },
        attrs: LeaseAttrs::vxlan_v4(ip4(public_ip), data),
        expiration: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)),
        made: None,
        node: None,
    }
}

fn leases(all: impl IntoIterator<Item = Lease>) -> Leases {
    all.into_iter().map(|lease| (lease.subnet, lease)).collect()
}

fn hop(n: u8) -> NextHop {
    NextHop { ifindex: 2, address: Ipv4Addr::new(192, 0, 2, n).into(), mtu: 1500 }
}

/// How peer n is reached: on the link, behind a gateway, over another interface, or only by the kernel.
fn hops_of(n: u8) -> Result<NextHop, NoHop> {
    match n {
        1..=4 => Ok(hop(n)),
        5 | 6 => Ok(hop(254)),
        7 => Ok(NextHop { ifindex: 3, ..hop(n) }),
        _ => Err(NoHop::Multipath),
    }
}

/// The same of a peer's address in either family.
fn hops_in(family: Family, n: u8) -> Result<NextHop, NoHop> {
    let found = hops_of(n);
    match family {
        Family::V4 => found,
        Family::V6 if found == Ok(hop(254)) => Ok(NextHop { address: ip("fe80::1"), ..hop(254) }),
        Family::V6 => found.map(|hop| NextHop { address: node(family, n), ..hop }),
    }
}

/// A pod at 10.1.0.n behind each link n.
fn pods(links: impl IntoIterator<Item = u8>) -> Pods {
    let place = |n: u8| PodPlace { ifindex: n.into(), mtu: 1500, mac: [n; 6], gateway_mac: [0xee; 6] };
    let places: BTreeMap<_, _> =
        links.into_iter().map(|n| (Ipv4Addr::new(10, 1, 0, n).into(), place(n))).collect();
    Pods { links: places.values().map(|place| place.ifindex).collect(), places, ..Pods::default() }
}

fn planned(fast_path: FastPath, leases: &Leases) -> Plan {
    planned_for(&local(fast_path), leases)
}

fn planned_for(local: &Local, leases: &Leases) -> Plan {
    let next_hops = BTreeMap::from([(ip("192.0.2.2"), Ok(hop(2))), (ip("198.51.100.3"), Ok(hop(254)))]);
    plan_by(local, leases, &next_hops)
}

fn plan_by(local: &Local, leases: &Leases, next_hops: &NextHops) -> Plan {
    plan(&Inputs {
        policies: &[],
        local,
        leases,
        next_hops,
        pods: &pods([11, 12]),
        overlays: &BTreeMap::from([(Family::V4, 5)]),
        foreign: &Foreign::default(),
        exemptions: &Exemptions::default(),
    })
}

/// The reason each lease is skipped for, by subnet.
fn skips(plan: &Plan) -> BTreeMap<String, String> {
    plan.skipped.iter().map(|((subnet, _), skip)| (subnet.to_string(), skip.to_string())).collect()
}

/// The address of a node in a family.
fn node(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
    }
}
