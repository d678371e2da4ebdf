//! The ends of the kernel path, where it shows where the kernel has led a packet.

use super::{Act, Carrier, Tables, tables::longest_match};
use crate::{
    family::{Family, IpHeader as _},
    layout::{Config, RouteKind},
    packet::headers::{ETHERNET_LEN, Ethernet},
    reason::Direction,
};

/// Where the kernel path ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At the VXLAN device.
    Overlay,
    /// At the external interface, without a tunnel.
    Underlay,
    /// At the external interface, in IP.
    Tunnel,
    /// At a pod's veth.
    Pod,
}

impl End {
    /// Which way a packet has travelled that is here.
    #[inline(always)]
    pub(super) const fn way(self) -> Direction {
        match self {
            Self::Overlay | Self::Underlay | Self::Tunnel => Direction::Egress,
            Self::Pod => Direction::Ingress,
        }
    }

    /// Where the IP header of a packet stands that is here.
    #[inline(always)]
    pub(super) const fn ip_at<F: Family>(self, carrier: Carrier) -> usize {
        match self {
            Self::Overlay => carrier.on_device(),
            Self::Underlay | Self::Pod => ETHERNET_LEN,
            Self::Tunnel => carrier.inner_ip::<F>(),
        }
    }

    /// Whether the kernel sends a packet to `remote`, which is here, where the programs would: a rule or a route may lead it
    /// to another node, or past the tunnel. `None` where that cannot be told yet.
    #[inline(always)]
    pub(super) fn is_where_programs_send<F: Family>(
        self,
        packet: &impl Act<F>,
        tables: &impl Tables<F>,
        config: &Config<F>,
        remote: F::Address,
    ) -> Option<bool> {
        if matches!(self, Self::Pod) {
            return Some(true);
        }
        let route = longest_match(tables, config, remote)?;
        let frame = Ethernet::parse(packet.view(0)?);
        Some(match (self, route.kind) {
            // The programs send nothing there.
            (_, RouteKind::Kernel) => true,
            // The agent sends on what comes to its device, by the same routes.
            (Self::Overlay, RouteKind::Udp) => true,
            (Self::Tunnel, RouteKind::Ipip) => {
                F::Header::read(packet, ETHERNET_LEN)?.destination() == route.vtep
            }
            (Self::Overlay, RouteKind::Vxlan) => {
                frame.same_stations(&Ethernet::new(route.vtep_mac, route.local_mac, F::ETHERTYPE))
            }
            (Self::Underlay, RouteKind::Direct) if packet.arrival().ifindex == route.ifindex => {
                frame.same_stations(&packet.underlay_route(config.vtep, route.next_hop)?.stations)
            }
            _ => false,
        })
    }
}
