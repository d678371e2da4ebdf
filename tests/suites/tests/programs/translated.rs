//! Translation by the programs, held against packets that were made as netfilter leaves them: the same bytes.

use anyhow::{Context as _, Result, ensure};
use flannel_common::{
    family::V4,
    layout::{AddressV6, FastPath, Flow, FlowProtocol, Permit, Translation},
    packet::headers::{ENCAP_LEN, ETHERNET_LEN, TCP_ACK, folded},
    path::{Hook, fields},
};
use flannel_common_testing::{Frame, FrameV6, HERE, MemoryTables, NOW, THERE, interface, seen_at};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{loaded::Loaded, sandbox::in_sandbox};

/// Packets each way and of each family.
const CASES: u32 = 400;

/// A flow to a Service, and a packet of it.
#[derive(Clone, Debug)]
struct Case {
    protocol: FlowProtocol,
    service: [u8; 4],
    /// Of the pod, of the Service, of the backend.
    ports: [u16; 3],
    data: Vec<u8>,
    /// UDP over IPv4 may have none.
    has_checksum: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let protocol = prop_oneof![Just(FlowProtocol::Tcp), Just(FlowProtocol::Udp)];
    // In no pod network, and no group.
    let service = (1..=9u8, any::<[u8; 3]>()).prop_map(|(first, [b, c, d])| [first, b, c, d]);
    let ports = any::<[u16; 3]>();
    let data = prop::collection::vec(any::<u8>(), 0..900);
    (protocol, service, ports, data, any::<bool>()).prop_map(
        |(protocol, service, ports, data, has_checksum)| Case {
            protocol,
            service,
            ports,
            data,
            has_checksum,
        },
    )
}

impl Case {
    /// The transport header and data of a packet between these ports, without a checksum.
    fn segment(&self, source: u16, destination: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(source.to_be_bytes());
        bytes.extend(destination.to_be_bytes());
        match self.protocol {
            FlowProtocol::Tcp => {
                bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, TCP_ACK, 0x10, 0, 0, 0, 0, 0]);
                bytes.extend(&self.data);
            }
            FlowProtocol::Udp => {
                bytes.extend((8 + self.data.len() as u16).to_be_bytes());
                bytes.extend([0; 2]);
                bytes.extend(&self.data);
            }
        }
        bytes
    }

    fn checksum_at(&self) -> usize {
        match self.protocol {
            FlowProtocol::Tcp => 16,
            FlowProtocol::Udp => 6,
        }
    }

    fn with_checksum(&self, mut segment: Vec<u8>, sum: u16) -> Vec<u8> {
        let sum = if self.protocol == FlowProtocol::Udp && sum == 0 { 0xffff } else { sum };
        segment[self.checksum_at()..][..2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// The packet from `source` to `destination`, with all its checksums right.
    fn v4(&self, source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Frame {
        let mut segment = self.segment(source.1, destination.1);
        if self.has_checksum || self.protocol == FlowProtocol::Tcp {
            let sum =
                sum(&[&source.0, &destination.0], self.protocol as u32 + segment.len() as u32, &segment);
            segment = self.with_checksum(segment, !sum);
        }
        Frame::ipv4(source.0, destination.0, self.protocol as u8, segment)
    }

    /// The same of IPv6.
    fn v6(&self, source: (AddressV6, u16), destination: (AddressV6, u16)) -> FrameV6 {
        let segment = self.segment(source.1, destination.1);
        let ends = [&source.0.octets[..], &destination.0.octets[..]];
        let sum = sum(&ends, self.protocol as u32 + segment.len() as u32, &segment);
        let segment = self.with_checksum(segment, !sum);
        FrameV6::new(source.0, destination.0, self.protocol as u8, segment)
    }

    /// The tables of [`HERE`], in which the flow and its translation are known.
    fn tables(&self) -> MemoryTables {
        let mut tables = HERE.dual_tables(&[THERE]);
        let [pod, service, backend] = self.ports;
        let permit = Permit {
            egress: NOW,
            ingress: NOW,
            ifindex: interface::POD,
            gateway: folded(&HERE.gateway_mac()),
            sent: fields::of(0, 64),
            received: fields::of(0, 64),
            ..Permit::default()
        };
        let protocol = self.protocol;
        let flow = Flow::<V4> {
            local: HERE.pod(2),
            remote: self.service,
            local_port: pod,
            remote_port: service,
            protocol,
        };
        let there = Translation { remote: THERE.pod(2), remote_port: backend, reserved: 0, id: 1 };
        let back = Translation { remote: self.service, remote_port: service, ..there };
        tables.translations.extend([(flow, there), (there.other_side(&flow), back)]);
        tables.flows.insert(flow, permit);
        let flow = Flow {
            local: HERE.pod_v6(2),
            remote: self.service_v6(),
            local_port: pod,
            remote_port: service,
            protocol,
        };
        let there = Translation { remote: THERE.pod_v6(2), remote_port: backend, reserved: 0, id: 1 };
        let back = Translation { remote: self.service_v6(), remote_port: service, ..there };
        tables.v6.translations.extend([(flow, there), (there.other_side(&flow), back)]);
        tables.v6.flows.insert(flow, permit);
        tables.config.iter_mut().for_each(|config| config.fast_path = FastPath::Flow);
        tables.v6.config.iter_mut().for_each(|config| config.fast_path = FastPath::Flow);
        tables
    }

    fn service_v6(&self) -> AddressV6 {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfd, 0x96]);
        octets[12..].copy_from_slice(&self.service);
        AddressV6::new(octets)
    }
}

