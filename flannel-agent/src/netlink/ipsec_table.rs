//! Which IPsec policy decides about a packet (`ip xfrm policy`), as the kernel chooses it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{
    NetlinkError,
    ipsec::{POLICY, dump, has_templates, network, what_default_blocks, where_there_is_ipsec},
    raw::attributes,
    xfrm::Direction,
};

/// XFRMA_MARK: `struct xfrm_mark`, a value and the bits of it that count.
const MARK: u16 = 21;
/// XFRMA_IF_ID: of an interface of IPsec's own, whose packets are no others.
const INTERFACE_ID: u16 = 31;
const BLOCK: u8 = 1;

/// All policies that are no socket's own, and what becomes of packets that none is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpsecTable {
    policies: Vec<DecidingPolicy>,
    /// Whether packets that no policy is about are dropped: in, out and forwarded.
    blocks_by_default: [bool; 3],
}

/// A policy, with all that chooses packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidingPolicy {
    /// Of which packets.
    pub direction: Direction,
    /// Where they come from.
    pub source: IpNetwork,
    /// Where they go to.
    pub destination: IpNetwork,
    /// Their protocol; 0 is any.
    pub protocol: u8,
    /// Port and the bits of it that count: of the source, of the destination.
    ports: [(u16, u16); 2],
    /// The interface, or 0.
    ifindex: u32,
    /// The smaller comes first.
    priority: u32,
    mark: (u32, u32),
    action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Block,
    Transform,
}

/// A packet that is to be decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecidedPacket {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its protocol (IANA).
    pub protocol: u8,
    /// Source and destination port, host order; 0 where it has none.
    pub ports: (u16, u16),
    /// Its mark.
    pub mark: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpsecVerdict<'a> {
    /// It goes on as it is.
    Pass,
    /// It is dropped: by a policy, or by default.
    Block(Option<&'a DecidingPolicy>),
    /// It is put into another, or must have been.
    Transform(&'a DecidingPolicy),
}

impl DecidingPolicy {
    /// As a person would look for it.
    pub fn describe(&self) -> String {
        let port = |(port, mask): (u16, u16)| (mask != 0).then_some(port);
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        let mut text = format!("src {} dst {} dir {direction}", self.source, self.destination);
        if self.protocol != 0 {
            text.push_str(&format!(" proto {}", self.protocol));
        }
        for (name, port) in ["sport", "dport"].into_iter().zip(self.ports.map(port)) {
            text.extend(port.map(|port| format!(" {name} {port}")));
        }
        text
    }

    /// It is about all protocols and ports.
    pub fn is_of_any_protocol(&self) -> bool {
        self.protocol == 0 && self.ports.iter().all(|(_, mask)| *mask == 0)
    }

    /// Ports of packets that it is about: of the source, of the destination.
    pub fn sample_ports(&self) -> (u16, u16) {
        (self.ports[0].0, self.ports[1].0)
    }

    fn is_about(&self, packet: &DecidedPacket) -> bool {
        let fits = |(port, mask): (u16, u16), of: u16| of & mask == port & mask;
        self.source.contains(packet.source)
            && self.destination.contains(packet.destination)
            && (self.protocol == 0 || self.protocol == packet.protocol)
            && fits(self.ports[0], packet.ports.0)
            && fits(self.ports[1], packet.ports.1)
            && packet.mark & self.mark.1 == self.mark.0
            && self.ifindex == 0
    }
}

impl IpsecTable {
    /// Reads them. Where the kernel has no IPsec there are none.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn read() -> Result<Self, NetlinkError> {
        where_there_is_ipsec(async {
            let mut policies = dump(policy).await?;
            // The kernel lists the newest first, and takes the oldest of one priority.
            policies.reverse();
            let [to_node, forwarded, sent] = what_default_blocks().await?;
            Ok(Self { policies, blocks_by_default: [to_node, sent, forwarded] })
        })
        .await
    }

    /// What becomes of `packet` on its way in that direction.
    pub fn decide(&self, direction: Direction, packet: &DecidedPacket) -> IpsecVerdict<'_> {
        let about =
            self.policies.iter().filter(|policy| policy.direction == direction && policy.is_about(packet));
        match about.min_by_key(|policy| policy.priority) {
            None if self.blocks_by_default[direction as usize] => IpsecVerdict::Block(None),
            None => IpsecVerdict::Pass,
            Some(policy) => match policy.action {
                Action::Allow => IpsecVerdict::Pass,
                Action::Block => IpsecVerdict::Block(Some(policy)),
                Action::Transform => IpsecVerdict::Transform(policy),
            },
        }
    }

    /// The policies that drop packets.
    pub fn blocking(&self) -> impl Iterator<Item = &DecidingPolicy> {
        self.policies.iter().filter(|policy| policy.action == Action::Block)
    }
}

