//! WireGuard devices, over generic netlink: their keys, port and peers.
//!
//! Blocking: the kernel answers before it returns from the request.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardDeviceFlags, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;

use super::{
    NetlinkError,
    connection::{frames, refusal},
    error::errno,
};

const DATAGRAM: usize = 64 << 10;

/// A key of WireGuard's.
pub type Key = [u8; 32];

/// A device as the kernel has it.
#[derive(Clone, PartialEq, Eq)]
pub struct WireguardDevice {
    /// Its public key; zero where it has none.
    pub public_key: Key,
    /// The UDP port it listens at, host order.
    pub port: u16,
    /// Its peers, in the kernel's order.
    pub peers: Vec<WireguardPeerState>,
}

/// A peer as the kernel has it.
#[derive(Clone, PartialEq, Eq)]
pub struct WireguardPeerState {
    /// Its public key.
    pub public_key: Key,
    /// The secret that is mixed in; zero for none.
    pub preshared_key: Key,
    /// Where it is reached, as it was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a NAT open; 0 for none.
    pub keepalive: u16,
    /// What it may send, and is sent.
    pub allowed: Vec<IpNetwork>,
    /// What was exchanged with it; of no meaning in a change.
    pub exchanged: Exchanged,
}

/// What a device has exchanged with a peer since that is known to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Bytes that came from it, encrypted.
    pub received: u64,
    /// Bytes that were sent to it, encrypted.
    pub sent: u64,
    /// When keys were last agreed on, after 1970: while packets come, not longer ago than three minutes.
    pub handshake: Option<Duration>,
}

/// A change of a peer.
#[derive(Clone, PartialEq, Eq)]
pub enum PeerChange<'a> {
    /// It is to be there like this, and to have these allowed addresses besides those it has.
    Put(&'a WireguardPeerState),
    /// It is to be there like this, with these allowed addresses and no others.
    Replace(&'a WireguardPeerState),
    /// It is to go.
    Remove(&'a Key),
}

/// A connection to the kernel's WireGuard, in the network namespace of the thread that opened it.
pub struct Wireguard {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Wireguard {
    /// Opens one. There must be a device, or the module be loaded.
    ///
    /// # Errors
    /// When this kernel has no WireGuard.
    pub fn open() -> Result<Self, NetlinkError> {
        let refused = |error: std::io::Error| NetlinkError::Open(errno(&error));
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(refused)?;
        socket.set_cap_ack(true).map_err(refused)?;
        socket.set_ext_ack(true).map_err(refused)?;
        socket.bind(&NetlinkAddr::new(0, 0)).map_err(refused)?;
        let mut connection = Self { socket, family: 0, sequence: 0 };
        let query = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        };
        let answers = connection.talk(GenlMessage::from_payload(query), NLM_F_ACK)?;
        let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
        let family = attributes.into_iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        connection.family =
            family.ok_or_else(|| NetlinkError::Malformed("no family wireguard".to_owned()))?;
        Ok(connection)
    }

    /// The device of that name; `None` where there is none, or one of another kind.
    ///
    /// # Errors
    /// When the kernel refuses, or its answer cannot be read.
    pub fn device(&mut self, name: &str) -> Result<Option<WireguardDevice>, NetlinkError> {
        let attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        let query = self.message(WireguardCmd::GetDevice, attributes);
        let answers = match self.talk(query, NLM_F_DUMP) {
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => {
                return Ok(None);
            }
            answers => answers?,
        };
        let mut device = WireguardDevice { public_key: [0; 32], port: 0, peers: Vec::new() };
        for attribute in answers.into_iter().flat_map(|answer| answer.payload.attributes) {
            match attribute {
                WireguardAttribute::PublicKey(key) => device.public_key = key,
                WireguardAttribute::ListenPort(port) => device.port = port,
                WireguardAttribute::Peers(peers) => peers.iter().for_each(|peer| device.add(read(peer))),
                _ => {}
            }
        }
        Ok(Some(device))
    }

    /// Sets a device's private key and port. Its peers stay.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_device(&mut self, name: &str, private_key: Key, port: u16) -> Result<(), NetlinkError> {
        let attributes = vec![
            WireguardAttribute::IfName(name.to_owned()),
            WireguardAttribute::PrivateKey(private_key),
            WireguardAttribute::ListenPort(port),
            WireguardAttribute::Flags(WireguardDeviceFlags::empty()),
        ];
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.talk(message, NLM_F_ACK).map(drop)
    }

    /// Changes a peer of a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn change_peer(&mut self, name: &str, change: &PeerChange<'_>) -> Result<(), NetlinkError> {
        let peer = match change {
            PeerChange::Put(peer) => written(peer, WireguardPeerFlags::empty()),
            PeerChange::Replace(peer) => written(peer, WireguardPeerFlags::ReplaceAllowedIps),
            PeerChange::Remove(key) => WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey(**key),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
            ]),
        };
        let attributes =
            vec![WireguardAttribute::IfName(name.to_owned()), WireguardAttribute::Peers(vec![peer])];
        let message = self.message(WireguardCmd::SetDevice, attributes);
        self.talk(message, NLM_F_ACK).map(drop)
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
    ) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }

    /// Sends a request and collects what comes before its end.
    fn talk<T>(&mut self, message: GenlMessage<T>, flags: u16) -> Result<Vec<GenlMessage<T>>, NetlinkError>
    where
        GenlMessage<T>: NetlinkSerializable + NetlinkDeserializable,
        T: std::fmt::Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let failed = |error: std::io::Error| NetlinkError::Socket(errno(&error));
        self.socket.send_to(&bytes, &NetlinkAddr::new(0, 0), 0).map_err(failed)?;
        let mut answers = Vec::new();
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            self.socket.recv(&mut datagram, 0).map_err(failed)?;
            for frame in frames(&datagram) {
                let answer = NetlinkMessage::<GenlMessage<T>>::deserialize(&datagram[frame])
                    .map_err(|error| NetlinkError::Malformed(error.to_string()))?;
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let refused =
                            super::KernelError { errno: Errno::from_raw(-done.code), message: None };
                        return Err(refused.into());
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match refusal(&error, answer.header.flags) {
                            Some(refused) => Err(refused.into()),
                            None => Ok(answers),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

impl WireguardDevice {
    /// A peer with many addresses comes in several parts.
    fn add(&mut self, part: WireguardPeerState) {
        match self.peers.last_mut().filter(|last| last.public_key == part.public_key) {
            Some(last) => last.allowed.extend(part.allowed),
            None => self.peers.push(part),
        }
    }
}

fn read(peer: &WireguardPeer) -> WireguardPeerState {
    let mut state = WireguardPeerState {
        public_key: [0; 32],
        preshared_key: [0; 32],
        endpoint: None,
        keepalive: 0,
        allowed: Vec::new(),
        exchanged: Exchanged::default(),
    };
    for attribute in &peer.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(key) => state.public_key = *key,
            WireguardPeerAttribute::PresharedKey(key) => state.preshared_key = *key,
            WireguardPeerAttribute::Endpoint(endpoint) => state.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => state.keepalive = *seconds,
            WireguardPeerAttribute::RxBytes(bytes) => state.exchanged.received = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => state.exchanged.sent = *bytes,
            WireguardPeerAttribute::LastHandshake(at) => {
                let seconds = u64::try_from(at.seconds).unwrap_or_default();
                state.exchanged.handshake = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            WireguardPeerAttribute::AllowedIps(all) => state.allowed.extend(all.iter().filter_map(network)),
            _ => {}
        }
    }
    state
}

fn network(allowed: &WireguardAllowedIp) -> Option<IpNetwork> {
    let (mut address, mut prefix) = (None, None);
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => prefix = Some(*found),
            _ => {}
        }
    }
    IpNetwork::new(address?, prefix?).ok()
}