/// The sum of 16-bit words, of which no part but the last has an odd number of bytes.
fn sum(addresses: &[&[u8]], rest: u32, segment: &[u8]) -> u16 {
    let words = addresses.iter().copied().chain([segment]).flat_map(|part| part.chunks(2));
    let word = |bytes: &[u8]| u32::from(bytes[0]) << 8 | u32::from(bytes.get(1).copied().unwrap_or_default());
    let mut sum = words.map(word).sum::<u32>() + rest;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn each(check: impl Fn(&mut Loaded, &Case) -> Result<()> + Sync) {
    in_sandbox(|sandbox| {
        let loaded = std::cell::RefCell::new(Loaded::small(sandbox, flannel_common::path::Carrier::Vxlan)?);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let checked = TestRunner::new(config).run(&case(), |case| {
            check(&mut loaded.borrow_mut(), &case).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        checked.map_err(|error| anyhow::anyhow!("{error}"))
    });
}

/// What the program at `hook` leaves behind `skipped` bytes of the frame that it redirects.
fn redirected(loaded: &mut Loaded, case: &Case, hook: Hook, frame: &[u8], skipped: usize) -> Result<Vec<u8>> {
    const REDIRECT: i32 = 7;
    loaded.fill(&case.tables())?;
    let outcome = loaded.run(hook, frame, &seen_at(hook), 0)?;
    ensure!(outcome.action == REDIRECT, "not redirected but {:?}", outcome.counted);
    Ok(outcome.frame.get(skipped..).context("too short")?.to_vec())
}

#[test]
fn what_a_pod_sends_to_a_service_leaves_as_netfilter_would_send_it() {
    each(|loaded, case| {
        let [pod, service, backend] = case.ports;
        let from = (HERE.pod(2), pod);
        let frame = case.v4(from, (case.service, service)).macs(HERE.gateway_mac(), HERE.pod_mac(2));
        let expected = case.v4(from, (THERE.pod(2), backend)).ip(|ip| ip.ttl -= 1).bytes();
        let sent = redirected(loaded, case, Hook::FromPod, &frame.bytes(), ENCAP_LEN + ETHERNET_LEN)?;
        ensure!(sent == expected[ETHERNET_LEN..], "{sent:02x?}\nnot\n{:02x?}", &expected[ETHERNET_LEN..]);
        Ok(())
    });
}

#[test]
fn what_a_backend_answers_arrives_as_netfilter_would_bring_it() {
    each(|loaded, case| {
        let [pod, service, backend] = case.ports;
        let to = (HERE.pod(2), pod);
        let inner = case.v4((THERE.pod(2), backend), to).macs(HERE.mac, THERE.mac);
        let frame = Frame::vxlan(THERE.vtep, HERE.vtep, &inner.bytes());
        let expected = case.v4((case.service, service), to).ip(|ip| ip.ttl -= 1).bytes();
        let got = redirected(loaded, case, Hook::FromUnderlay, &frame.bytes(), ETHERNET_LEN)?;
        ensure!(got == expected[ETHERNET_LEN..], "{got:02x?}\nnot\n{:02x?}", &expected[ETHERNET_LEN..]);
        Ok(())
    });
}

#[test]
fn the_same_holds_for_ipv6() {
    each(|loaded, case| {
        let [pod, service, backend] = case.ports;
        let from = (HERE.pod_v6(2), pod);
        let frame = case.v6(from, (case.service_v6(), service)).macs(HERE.gateway_mac(), HERE.pod_mac(2));
        let expected = case.v6(from, (THERE.pod_v6(2), backend)).ip(|ip| ip.hop_limit -= 1);
        let outer = flannel_common::packet::ipv6::ENCAP_LEN;
        let sent = redirected(loaded, case, Hook::FromPod, &frame.bytes(), outer + ETHERNET_LEN)?;
        let expected = expected.bytes();
        ensure!(sent == expected[ETHERNET_LEN..], "{sent:02x?}\nnot\n{:02x?}", &expected[ETHERNET_LEN..]);

        let to = (HERE.pod_v6(2), pod);
        let inner = case.v6((THERE.pod_v6(2), backend), to).macs(HERE.mac_v6(), THERE.mac_v6());
        let frame = FrameV6::vxlan(THERE.vtep_v6(), HERE.vtep_v6(), &inner.bytes());
        let expected = case.v6((case.service_v6(), service), to).ip(|ip| ip.hop_limit -= 1).bytes();
        let got = redirected(loaded, case, Hook::FromUnderlay, &frame.bytes(), ETHERNET_LEN)?;
        ensure!(got == expected[ETHERNET_LEN..], "{got:02x?}\nnot\n{:02x?}", &expected[ETHERNET_LEN..]);
        Ok(())
    });
}
