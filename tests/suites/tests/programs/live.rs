//! Packets over real interfaces, for what BPF_PROG_TEST_RUN cannot make.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use flannel_common::{path::Hook, reason::Reason};
use flannel_common_testing::{Frame, HERE, THERE};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket},
};

use crate::{
    loaded::Loaded,
    sandbox::{eventually, in_sandbox, ip},
};

/// Sends `frame` out of `interface`, as it is.
fn send(interface: &str, frame: &[u8]) -> Result<()> {
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()))
        .with_context(|| format!("no interface {interface}"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let sent = sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty())
        .with_context(|| format!("send out of {interface}"))?;
    ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
    Ok(())
}

/// Waits until `hook` has counted one packet, of `bytes`, for `reason`. What the kernel sends of its own,
/// a bridge's reports for one, is counted for other reasons.
fn expect_one(loaded: &mut Loaded, hook: Hook, reason: Reason, bytes: usize) -> Result<()> {
    let mut seen = None;
    eventually(|| {
        seen = loaded.raised()?.remove(&(hook.direction(), reason));
        Ok(seen.is_some())
    })
    .with_context(|| format!("{}: nothing counted for {reason:?}", hook.program()))?;
    ensure!(seen == Some((1, bytes as u64)), "{}: {reason:?} counted {seen:?}", hook.program());
    Ok(())
}

/// `frame` with an 802.1Q tag of VLAN 10.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0, 10], &frame[12..]].concat()
}

#[test]
fn tagged_frames_are_the_kernels() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        loaded.fill(&HERE.tables(&[THERE]))?;
        // On its way in the kernel takes a tag out of the frame before tc sees it.
        let pod = Frame::udp(HERE.pod(2), THERE.pod(2), 64).bytes();
        let inner = Frame::udp(THERE.pod(2), HERE.pod(2), 64).macs(HERE.mac, THERE.mac).bytes();
        let outer = Frame::vxlan(THERE.vtep, HERE.vtep, &inner).bytes();
        for (interface, hook, frame) in
            [("pod", Hook::FromPod, &pod), ("underlay", Hook::FromUnderlay, &outer)]
        {
            loaded.programs.attach(interface, hook)?;
            send(&format!("{interface}_end"), &tagged(frame))?;
            expect_one(&mut loaded, hook, Reason::Vlan, frame.len())?;
        }
        // On its way through a bridge it stays there.
        loaded.programs.attach("overlay", Hook::ToOverlay)?;
        ip("link add bridge type bridge\n\
            link set bridge addrgenmode none up\n\
            link set overlay master bridge\n\
            link set other_pod master bridge")?;
        let routed = Frame::udp(HERE.pod(2), THERE.pod(2), 64).macs(THERE.mac, HERE.mac).bytes();
        send("other_pod_end", &tagged(&routed))?;
        expect_one(&mut loaded, Hook::ToOverlay, Reason::Vlan, routed.len())
    });
}

#[test]
fn frames_that_end_in_their_ip_header_are_the_kernels() {
    in_sandbox(|sandbox| {
        let mut loaded = Loaded::new(sandbox)?;
        loaded.fill(&HERE.tables(&[THERE]))?;
        let mut frame = Frame::udp(HERE.pod(2), THERE.pod(2), 64).bytes();
        frame.truncate(33);
        for (interface, hook) in [("pod", Hook::FromPod), ("underlay", Hook::FromUnderlay)] {
            loaded.programs.attach(interface, hook)?;
            send(&format!("{interface}_end"), &frame)?;
            expect_one(&mut loaded, hook, Reason::Truncated, frame.len())?;
        }
        loaded.programs.attach("overlay", Hook::ToOverlay)?;
        send("overlay", &frame)?;
        expect_one(&mut loaded, Hook::ToOverlay, Reason::Truncated, frame.len())
    });
}
