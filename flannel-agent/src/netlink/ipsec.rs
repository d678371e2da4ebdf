//! The kernel's IPsec policies (NETLINK_XFRM, include/uapi/linux/xfrm.h): what they are about, and when they change.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::ControlFlow,
    time::Duration,
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_XFRM};
use nix::errno::Errno;
use tokio::time::timeout;

use super::{
    NetlinkError,
    connection::frames,
    error::{KernelError, errno},
    raw::{HEADER, attributes, number},
};

const DATAGRAM: usize = 64 << 10;
/// As for other requests: any wait is for a lock.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The bit of group XFRMNLGRP_POLICY.
const POLICIES: u32 = 1 << 3;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const XFRM_MSG_NEWPOLICY: u16 = 0x13;
pub(super) const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// Attribute with what packets are transformed by.
pub(super) const XFRMA_TMPL: u16 = 5;
const XFRM_POLICY_BLOCK: u8 = 1;
/// Of a default.
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// Directions below are in, out and forward; those from here on belong to sockets.
const XFRM_POLICY_MAX: u8 = 3;
/// Size of `struct xfrm_userpolicy_info`, which begins with a selector.
pub(super) const POLICY: usize = 168;
/// Size of `struct xfrm_userpolicy_id`.
pub(super) const POLICY_ID: usize = 64;
/// Size of `struct xfrm_userpolicy_default`: what becomes of packets in, forwarded and out that no policy is about.
const DEFAULTS: usize = 3;

/// A policy of the kernel's that transforms or blocks the packets it is about (`ip xfrm policy`), whichever way they
/// travel. One that lets packets pass as they are is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpsecPolicy {
    /// Where its packets come from.
    pub source: IpNetwork,
    /// Where they go to.
    pub destination: IpNetwork,
    /// Their protocol; 0 is any.
    pub protocol: u8,
}

impl IpsecPolicy {
    /// What a default that blocks amounts to: a policy of each family.
    fn about_everything() -> impl Iterator<Item = Self> {
        let anywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let everything = anywhere.into_iter().filter_map(|address| IpNetwork::new(address, 0).ok());
        everything.map(|all| Self { source: all, destination: all, protocol: 0 })
    }
}

/// Listens to changes of policies, and reads them. Where the kernel has no IPsec there are none.
#[derive(Default)]
pub struct IpsecPolicies {
    listener: Option<TokioSocket>,
}

impl IpsecPolicies {
    /// Waits until policies have changed. For ever where the kernel has no IPsec. Cancel safe.
    ///
    /// # Errors
    /// The socket failed. The next call opens another and returns at once, since notices were missed.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let Some(listener) = &mut self.listener else {
            match open(POLICIES) {
                Ok(socket) => {
                    self.listener = Some(socket);
                    return Ok(());
                }
                Err(NetlinkError::Open(Errno::EPROTONOSUPPORT)) => std::future::pending().await,
                Err(error) => return Err(error),
            }
        };
        let mut datagram = Vec::with_capacity(DATAGRAM);
        match listener.recv(&mut datagram).await.map_err(|error| errno(&error)) {
            // Notices that were lost were notices.
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => {
                self.listener = None;
                return Err(NetlinkError::Socket(error));
            }
        }
        // What has come with it is the same news.
        while listener.socket_ref().recv(&mut { Vec::with_capacity(DATAGRAM) }, 0).is_ok() {}
        Ok(())
    }

    /// The policies there are that transform or block packets; where the default is to block (`ip xfrm policy
    /// setdefault`), also one of each family about everything.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn read(&self) -> Result<Vec<IpsecPolicy>, NetlinkError> {
        where_there_is_ipsec(async {
            let mut policies = dump(policy).await?;
            if what_default_blocks().await?.contains(&true) {
                policies.extend(IpsecPolicy::about_everything());
            }
            Ok(policies)
        })
        .await
    }
}

fn open(groups: u32) -> Result<TokioSocket, NetlinkError> {
    let refused = |error: io::Error| NetlinkError::Open(errno(&error));
    let mut socket = TokioSocket::new(NETLINK_XFRM).map_err(refused)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(refused)?;
    Ok(socket)
}

/// What `all` reads, in time; nothing where the kernel has no IPsec.
pub(super) async fn where_there_is_ipsec<T: Default>(
    all: impl Future<Output = Result<T, NetlinkError>>,
) -> Result<T, NetlinkError> {
    match timeout(PATIENCE, all).await {
        Ok(Err(NetlinkError::Open(Errno::EPROTONOSUPPORT))) => Ok(T::default()),
        Ok(read) => read,
        Err(_) => Err(NetlinkError::Silent(PATIENCE)),
    }
}

