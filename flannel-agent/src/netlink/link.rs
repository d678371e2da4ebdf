//! Interfaces.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BridgePortState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
    },
};
use nix::errno::Errno;

use super::{Netkit, Netlink, NetlinkError, Request, Tunnel, Vxlan, VxlanDevice, netkit, tunnel, vxlan};
use crate::{host::sysctl, values::Mac};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Its MAC, if it has one of six octets.
    pub mac: Option<Mac>,
    /// Set up by the administrator (IFF_UP), whatever its carrier.
    pub up: bool,
    /// Up, and connected: the other end of a pair is up, too (IFF_LOWER_UP).
    pub carrier: bool,
    /// The bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Its other end, if that is in another network namespace.
    pub peer: Option<PeerEnd>,
    /// The interface of this namespace that is its other end, as a veth's, or that it stands on, as a VLAN does.
    pub lower: Option<u32>,
    /// A program of XDP is attached to it.
    pub xdp: bool,
    /// As a port of a bridge it does not let everything pass: it is up and not forwarding (IEEE 802.1D), or locked.
    pub closed_port: bool,
    /// As a port of a bridge it exchanges no frames with other such ports.
    pub isolated_port: bool,
    /// As a port of a bridge it gets no frames for stations that the bridge does not know.
    pub unflooded_port: bool,
    /// It is a bridge that filters by VLAN.
    pub vlan_filtering: bool,
    /// For so long it knows, as a bridge, where a station is whose frames it does not see any more: hundredths of a second.
    pub ageing_time: Option<u32>,
    /// How large the aggregates are that it sends.
    pub aggregates: AggregateLimits,
}

/// What an interface sends in one piece; the kernel cuts larger aggregates first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregateLimits {
    /// Bytes (`gso_max_size`).
    pub size: u32,
    /// Bytes of IPv4 (`gso_ipv4_max_size`), with kernels that tell these apart.
    pub ipv4_size: u32,
    /// Segments (`gso_max_segs`).
    pub segments: u32,
}

impl AggregateLimits {
    /// As an interface has them unless somebody sets others (include/linux/netdevice.h, GSO_LEGACY_MAX_SIZE and
    /// GSO_MAX_SEGS).
    pub const DEFAULT: Self = Self { size: 65_536, ipv4_size: 65_536, segments: 65_535 };

    /// Without those that are just what the hardware can do.
    fn unless_at(self, size: u32, segments: u32) -> Self {
        let unless = |limit, most, default| if limit == most { default } else { limit };
        Self {
            size: unless(self.size, size, Self::DEFAULT.size),
            ipv4_size: unless(self.ipv4_size, size, Self::DEFAULT.ipv4_size),
            segments: unless(self.segments, segments, Self::DEFAULT.segments),
        }
    }

    /// The first that is lower than by default, as `ip -d link` shows it.
    pub fn lowered(self) -> Option<String> {
        let all = [
            ("gso_max_size", self.size, Self::DEFAULT.size),
            ("gso_ipv4_max_size", self.ipv4_size, Self::DEFAULT.ipv4_size),
            ("gso_max_segs", self.segments, Self::DEFAULT.segments),
        ];
        let lowered = all.into_iter().find(|(_, limit, default)| limit < default);
        lowered.map(|(name, limit, _)| format!("{name} {limit}"))
    }
}

/// The end of a pair in another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEnd {
    /// Number of that namespace in ours (`ip netns list-id`).
    pub namespace: i32,
    /// Index of the interface there.
    pub index: u32,
}

/// The kinds of interface that make a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge,
    /// One end of a pair.
    Veth,
    /// One end of a pair that is made for pods.
    Netkit(Netkit),
    /// One of several that share an interface, and hand packets to each other beside it (macvlan, macvtap, ipvlan, ipvtap).
    Sharing,
    /// A tunnel without Ethernet, as flannel makes them.
    Tunnel(Tunnel),
    /// Anything else.
    Other,
}

impl LinkKind {
    /// Whether it is one end of a pair, as pods have the other one of.
    pub fn is_pair(&self) -> bool {
        matches!(self, Self::Veth | Self::Netkit(_))
    }