fn written(peer: &WireguardPeerState, flags: WireguardPeerFlags) -> WireguardPeer {
    let allowed = peer.allowed.iter().map(|network| {
        let family = match network.ip() {
            IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
            IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(network.network()),
            WireguardAllowedIpAttr::Cidr(network.prefix()),
        ])
    });
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(peer.public_key),
        WireguardPeerAttribute::PresharedKey(peer.preshared_key),
        WireguardPeerAttribute::Flags(flags),
        WireguardPeerAttribute::PersistentKeepalive(peer.keepalive),
    ];
    attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.push(WireguardPeerAttribute::AllowedIps(allowed.collect()));
    WireguardPeer(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> WireguardPeerState {
        WireguardPeerState {
            public_key: [1; 32],
            preshared_key: [2; 32],
            endpoint: Some("[2001:db8::2]:51821".parse().unwrap()),
            keepalive: 25,
            allowed: vec!["10.244.2.0/24".parse().unwrap(), "fd00:10:0:2::/64".parse().unwrap()],
            exchanged: Exchanged::default(),
        }
    }

    #[test]
    fn a_peer_is_read_as_it_is_written() {
        assert!(read(&written(&peer(), WireguardPeerFlags::empty())) == peer());
    }

    #[test]
    fn a_peer_that_comes_in_parts_is_one() {
        let mut device = WireguardDevice { public_key: [0; 32], port: 0, peers: Vec::new() };
        let rest = vec!["10.244.9.0/24".parse().unwrap()];
        device.add(peer());
        device.add(WireguardPeerState { allowed: rest, ..peer() });
        device.add(WireguardPeerState { public_key: [3; 32], ..peer() });
        let counts: Vec<_> = device.peers.iter().map(|peer| peer.allowed.len()).collect();
        assert_eq!(counts, [3, 2]);
    }
}