/// All policies, as `read` reads what follows the header of each: what it takes for none is left out.
pub(super) async fn dump<T>(read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, NetlinkError> {
    let mut policies = Vec::new();
    let each = |kind, body: &[u8]| {
        if kind == XFRM_MSG_NEWPOLICY {
            policies.extend(read(body));
        }
        ControlFlow::Continue(())
    };
    match exchange(XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[0; POLICY_ID], each).await? {
        None | Some(Errno::ENOENT) => Ok(policies),
        Some(errno) => Err(KernelError { errno, message: None }.into()),
    }
}

/// Whether packets are dropped that no policy is about: those for this node, forwarded ones, and those it sends.
pub(super) async fn what_default_blocks() -> Result<[bool; DEFAULTS], NetlinkError> {
    let mut blocks = [false; DEFAULTS];
    let each = |kind, body: &[u8]| {
        if kind != XFRM_MSG_GETDEFAULT {
            return ControlFlow::Continue(());
        }
        for (blocks, action) in blocks.iter_mut().zip(body) {
            *blocks = *action == XFRM_USERPOLICY_BLOCK;
        }
        ControlFlow::Break(())
    };
    match exchange(XFRM_MSG_GETDEFAULT, 0, &[0; DEFAULTS], each).await? {
        // Kernels before 5.15 have no default but to let pass.
        None | Some(Errno::EINVAL) => Ok(blocks),
        Some(errno) => Err(KernelError { errno, message: None }.into()),
    }
}

/// Sends a request of `kind` with `body` behind the header; `each` gets kind and body of each message of the answer,
/// until it has had enough. The error that the kernel answers with, if it does.
pub(super) async fn exchange(
    kind: u16,
    flags: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> ControlFlow<()>,
) -> Result<Option<Errno>, NetlinkError> {
    let socket = open(0)?;
    let failed = |error: io::Error| NetlinkError::Socket(errno(&error));
    let length = HEADER + body.len();
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.resize(HEADER, 0);
    request.extend(body);
    socket.send(&request).await.map_err(failed)?;
    let mut datagram = Vec::with_capacity(DATAGRAM);
    loop {
        datagram.clear();
        datagram.reserve(DATAGRAM);
        socket.recv(&mut datagram).await.map_err(failed)?;
        for frame in frames(&datagram) {
            let message = &datagram[frame];
            match number(message) {
                Some(NLMSG_DONE) => return Ok(None),
                Some(NLMSG_ERROR) => {
                    let code = message.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok());
                    return Ok(match i32::from_ne_bytes(code.unwrap_or_default()) {
                        0 => None,
                        code => Some(Errno::from_raw(code.saturating_neg())),
                    });
                }
                Some(kind) if each(kind, &message[HEADER..]).is_break() => return Ok(None),
                _ => {}
            }
        }
    }
}

/// The policy in a message, unless it lets packets pass as they are, or is a socket's own.
fn policy(message: &[u8]) -> Option<IpsecPolicy> {
    let info = message.get(..POLICY)?;
    let (direction, action) = (info[160], info[161]);
    if direction >= XFRM_POLICY_MAX || (action != XFRM_POLICY_BLOCK && !has_templates(&message[POLICY..])) {
        return None;
    }
    Some(IpsecPolicy {
        source: network(info, 16, info[43])?,
        destination: network(info, 0, info[42])?,
        protocol: info[44],
    })
}

/// The network of the policy `info` whose address is at `at`.
pub(super) fn network(info: &[u8], at: usize, prefix: u8) -> Option<IpNetwork> {
    match u16::from_ne_bytes([*info.get(40)?, *info.get(41)?]) {
        2 => {
            let octets: [u8; 4] = info.get(at..at + 4)?.try_into().ok()?;
            IpNetwork::new(IpAddr::V4(Ipv4Addr::from(octets)), prefix).ok()
        }
        10 => {
            let octets: [u8; 16] = info.get(at..at + 16)?.try_into().ok()?;
            IpNetwork::new(IpAddr::V6(Ipv6Addr::from(octets)), prefix).ok()
        }
        _ => None,
    }
}

pub(super) fn has_templates(bytes: &[u8]) -> bool {
    attributes(bytes).any(|(kind, value)| kind == XFRMA_TMPL && !value.is_empty())
}