    /// Whether another network namespace gets packets from it as they are: with sums that a card would make, and as
    /// aggregates that a card would cut. Their drivers promise both (`NETIF_F_HW_CSUM`, `NETIF_F_GSO_ENCAP_ALL` in
    /// drivers/net/veth.c, drivers/net/macvlan.c and drivers/net/ipvlan/ipvlan_main.c).
    pub fn passes_unfinished(&self) -> bool {
        self.is_pair() || *self == Self::Sharing
    }
}

#[cfg(test)]
impl Link {
    /// One that is up and connected, with nothing particular about it.
    pub(crate) fn plain(index: u32, name: &str, kind: LinkKind, mtu: u32) -> Self {
        Self {
            index,
            name: name.to_owned(),
            kind,
            mtu,
            mac: None,
            up: true,
            carrier: true,
            master: None,
            peer: None,
            lower: None,
            xdp: false,
            closed_port: false,
            isolated_port: false,
            unflooded_port: false,
            vlan_filtering: false,
            ageing_time: None,
            aggregates: AggregateLimits::DEFAULT,
        }
    }
}

impl Link {
    /// What it is as an end of a netkit, if it is one.
    pub fn netkit(&self) -> Option<Netkit> {
        match self.kind {
            LinkKind::Netkit(netkit) => Some(netkit),
            _ => None,
        }
    }

    /// This interface as the device flannel would make, if it can be one.
    pub fn as_vxlan_device(&self) -> Option<VxlanDevice> {
        let LinkKind::Vxlan(vxlan) = self.kind else { return None };
        if vxlan.foreign {
            return None;
        }
        Some(VxlanDevice {
            name: self.name.clone(),
            vni: vxlan.vni,
            port: vxlan.port,
            underlay_ifindex: vxlan.underlay_ifindex?,
            local: vxlan.local?,
            mac: self.mac?,
            mtu: self.mtu,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        })
    }
}

impl Netlink {
    /// All interfaces of the namespace.
    pub async fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let table = self.dump(RouteNetlinkMessage::GetLink(query)).await?;
        Ok(table
            .into_iter()
            .filter_map(|object| match object {
                RouteNetlinkMessage::NewLink(message) => read(message),
                _ => None,
            })
            .collect())
    }

    /// The interface of that name, if there is one.
    pub async fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.one_link(query).await
    }

    /// The interface of that index, if there is one.
    pub async fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        self.one_link(query).await
    }

    async fn one_link(&mut self, mut query: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let request = Request { message: RouteNetlinkMessage::GetLink(query), flags: 0 };
        match self.exchange(&[request]).await?.pop() {
            Some(Ok(Some(RouteNetlinkMessage::NewLink(message)))) => Ok(read(message)),
            Some(Err(refused)) if refused.errno != Errno::ENODEV => Err(refused.into()),
            _ => Ok(None),
        }
    }

    /// Makes one request that has no answer but success.
    pub(crate) async fn change(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.transact(&[request]).await.pop().unwrap_or(Ok(()))
    }

    /// The same where the request is to delete a route: that it is gone, or that another has taken its place, is no error.
    pub(crate) async fn delete_route(&mut self, request: Request) -> Result<(), NetlinkError> {
        match self.change(request).await {
            Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
            done => done,
        }
    }
}

/// Changes the MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    set(index, vec![LinkAttribute::Mtu(mtu)])
}

/// Changes the MAC.
pub(crate) fn set_mac(index: u32, mac: Mac) -> Request {
    set(index, vec![LinkAttribute::Address(mac.0.to_vec())])
}

/// Changes how many packets may wait to be sent.
pub(crate) fn set_queue(index: u32, packets: u32) -> Request {
    set(index, vec![LinkAttribute::TxQueueLen(packets)])
}

/// Sets the interface up.
pub(crate) fn set_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Deletes the interface.
pub(crate) fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// Keeps the interface from configuring itself by IPv6 router advertisements, as upstream does; without
/// IPv6 there is nothing to do.
pub(crate) fn refuse_router_advertisements(name: &str) -> std::io::Result<()> {
    let setting = format!("ipv6/conf/{name}/accept_ra");
    if sysctl::NET.file(&setting).exists() { sysctl::NET.write(&setting, "0") } else { Ok(()) }
}

