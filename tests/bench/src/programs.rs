//! What each program costs a packet, by BPF_PROG_TEST_RUN on the maps of a running node.
//!
//! A run changes its packet, so each begins with a fresh one; the median of many is free of the first runs' cold caches.
//! It includes the kernel's two looks at the clock, which is most of what `to_pod` shows for an unmarked packet.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    TestRun as _, TestRunOptions,
    programs::{
        SchedClassifier,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use etherparse::PacketBuilder;
use flannel_agent::bpf::{LogLevel, Pins, ProgramSummary, Programs, Tables};
use flannel_common::{layout::SubnetV4, mark::FLOW_MARK, path::Hook};
use flannel_lab::{Member, traffic::Endpoint, wait::eventually};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::{Case, Mode, Samples, Scenario, Subject};

/// Runs of each.
const RUNS: usize = 3_000;
/// Payload of the packets, bytes.
const SIZE: usize = 64;
/// Ports of the flow that is known.
const PORTS: (u16, u16) = (40_001, 40_002);
/// Ports of one that is not.
const OTHER_PORTS: (u16, u16) = (40_003, 40_004);
const PATIENCE: Duration = Duration::from_secs(10);

/// tc actions (include/uapi/linux/pkt_cls.h, bpf.h): go on with the next program, and redirect.
const NEXT: i32 = -1;
const REDIRECT: i32 = 7;

/// `struct __sk_buff`: its size up to the last field that is set, and where those are, bytes.
const CONTEXT: usize = 180;
const MARK_AT: usize = 8;
const IFINDEX_AT: usize = 40;

/// What one program costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Name of the program.
    pub program: String,
    /// Instructions the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Median time of a run, by kind of packet. Empty for a program that this cluster attaches nowhere.
    pub nanoseconds: BTreeMap<String, f64>,
}

/// Builds two nodes with the agent, and takes the cost of each program.
pub fn run() -> Result<Vec<Cost>> {
    let subject = Subject::build(Case::new(Scenario::Vxlan, Mode::Flow))?;
    let costs = cost(&subject)?;
    subject.close()?;
    Ok(costs)
}

/// A packet for a program.
struct Shot {
    hook: Hook,
    about: &'static str,
    frame: Vec<u8>,
    ifindex: u32,
    mark: u32,
    /// What the program must answer, so that nothing else is measured than what it says.
    action: i32,
}

/// The cost of each program on the client's node of `subject`.
pub(super) fn cost(subject: &Subject) -> Result<Vec<Cost>> {
    let [here, there] = subject.members() else { bail!("no agents") };
    learn(&here.pod()?, &there.pod()?)?;
    let pins = Pins::under(here.agent.bpffs())?;
    let times: BTreeMap<&str, BTreeMap<String, f64>> = here.node.netns().inside(|| {
        let mut times = BTreeMap::<_, BTreeMap<_, _>>::new();
        for shot in shots(here, there)? {
            let program = shot.hook.program();
            let time = time(&pins, &shot).with_context(|| format!("{program}, {}", shot.about))?;
            times.entry(program).or_default().insert(format!("UDP, {SIZE} B, {}", shot.about), time);
        }
        Ok(times)
    })?;
    // Loaded once more, beside those that run: the verifier is asked, not whoever else runs programs of these names.
    let aside = here.agent.bpffs().join("aside");
    fs::create_dir(&aside).with_context(|| format!("create {}", aside.display()))?;
    let aside = Pins::under(&aside)?;
    let summaries = Programs::load(aside.clone(), LogLevel::Off)?.summaries()?;
    aside.remove_all()?;
    let cost = |program: ProgramSummary| Cost {
        program: program.name.to_owned(),
        verified_instructions: program.verified_instructions,
        nanoseconds: times.get(program.name).cloned().unwrap_or_default(),
    };
    Ok(summaries.into_iter().map(cost).collect())
}

/// Makes the programs know the flow of [`PORTS`].
fn learn(here: &Endpoint, there: &Endpoint) -> Result<()> {
    let open = |end: &Endpoint, port| end.netns().inside(|| Ok(UdpSocket::bind((end.address(), port))?));
    let (a, b) = (open(here, PORTS.0)?, open(there, PORTS.1)?);
    let addresses: [SocketAddr; 2] = [a.local_addr()?, b.local_addr()?];
    a.connect(addresses[1])?;
    b.connect(addresses[0])?;
    let mut buffer = [0; SIZE];
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    for _ in 0..5 {
        eventually(PATIENCE, "a datagram goes there and back", || {
            a.send(&[0; SIZE])?;
            b.recv(&mut buffer)?;
            b.send(&[0; SIZE])?;
            a.recv(&mut buffer)?;
            Ok(())
        })?;
    }
    Ok(())
}

