use super::*;
use crate::{
    bpf::MapFill,
    cmd::status::Attached,
    control::snapshot::{
        Agent, Backend, Dataplane, Device, FastPath, Interface, OwnLease, Probes, Rules, Store, Traffic,
    },
};

fn report() -> Report {
    let agent = Snapshot {
        version: 1,
        agent: Agent {
            version: "0.1.0".to_owned(),
            pid: 4711,
            started: 1000,
            doing: "running".to_owned(),
            ready: true,
            ..Agent::default()
        },
        store: Some(Store {
            server: "etcd".to_owned(),
            trouble: None,
            since: 1000,
            revision: Some("4711".to_owned()),
            heard: Some(4590),
            bad_config: None,
            unusable: Vec::new(),
        }),
        lease: Some(OwnLease {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            public: vec!["192.0.2.1".parse().unwrap()],
            expires: Some(90_000),
            ..OwnLease::default()
        }),
        interface: Some(Interface {
            name: "eth0".to_owned(),
            index: 2,
            mtu: 1500,
            addresses: vec!["192.0.2.1".parse().unwrap()],
        }),
        backend: Some(Backend {
            kind: "vxlan".to_owned(),
            direct_routing: false,
            devices: vec![Device {
                networks: vec!["10.244.0.0/16".parse().unwrap()],
                name: "flannel.1".to_owned(),
                vni: Some(1),
                port: Some(8472),
                mac: None,
                mtu: 1450,
            }],
            pod_mtu: 1450,
        }),
        fast_path: Some(FastPath {
            by_backend: false,
            asked: "flow".to_owned(),
            granted: "flow".to_owned(),
            limit: None,
            attached_by: Some("tcx".to_owned()),
            xdp: "off".to_owned(),
        }),
        rules: vec![Rules { kept_by: "iptables".to_owned(), in_place: true, ..Rules::default() }],
        traffic: Some(Traffic { seconds: 60, fast: 980, kernel: 20, dropped: 0 }),
        dataplane: Some(Dataplane { synced: true, settled: true, peers: 2, ..Dataplane::default() }),
        without_dataplane: None,
        probes: Probes { peers: 1, asked: Some([4500, 4580]), ..Probes::default() },
        ..Snapshot::default()
    };
    Report {
        verdict: "healthy",
        problems: Vec::new(),
        without_agent: None,
        agent: Some(agent),
        programs: vec![
            Attached { program: "from_pod".to_owned(), interface: "veth1".to_owned() },
            Attached { program: "from_pod".to_owned(), interface: "veth2".to_owned() },
            Attached { program: "from_underlay".to_owned(), interface: "eth0".to_owned() },
        ],
        maps: vec![MapFill { map: "routes_v4", entries: 2, room: 65536, forgets: false }],
        without_maps: None,
        hold_seconds: Some(60),
        known_peers: None,
    }
}

#[test]
fn a_healthy_node_fits_on_a_screen() {
    let text = render(&report(), 4600);
    for line in [
        "Verdict     healthy",
        "Agent       0.1.0, process 4711, up 1 h 0 min, running; ready",
        "Store       etcd, answers since 1 h 0 min; revision 4711, heard 10 s ago",
        "Lease       10.244.1.0/24 of 10.244.0.0/16, published at 192.0.2.1; ends in 23 h 43 min unless renewed",
        "Interface   eth0, MTU 1500, 192.0.2.1",
        "Backend     vxlan: flannel.1, VNI 1, UDP port 8472, MTU 1450; pods have MTU 1450",
        "Fast path   flow, attached by tcx, XDP off",
        "Traffic     98 % fast in the last 1 min 0 s: 980 of 1000 packets",
        "Peers       2 in place, 0 pending, 0 skipped for a fault",
        "Repairs     0",
        "Last error  none",
        "Probes      1 of 1 peers that were asked answered, 20 s to 1 min 40 s ago; 1 were not asked yet",
        "Rules       iptables: in place, put back 0 times",
        "Programs    from_pod 2 interfaces, from_underlay eth0",
        "Maps        routes_v4 2 of 65536",
    ] {
        let unspaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(unspaced(&text).contains(&unspaced(line)), "no line {line} in\n{text}");
    }
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn problems_and_an_absent_agent_are_said_in_words() {
    let mut report = report();
    report.verdict = "something is wrong";
    report
        .problems
        .push(Problem { what: "etcd does not answer".to_owned(), remedy: "look at it".to_owned() });
    assert!(render(&report, 4600).ends_with("\nProblems\n- etcd does not answer; look at it\n"));
    report.agent = None;
    report.without_agent = Some("no agent answers at /x\u{1b}[2J".to_owned());
    report.known_peers = Some([3, 1]);
    let text = render(&report, 4600);
    assert!(text.contains("3 known to kernel and maps, 1 of them differ"), "{text}");
    assert!(text.contains("without an agent for 1 min 0 s") && !text.contains('\u{1b}'), "{text}");
}