fn set(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

pub(super) fn read(message: LinkMessage) -> Option<Link> {
    let mut name = None;
    let running = message.header.flags.contains(LinkFlags::Running);
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        master: None,
        peer: None,
        lower: None,
        xdp: false,
        closed_port: false,
        isolated_port: false,
        unflooded_port: false,
        vlan_filtering: false,
        ageing_time: None,
        aggregates: AggregateLimits::DEFAULT,
    };
    let mut peer_index = None;
    let mut namespace = None;
    let (mut of_ports, mut segments_of_ports) = (u32::MAX, u32::MAX);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::GsoMaxSize(size) => link.aggregates.size = size,
            LinkAttribute::GsoIpv4MaxSize(size) => link.aggregates.ipv4_size = size,
            LinkAttribute::GsoMaxSegs(segments) => link.aggregates.segments = segments,
            LinkAttribute::TsoMaxSize(size) => of_ports = size,
            LinkAttribute::TsoMaxSegs(segments) => segments_of_ports = segments,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => peer_index = Some(index),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(number),
            LinkAttribute::LinkInfo(info) => {
                link.kind = kind(&info);
                // One without a carrier is closed by itself.
                link.closed_port = running && port(&info).any(is_closed);
                link.isolated_port = port(&info).any(|item| matches!(item, InfoBridgePort::Isolated(true)));
                link.unflooded_port =
                    port(&info).any(|item| matches!(item, InfoBridgePort::UnicastFlood(false)));
                link.vlan_filtering =
                    bridge(&info).any(|item| matches!(item, InfoBridge::VlanFiltering(true)));
                link.ageing_time = bridge(&info).find_map(|item| match item {
                    InfoBridge::AgeingTime(time) => Some(*time),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => {
                link.xdp = xdp.iter().any(|item| match item {
                    LinkXdp::Attached(attached) => *attached != XdpAttached::None,
                    _ => false,
                });
            }
            _ => {}
        }
    }
    // A bridge takes over what the cards among its ports can do (`br_set_gso_limits`), which is nobody's wish.
    if link.kind == LinkKind::Bridge {
        link.aggregates = link.aggregates.unless_at(of_ports, segments_of_ports);
    }
    link.name = name?;
    link.lower = peer_index.filter(|index| namespace.is_none() && *index != 0);
    link.peer = namespace.zip(peer_index).map(|(namespace, index)| PeerEnd { namespace, index });
    Some(link)
}

fn kind(info: &[LinkInfo]) -> LinkKind {
    let mut found = LinkKind::Other;
    for item in info {
        match item {
            LinkInfo::Kind(InfoKind::Bridge) => found = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => found = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap) => {
                found = LinkKind::Sharing
            }
            LinkInfo::Data(InfoData::Netkit(data)) => found = LinkKind::Netkit(netkit::read(data)),
            LinkInfo::Kind(InfoKind::Wireguard) => found = LinkKind::Tunnel(Tunnel::Wireguard),
            LinkInfo::Data(InfoData::IpTunnel(data)) if info.contains(&LinkInfo::Kind(InfoKind::IpIp)) => {
                found = tunnel::ipip(data).map_or(LinkKind::Other, LinkKind::Tunnel);
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => found = LinkKind::Vxlan(vxlan::read(data)),
            _ => {}
        }
    }
    found
}

/// What it is as a port of a bridge.
fn port(info: &[LinkInfo]) -> impl Iterator<Item = &InfoBridgePort> {
    info.iter()
        .filter_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(items)) => Some(items),
            _ => None,
        })
        .flatten()
}

fn is_closed(item: &InfoBridgePort) -> bool {
    match item {
        InfoBridgePort::State(state) => *state != BridgePortState::Forwarding,
        InfoBridgePort::Locked(locked) => *locked,
        _ => false,
    }
}

/// What it is as a bridge.
fn bridge(info: &[LinkInfo]) -> impl Iterator<Item = &InfoBridge> {
    info.iter()
        .filter_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(items)) => Some(items),
            _ => None,
        })
        .flatten()
}