fn shots(here: &Member, there: &Member) -> Result<Vec<Shot>> {
    let tables = Tables::open(&Pins::under(here.agent.bpffs())?)?;
    let (near, far) = (here.pod()?.address_v4(), there.pod()?.address_v4());
    let subnet = there.node.subnet_env()?.subnet;
    let key = SubnetV4::of(subnet.network().octets(), subnet.prefix().into());
    let peer = tables.v4.routes.get(&key)?.context("the peer is in no map")?;
    let pod = tables.v4.pods.get(&near.octets())?.context("the pod is in no map")?;
    let (underlay, overlay) = (if_nametoindex("eth0")?, if_nametoindex("flannel.1")?);
    let udp = |macs: ([u8; 6], [u8; 6]),
               ends: [[u8; 4]; 2],
               hops: u8,
               ports: (u16, u16),
               payload: &[u8]|
     -> Result<Vec<u8>> {
        let packet =
            PacketBuilder::ethernet2(macs.0, macs.1).ipv4(ends[0], ends[1], hops).udp(ports.0, ports.1);
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write(&mut frame, payload)?;
        Ok(frame)
    };
    let (out, back) = ([near.octets(), far.octets()], [far.octets(), near.octets()]);
    let content = [0; SIZE];
    // A pod's packet as it comes from it, and after each of the nodes has forwarded it.
    let [sent, routed, arrived] = [64, 63, 62];
    let inner = udp((peer.vtep_mac, peer.local_mac), back, routed, (PORTS.1, PORTS.0), &content)?;
    // RFC 7348: flags with the bit that says there is a VNI, then the VNI in the upper three of four bytes.
    let vxlan = [&[8, 0, 0, 0][..], &(peer.vni << 8).to_be_bytes(), &inner].concat();
    let outer = [there.node.address().octets(), here.node.address().octets()];
    let arriving = udp((mac(&there.node)?, mac(&here.node)?), outer, sent, (50_000, 8472), &vxlan)?;
    let from_pod = |ports| udp((pod.mac, pod.gateway_mac), out, sent, ports, &content);
    let to_pod = || udp((pod.gateway_mac, pod.mac), back, arrived, (PORTS.1, PORTS.0), &content);
    let shot = |hook, about, frame, ifindex, mark, action| Shot { hook, about, frame, ifindex, mark, action };
    Ok(vec![
        shot(Hook::FromPod, "known flow", from_pod(PORTS)?, pod.ifindex, 0, REDIRECT),
        shot(Hook::FromPod, "unknown flow", from_pod(OTHER_PORTS)?, pod.ifindex, 0, NEXT),
        shot(
            Hook::ToOverlay,
            "unknown flow",
            udp((peer.local_mac, peer.vtep_mac), out, routed, OTHER_PORTS, &content)?,
            overlay,
            0,
            REDIRECT,
        ),
        shot(Hook::FromUnderlay, "known flow", arriving, underlay, 0, REDIRECT),
        shot(Hook::ToPod, "accepted by netfilter", to_pod()?, pod.ifindex, FLOW_MARK, NEXT),
        shot(Hook::ToPod, "unmarked", to_pod()?, pod.ifindex, 0, NEXT),
    ])
}

fn mac(node: &flannel_lab::Node) -> Result<[u8; 6]> {
    let text = node.netns().run("cat", &["/sys/class/net/eth0/address"])?;
    Ok(text.trim().parse::<flannel_agent::values::Mac>()?.0)
}

/// Median time of a run, ns.
fn time(pins: &Pins, shot: &Shot) -> Result<f64> {
    let name = shot.hook.program();
    let links = pins.pinned_links()?;
    let (interface, hook) =
        links.iter().find(|(_, hook)| *hook == shot.hook).context("it is attached nowhere")?;
    let link = FdLink::from(PinnedLink::from_pin(pins.link(interface, *hook))?);
    let id = link.info()?.program_id();
    let info =
        loaded_programs().filter_map(Result::ok).find(|info| info.id() == id).context("it is not loaded")?;
    let program = SchedClassifier::from_program_info(info, name.into())?;
    let mut context = [0u8; CONTEXT];
    context[MARK_AT..MARK_AT + 4].copy_from_slice(&shot.mark.to_ne_bytes());
    context[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&shot.ifindex.to_ne_bytes());
    let mut samples = Samples::default();
    for _ in 0..RUNS {
        let result = program.test_run(TestRunOptions {
            data_in: Some(&shot.frame),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        })?;
        let action = result.return_value.cast_signed();
        ensure!(action == shot.action, "the program answers {action}, not {}", shot.action);
        samples.push(result.duration.as_nanos() as f64);
    }
    Ok(samples.median())
}
