//! Thousands of random packets: the programs and the host must agree about each.

use std::cell::RefCell;

use flannel_common::{
    packet::{
        Arrival, Packet as _,
        headers::{ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN},
        ipv6::{ETHERTYPE_IPV6, IPV6_LEN},
    },
    path::{Carrier, Decision, Hook, decide, decide_all},
};
use flannel_common_testing::{
    interface,
    random::{Case, case},
    random_ipip::case_ipip,
    random_v6::case_v6,
};
use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use crate::{
    judge::{as_taken, check, in_kernel},
    loaded::Loaded,
    sandbox::in_sandbox,
};

/// Packets a hook: a few seconds in all.
const CASES: u32 = 3_000;
/// Another number for other packets.
const SEED: &str = "FLANNEL_TEST_SEED";

/// Whether BPF_PROG_TEST_RUN takes `frame`: with its Ethernet header, and with the IP header that it
/// announces.
fn can_run(frame: &[u8]) -> bool {
    let Some([high, low]) = frame.read::<2>(12) else { return false };
    let header = match u16::from_be_bytes([high, low]) {
        ETHERTYPE_IPV4 => IPV4_LEN,
        ETHERTYPE_IPV6 => IPV6_LEN,
        _ => 0,
    };
    frame.len() >= ETHERNET_LEN + header
}

fn seed() -> u64 {
    let Ok(text) = std::env::var(SEED) else { return 1 };
    match text.parse() {
        Ok(seed) => seed,
        Err(error) => panic!("{SEED}={text}: {error}"),
    }
}

/// What BPF_PROG_TEST_RUN makes of the destination MAC: as the kernel does with what arrives.
fn is_for_other_station(frame: &[u8]) -> bool {
    frame.read::<6>(0).is_some_and(|mac| mac[0] & 1 == 0 && mac != interface::UNDERLAY_MAC)
}

fn mtu_of(ifindex: u32) -> Option<u32> {
    match ifindex {
        interface::SMALL_POD => Some(interface::SMALL_MTU),
        _ if interface::ALL.contains(&ifindex) => Some(1500),
        _ => None,
    }
}

fn agree(loaded: &mut Loaded, case: &Case) -> anyhow::Result<()> {
    let Case { hook, frame, tables, .. } = case;
    let mut arrival = Arrival {
        tc_index: 0,
        vlan_tagged: false,
        for_other_station: false,
        from_socket: true,
        ..case.arrival
    };
    if hook.is_xdp() {
        // It knows no more than where a frame came in.
        arrival = Arrival { ifindex: interface::UNDERLAY, ..Arrival::default() };
    }
    if *hook == Hook::FromUnderlay {
        // Whose frame it is depends on the MAC of the interface.
        arrival.ifindex = interface::UNDERLAY;
        arrival.for_other_station = is_for_other_station(frame);
    }
    let verdict = decide(*hook, &frame[..], tables, &arrival);
    let verdict = in_kernel(*hook, verdict, frame, tables, arrival.gso_size, mtu_of);
    let segments = if arrival.gso_size == 0 { 0 } else { 2 };
    let Decision { v4, v6, .. } = decide_all(*hook, &frame[..], tables, &arrival, as_taken(frame));
    let outcome = loaded.run_with(tables, *hook, frame, &arrival, segments)?;
    check(*hook, frame, &arrival, segments, (tables, v4.note.as_ref(), v6.note.as_ref()), &verdict, &outcome)
}

fn compare<Cases: Strategy<Value = Case>>(hook: Hook, cases: fn(Hook) -> Cases) {
    compare_by(Carrier::Vxlan, hook, cases);
}

fn compare_by<Cases: Strategy<Value = Case>>(carrier: Carrier, hook: Hook, cases: fn(Hook) -> Cases) {
    in_sandbox(|sandbox| {
        let loaded = RefCell::new(Loaded::small(sandbox, carrier)?);
        let seed = seed();
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let result = runner.run(&cases(hook), |case| {
            if !can_run(&case.frame) {
                return Err(TestCaseError::reject("shorter than the kernel takes"));
            }
            let result = agree(&mut loaded.borrow_mut(), &case);
            result.map_err(|error| TestCaseError::fail(format!("{error:?}")))
        });
        match result {
            Ok(()) => Ok(()),
            Err(TestError::Fail(reason, case)) => {
                anyhow::bail!("with {SEED}={seed}: {reason}\nof {case:#?}\nframe {:02x?}", case.frame)
            }
            Err(error) => anyhow::bail!("with {SEED}={seed}: {error}"),
        }
    });
}

#[test]
fn from_pod() {
    compare(Hook::FromPod, case);
}

#[test]
fn from_pod_ipv6() {
    compare(Hook::FromPod, case_v6);
}

#[test]
fn from_pod_into_ip() {
    compare_by(Carrier::Ipip, Hook::FromPod, case_ipip);
}

#[test]
fn to_overlay() {
    compare(Hook::ToOverlay, case);
}

#[test]
fn to_overlay_ipv6() {
    compare(Hook::ToOverlay, case_v6);
}

#[test]
fn from_underlay() {
    compare(Hook::FromUnderlay, case);
}

#[test]
fn from_underlay_ipv6() {
    compare(Hook::FromUnderlay, case_v6);
}

#[test]
fn from_underlay_out_of_ip() {
    compare_by(Carrier::Ipip, Hook::FromUnderlay, case_ipip);
}

#[test]
fn from_overlay() {
    compare(Hook::FromOverlay, case);
}

#[test]
fn from_overlay_ipv6() {
    compare(Hook::FromOverlay, case_v6);
}

#[test]
fn to_pod() {
    compare(Hook::ToPod, case);
}

#[test]
fn to_pod_ipv6() {
    compare(Hook::ToPod, case_v6);
}

#[test]
fn to_underlay() {
    compare(Hook::ToUnderlay, case);
}

#[test]
fn to_underlay_ipv6() {
    compare(Hook::ToUnderlay, case_v6);
}

#[test]
fn to_underlay_in_ip() {
    compare_by(Carrier::Ipip, Hook::ToUnderlay, case_ipip);
}

#[test]
fn xdp_underlay() {
    compare(Hook::XdpUnderlay, case);
}

#[test]
fn xdp_underlay_ipv6() {
    compare(Hook::XdpUnderlay, case_v6);
}

#[test]
fn xdp_generic() {
    compare(Hook::XdpGeneric, case);
}

#[test]
fn xdp_generic_ipv6() {
    compare(Hook::XdpGeneric, case_v6);
}