/// The policy in a message; those of sockets and of IPsec's own interfaces are none.
fn policy(message: &[u8]) -> Option<DecidingPolicy> {
    let info = message.get(..POLICY)?;
    let direction = Direction::of(info[160])?;
    let number = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let port = |at: usize| u16::from_be_bytes([info[at], info[at + 1]]);
    let behind = &message[POLICY..];
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if attributes(behind).any(|(kind, value)| kind == INTERFACE_ID && word(value, 0) != Some(0)) {
        return None;
    }
    let mark = attributes(behind).find(|(kind, _)| *kind == MARK);
    let mark = mark.and_then(|(_, value)| Some((word(value, 0)?, word(value, 4)?)));
    Some(DecidingPolicy {
        direction,
        source: network(info, 16, info[43])?,
        destination: network(info, 0, info[42])?,
        protocol: info[44],
        ports: [(port(36), port(38)), (port(32), port(34))],
        ifindex: number(48)?,
        priority: number(152)?,
        mark: mark.unwrap_or_default(),
        action: match info[161] {
            BLOCK => Action::Block,
            _ if has_templates(behind) => Action::Transform,
            _ => Action::Allow,
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A policy of any protocol and priority 0 that blocks.
    pub(crate) fn blocking(direction: Direction, source: &str, destination: &str) -> DecidingPolicy {
        DecidingPolicy {
            direction,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 0,
            ports: [(0, 0); 2],
            ifindex: 0,
            priority: 0,
            mark: (0, 0),
            action: Action::Block,
        }
    }

    pub(crate) fn of(policies: Vec<DecidingPolicy>) -> IpsecTable {
        IpsecTable { policies, ..IpsecTable::default() }
    }

    #[test]
    fn the_policy_of_the_smallest_priority_decides_and_else_the_default() {
        let packet = DecidedPacket {
            source: "10.244.1.2".parse().unwrap(),
            destination: "10.244.2.2".parse().unwrap(),
            protocol: 17,
            ports: (4000, 7000),
            mark: 0,
        };
        let block = blocking(Direction::Out, "10.244.1.0/24", "10.244.2.0/24");
        let port = DecidingPolicy { protocol: 17, ports: [(0, 0), (7000, 0xffff)], ..block.clone() };
        let allow = DecidingPolicy { action: Action::Allow, priority: 5, ..block.clone() };
        let later = DecidingPolicy { priority: 9, ..block.clone() };
        for (policies, blocked) in [
            (vec![], false),
            (vec![block.clone()], true),
            (vec![port.clone()], true),
            (vec![DecidingPolicy { ports: [(0, 0), (53, 0xffff)], ..port }], false),
            (vec![later.clone(), allow.clone()], false),
            (vec![allow, block.clone()], true),
            (vec![DecidingPolicy { mark: (1, 1), ..block.clone() }], false),
            (vec![DecidingPolicy { direction: Direction::In, ..block.clone() }], false),
            (vec![DecidingPolicy { destination: "10.244.3.0/24".parse().unwrap(), ..block }], false),
        ] {
            let table = of(policies);
            let verdict = table.decide(Direction::Out, &packet);
            assert_eq!(matches!(verdict, IpsecVerdict::Block(Some(_))), blocked, "{table:?}");
        }
        let table = IpsecTable { blocks_by_default: [false, true, false], ..IpsecTable::default() };
        assert_eq!(table.decide(Direction::Out, &packet), IpsecVerdict::Block(None));
        assert_eq!(table.decide(Direction::Forward, &packet), IpsecVerdict::Pass);
    }

    #[test]
    fn a_policy_is_read_as_the_kernel_writes_it() {
        let mut message = vec![0; POLICY];
        message[..4].copy_from_slice(&[10, 244, 2, 0]);
        message[16..20].copy_from_slice(&[10, 244, 1, 0]);
        message[32..36].copy_from_slice(&[0x1b, 0x58, 0xff, 0xff]);
        message[40..42].copy_from_slice(&2u16.to_ne_bytes());
        (message[42], message[43], message[44]) = (24, 24, 17);
        message[152..156].copy_from_slice(&7u32.to_ne_bytes());
        (message[160], message[161]) = (2, BLOCK);
        let read = policy(&message).unwrap();
        assert_eq!(read.describe(), "src 10.244.1.0/24 dst 10.244.2.0/24 dir fwd proto 17 dport 7000");
        assert!(read.priority == 7 && read.action == Action::Block && !read.is_of_any_protocol());
        // One of an interface of IPsec's own, and one of a socket.
        let of_interface = [&message[..], &8u16.to_ne_bytes(), &INTERFACE_ID.to_ne_bytes(), &[1, 0, 0, 0]];
        assert_eq!(policy(&of_interface.concat()), None);
        message[160] = 3;
        assert_eq!(policy(&message), None);
        assert_eq!(policy(&message[..POLICY - 1]), None);
    }
}
