//! A network namespace per test, and what the tests have in common.

use std::{
    collections::BTreeMap,
    future::Future,
    net::Ipv4Addr,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use flannel_agent::{
    backend::{AnyBackend, Objects, Vxlan, VxlanOptions},
    datapath::kernel::KernelDatapath,
    lease::{Lease, LeaseAttrs, LeaseSubnet, Leases, wire::VxlanData},
    netlink::Netlink,
    plan::{Exemptions, FlowRefresh, Foreign, Inputs, Local, LocalStack, Plan, Pods, VxlanDevice, plan},
    values::{Family, Mac},
};
use flannel_common::layout::FastPath;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{geteuid, gettid},
};
use serde_json::Value;

/// Index of `eth0`, high enough that the interfaces a namespace comes with do not have it.
pub(crate) const ETH0: u32 = 42;

/// Runs a test in a new network namespace, where `eth0` holds 192.0.2.1/24 and leads to the default route.
pub(crate) fn with_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    with_bare_namespace(|| {
        ip("link set lo up");
        link("eth0", "index 42 address 0e:00:00:00:01:01");
        ip("address add 192.0.2.1/24 dev eth0");
        ip("route add default via 192.0.2.254");
        test()
    });
}

/// The same, where there is nothing.
pub(crate) fn with_bare_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    assert!(
        geteuid().is_root(),
        "this test makes network namespaces and needs root; `cargo xtask setup` says what the tests need"
    );
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let test = test();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes an interface that is up, with a carrier.
pub(crate) fn link(name: &str, attributes: &str) {
    ip(&format!("link add {name} {attributes} type veth peer name {name}-far"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {name}-far up"));
}

/// Another network namespace, for the far ends of veths. It ends with this.
pub(crate) struct Elsewhere {
    /// A thread that is in it, as `ip ... netns` takes it.
    pub(crate) id: i32,
    _end: mpsc::Sender<()>,
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(gettid().as_raw()).unwrap();
            let _ = ended.recv();
        });
        Self { id: told.recv().unwrap(), _end: end }
    }
}

impl Elsewhere {
    /// Runs `ip` in that namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        run("nsenter", &format!("--net=/proc/{}/ns/net ip {arguments}", self.id))
    }
}

/// Runs `ip` in the namespace of this thread and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}; `cargo xtask setup` installs it"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip -j` prints.
pub(crate) fn ip_json(arguments: &str) -> Vec<Value> {
    serde_json::from_str(&ip(&format!("-j {arguments}"))).unwrap()
}

pub(crate) fn index_of(name: &str) -> u32 {
    u32::try_from(ip_json(&format!("link show {name}"))[0]["ifindex"].as_u64().unwrap()).unwrap()
}

pub(crate) fn mac(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac([0x0e, 0, 0, 1, high, low])
}

pub(crate) fn device() -> VxlanDevice {
    VxlanDevice {
        name: "flannel.1".into(),
        vni: 1,
        port: 8472,
        underlay_ifindex: ETH0,
        local: Ipv4Addr::new(192, 0, 2, 1).into(),
        mac: mac(0xffff),
        mtu: 1450,
        learning: false,
        gbp: false,
    }
}

pub(crate) fn local() -> Local {
    Local {
        stacks: BTreeMap::from([(Family::V4, stack())]),
        underlay_ifindex: ETH0,
        backend: AnyBackend::new(Vxlan { options: VxlanOptions::default(), macs: BTreeMap::new() }),
        objects: Objects::new(),
        direct_routing: false,
        fast_path: FastPath::Off,
        xdp: flannel_agent::plan::Xdp::OFF,
        flow_refresh: FlowRefresh::of(Duration::from_secs(30)),
        source_ports: 32768..60999,
    }
}

pub(crate) fn stack() -> LocalStack {
    let address = Ipv4Addr::new(192, 0, 2, 1).into();
    LocalStack {
        network: "10.0.0.0/8".parse().unwrap(),
        subnet: "10.1.0.0/24".parse().unwrap(),
        public_ip: address,
        address,
        device: Some(device()),
    }
}

/// The lease of node `n`, 2 or more: 10.(1 + n/256).(n mod 256).0/24.
pub(crate) fn lease(n: u16) -> Lease {
    let [high, low] = n.to_be_bytes();
    let subnet = Ipv4Addr::new(10, high + 1, low, 0);
    let data = VxlanData { vni: 1, vtep_mac: Some(mac(n)) };
    Lease {
        subnet: LeaseSubnet { v4: Some(format!("{subnet}/24").parse().unwrap()), v6: None },
        attrs: LeaseAttrs::vxlan_v4(Ipv4Addr::new(198, 18, high, low), data),
        expiration: Some(SystemTime::now() + Duration::from_secs(86400)),
        made: None,
        node: None,
    }
}

pub(crate) fn planned(nodes: impl IntoIterator<Item = u16>) -> Plan {
    let leases: Leases = nodes.into_iter().map(lease).map(|lease| (lease.subnet, lease)).collect();
    planned_as(&local(), &leases)
}

pub(crate) fn planned_as(local: &Local, leases: &Leases) -> Plan {
    plan(&Inputs {
        policies: &[],
        local,
        leases,
        next_hops: &BTreeMap::new(),
        pods: &Pods::default(),
        overlays: &BTreeMap::new(),
        foreign: &Foreign::default(),
        exemptions: &Exemptions::default(),
    })
}

pub(crate) fn datapath() -> KernelDatapath {
    KernelDatapath::new(Netlink::open().unwrap()).with_device("flannel.1".into(), stack().network)
}
