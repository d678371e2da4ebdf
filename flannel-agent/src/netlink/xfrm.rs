//! The IPsec policies of flannel's own: packets between two pod subnets travel in ESP between two nodes.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::ControlFlow,
};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use nix::errno::Errno;
use tokio::time::timeout;

use super::{
    KernelError, NetlinkError,
    ipsec::{PATIENCE, POLICY, POLICY_ID, XFRM_MSG_GETPOLICY, XFRM_MSG_NEWPOLICY, XFRMA_TMPL, exchange},
    raw::attributes,
};

const DELETE_POLICY: u16 = 0x14;
const UPDATE_POLICY: u16 = 0x19;
const AF_INET: u16 = 2;
const ESP: u8 = 50;
const MODE_TUNNEL: u8 = 1;
/// Size of `struct xfrm_user_tmpl`, bytes.
const TEMPLATE_SIZE: usize = 64;

/// Which packets a policy is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// What comes for this node.
    In = 0,
    /// What leaves it.
    Out = 1,
    /// What it forwards.
    Forward = 2,
}

impl Direction {
    /// As the kernel numbers them (XFRM_POLICY_IN and on); `None` of a policy of a socket.
    pub(super) const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::In),
            1 => Some(Self::Out),
            2 => Some(Self::Forward),
            _ => None,
        }
    }
}

/// A policy: packets of one direction from `source` to `destination` are in ESP, in tunnel mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TunnelPolicy {
    /// Of which packets.
    pub direction: Direction,
    /// Where they come from.
    pub source: Ipv4Network,
    /// Where they go to.
    pub destination: Ipv4Network,
    /// Source of the outer header.
    pub from: Ipv4Addr,
    /// Destination of the outer header.
    pub to: Ipv4Addr,
    /// The number that policy and security associations have in common.
    pub reqid: u32,
}

/// The policies there are in which packets are in ESP in tunnel mode over IPv4, with that number.
///
/// # Errors
/// When the kernel does not tell.
pub async fn tunnel_policies(reqid: u32) -> Result<Vec<TunnelPolicy>, NetlinkError> {
    let mut policies = Vec::new();
    let seen = |message: &[u8]| policies.extend(read(message).filter(|policy| policy.reqid == reqid));
    talk(XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[0; POLICY_ID], seen).await?;
    Ok(policies)
}

/// Puts a policy in place of any of the same direction between the same subnets.
///
/// # Errors
/// When the kernel refuses.
pub async fn put_policy(policy: &TunnelPolicy) -> Result<(), NetlinkError> {
    let mut request = info(policy);
    request.extend(u16::try_from(4 + TEMPLATE_SIZE).unwrap_or_default().to_ne_bytes());
    request.extend(XFRMA_TMPL.to_ne_bytes());
    request.extend(template(policy));
    talk(UPDATE_POLICY, NLM_F_ACK, &request, |_| ()).await
}

/// Deletes a policy; one that is gone is no error.
///
/// # Errors
/// When the kernel refuses.
pub async fn delete_policy(policy: &TunnelPolicy) -> Result<(), NetlinkError> {
    let mut id = [0; POLICY_ID];
    id[..56].copy_from_slice(&info(policy)[..56]);
    id[60] = policy.direction as u8;
    match talk(DELETE_POLICY, NLM_F_ACK, &id, |_| ()).await {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        done => done,
    }
}

/// `struct xfrm_userpolicy_info`: selector, limits, and what is done.
fn info(policy: &TunnelPolicy) -> Vec<u8> {
    let mut bytes = vec![0; POLICY];
    bytes[..4].copy_from_slice(&policy.destination.network().octets());
    bytes[16..20].copy_from_slice(&policy.source.network().octets());
    bytes[40..42].copy_from_slice(&AF_INET.to_ne_bytes());
    (bytes[42], bytes[43]) = (policy.destination.prefix(), policy.source.prefix());
    // No limit of bytes and packets (XFRM_INF).
    bytes[56..88].fill(0xff);
    bytes[160] = policy.direction as u8;
    bytes
}

/// `struct xfrm_user_tmpl`: ESP in tunnel mode, by any algorithm.
fn template(policy: &TunnelPolicy) -> Vec<u8> {
    let mut bytes = vec![0; TEMPLATE_SIZE];
    bytes[..4].copy_from_slice(&policy.to.octets());
    bytes[20] = ESP;
    bytes[24..26].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[28..32].copy_from_slice(&policy.from.octets());
    bytes[44..48].copy_from_slice(&policy.reqid.to_ne_bytes());
    bytes[48] = MODE_TUNNEL;
    bytes[52..64].fill(0xff);
    bytes
}

/// The policy in what follows a header, if it is such a one.
fn read(message: &[u8]) -> Option<TunnelPolicy> {
    let info = message.get(..POLICY)?;
    let direction = Direction::of(info[160])?;
    let (_, template) = attributes(&message[POLICY..]).find(|(kind, _)| *kind == XFRMA_TMPL)?;
    if info[40..42] != AF_INET.to_ne_bytes()
        || template.len() != TEMPLATE_SIZE
        || template[20] != ESP
        || template[48] != MODE_TUNNEL
        || template[24..26] != AF_INET.to_ne_bytes()
    {
        return None;
    }
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    Some(TunnelPolicy {
        direction,
        source: Ipv4Network::new(address(&info[16..20])?, info[43]).ok()?,
        destination: Ipv4Network::new(address(&info[..4])?, info[42]).ok()?,
        from: address(&template[28..32])?,
        to: address(&template[..4])?,
        reqid: u32::from_ne_bytes(template[44..48].try_into().ok()?),
    })
}

/// Sends a request, and shows the policies of the answer.
async fn talk(kind: u16, flags: u16, body: &[u8], mut seen: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
    let each = |kind, policy: &[u8]| {
        if kind == XFRM_MSG_NEWPOLICY {
            seen(policy);
        }
        ControlFlow::Continue(())
    };
    match timeout(PATIENCE, exchange(kind, flags, body, each)).await {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(errno))) => Err(KernelError { errno, message: None }.into()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(NetlinkError::Silent(PATIENCE)),
    }
}

/// The subnet of a policy's peer, as seen from the node whose subnet is `own`.
pub fn peer_of(policy: &TunnelPolicy, own: IpNetwork) -> Option<Ipv4Network> {
    let is_own = |network: Ipv4Network| IpNetwork::V4(network) == own;
    match policy.direction {
        Direction::Out => Some(policy.destination).filter(|_| is_own(policy.source)),
        Direction::In | Direction::Forward => Some(policy.source).filter(|_| is_own(policy.destination)),
    }
}

/// An address of IPv4.
pub fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        for direction in [Direction::In, Direction::Out, Direction::Forward] {
            let policy = TunnelPolicy {
                direction,
                source: "10.244.1.0/24".parse().unwrap(),
                destination: "10.244.2.0/24".parse().unwrap(),
                from: Ipv4Addr::new(192, 0, 2, 1),
                to: Ipv4Addr::new(192, 0, 2, 2),
                reqid: 11,
            };
            let attribute =
                [&68u16.to_ne_bytes()[..], &XFRMA_TMPL.to_ne_bytes(), &template(&policy)].concat();
            let message = [info(&policy), attribute].concat();
            assert_eq!(read(&message), Some(policy));
            assert_eq!(read(&message[..POLICY]), None, "one that transforms nothing");
            let own: IpNetwork = "10.244.1.0/24".parse().unwrap();
            let expected = (direction == Direction::Out).then_some(policy.destination);
            assert_eq!(peer_of(&policy, own), expected);
        }
    }
}
