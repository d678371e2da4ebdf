//! Every fixture, and with them every reason, through the programs.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use flannel_common::{
    layout::SubnetV4,
    path::{Hook, Verdict, left},
    reason::{Direction, Reason},
};
use flannel_common_testing::{
    Frame, HERE, THERE,
    fixtures::{self, Fixture, InKernel},
    seen_at,
};

use crate::{
    judge::{check, source_port},
    loaded::{Counted, Loaded},
    sandbox::in_sandbox,
};

/// What BPF_PROG_TEST_RUN cannot produce, and which test has it instead.
const ELSEWHERE: [(Reason, &[Hook], &str); 5] = [
    // The tag's place in the metadata cannot be set.
    (
        Reason::Vlan,
        &[Hook::FromPod, Hook::ToOverlay, Hook::FromUnderlay, Hook::FromOverlay],
        "live::tagged_frames_are_the_kernels",
    ),
    // Nothing can be beside it.
    (
        Reason::FlowChanged,
        &[Hook::ToOverlay, Hook::ToPod, Hook::ToUnderlay],
        "rules::what_rules_write_into_packets_is_in_all_of_them",
    ),
    // Nor that it began as one to a Service.
    (Reason::FlowTranslated, WAY_OUT, NEVER_ANSWERED),
    (Reason::FlowAsked, WAY_OUT, NEVER_ANSWERED),
    // There is always a socket.
    (Reason::ForwarderLearned, &[Hook::FromPod], "aggregates::a_pod_that_forwards"),
];

const WAY_OUT: &[Hook] = &[Hook::ToOverlay, Hook::ToUnderlay];
const NEVER_ANSWERED: &str = "translated::a_flow_to_a_service_that_is_never_answered_again_becomes_fast";

/// What is noted about tunnels. Each program's notes are held against the host's on random packets; packets made by hand
/// are in flannel-common's tests of the gate, the kernel's own in the lab's of the underlay.
const TUNNELS: [Reason; 3] = [Reason::TunnelSeen, Reason::TunnelClosed, Reason::TunnelDiffers];

/// Segments of an aggregate, as the kernel would count them.
const SEGMENTS: u32 = 3;

fn run_all(hook: Hook) {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        for fixture in fixtures::of(hook) {
            let verdict = match fixture.in_kernel {
                InKernel::Agrees => fixture.verdict,
                InKernel::Overrules(reason) => left(hook, &fixture.frame[..], &fixture.tables, reason),
                InKernel::LetsPass => Verdict::Pass,
                InKernel::CannotRun(_) => continue,
            };
            run(&mut loaded, &fixture, &verdict).with_context(|| fixture.about)?;
        }
        Ok(())
    });
}

fn run(loaded: &mut Loaded, fixture: &Fixture, verdict: &Verdict) -> Result<()> {
    let Fixture { hook, frame, arrival, tables, note, note_v6, .. } = fixture;
    let segments = if arrival.gso_size == 0 { 0 } else { SEGMENTS };
    let outcome = loaded.run_with(tables, *hook, frame, arrival, segments)?;
    check(*hook, frame, arrival, segments, (tables, note.as_ref(), note_v6.as_ref()), verdict, &outcome)
}

#[test]
fn from_pod() {
    run_all(Hook::FromPod);
}

#[test]
fn to_overlay() {
    run_all(Hook::ToOverlay);
}

#[test]
fn from_underlay() {
    run_all(Hook::FromUnderlay);
}

#[test]
fn from_overlay() {
    run_all(Hook::FromOverlay);
}

#[test]
fn to_pod() {
    run_all(Hook::ToPod);
}

#[test]
fn to_underlay() {
    run_all(Hook::ToUnderlay);
}

#[test]
fn xdp_underlay() {
    run_all(Hook::XdpUnderlay);
}

#[test]
fn xdp_generic() {
    run_all(Hook::XdpGeneric);
}

#[test]
fn every_reason_of_every_program_is_run() {
    let mut given = BTreeSet::new();
    for hook in Hook::ALL {
        let elsewhere = ELSEWHERE.iter().filter(|(_, hooks, _)| hooks.contains(&hook));
        let mut found: BTreeSet<Reason> = elsewhere.map(|(reason, ..)| *reason).collect();
        for fixture in fixtures::of(hook) {
            if fixture.in_kernel == InKernel::Agrees {
                found.extend(fixture.note.map(|note| note.reason()));
            }
            match fixture.in_kernel {
                InKernel::Overrules(reason) => found.extend([reason]),
                InKernel::Agrees => found.extend(fixture.verdict.reason()),
                InKernel::CannotRun(_) | InKernel::LetsPass => {}
            }
        }
        let all =
            fixtures::decided(hook).iter().chain(fixtures::overruled(hook)).chain(fixtures::noted(hook));
        let all = all.copied();
        let all: BTreeSet<Reason> = all.collect();
        assert_eq!(found, all, "{}", hook.program());
        given.extend(all);
    }
    given.extend(TUNNELS);
    assert_eq!(given, Reason::ALL.iter().copied().collect());
}

#[test]
fn a_tunnel_in_a_tunnel_is_refused() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        // The outer packet of the first run looks to the second like one for the same peer: from MAC 0
        // to MAC 0, and the peer's address is in a leased subnet.
        let mut tables = HERE.tables(&[THERE]);
        let mut peer = HERE.peer(&THERE);
        (peer.vtep_mac, peer.local_mac) = ([0; 6], [0; 6]);
        tables.routes.insert(THERE.subnet, peer);
        tables.routes.insert(SubnetV4::of(THERE.vtep, 24), peer);
        loaded.fill(&tables)?;
        let frame = Frame::udp(HERE.pod(2), THERE.pod(2), 10).macs([0; 6], [0; 6]).bytes();
        let hook = Hook::ToOverlay;
        let outcome = loaded.run_again(hook, &frame, &seen_at(hook), 0, 2)?;
        let len = frame.len() as u64;
        let expected = Counted::from([
            ((Direction::Egress, Reason::EncapOverlay), (1, len)),
            ((Direction::Egress, Reason::Refused), (1, len + 50)),
        ]);
        ensure!(outcome.counted == expected, "{:?}", outcome.counted);
        ensure!(outcome.action == -1, "action {}", outcome.action);
        ensure!(outcome.frame.len() == frame.len() + 50, "the refused packet was changed");
        Ok(())
    });
}

#[test]
fn a_flow_keeps_its_source_port_and_flows_differ() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        loaded.fill(&HERE.tables(&[THERE]))?;
        let mut ports = BTreeSet::new();
        for flow in 0..64u8 {
            // The inner UDP source port is the flow; length and TTL are the packet's.
            let mut port_of = |len, ttl| -> Result<Option<u16>> {
                let mut frame = Frame::udp(HERE.pod(2), THERE.pod(2), len).ip(|ip| ip.ttl = ttl);
                frame = frame.macs(HERE.gateway_mac(), HERE.pod_mac(2));
                frame.payload[1] = flow;
                let hook = Hook::FromPod;
                Ok(source_port(&loaded.run(hook, &frame.bytes(), &seen_at(hook), 0)?))
            };
            let port = port_of(10, 64)?;
            ensure!(port == port_of(900, 30)?, "flow {flow} has two source ports");
            ports.insert(port);
        }
        // 64 of 28231 ports collide now and then.
        ensure!(ports.len() > 48, "64 flows share {} ports", ports.len());
        Ok(())
    });
}
