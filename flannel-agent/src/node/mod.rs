//! This node as its external interface makes it: what is planned for, published, and told to pods.

use std::{collections::BTreeMap, convert::Infallible, future::pending, ops::Range};

use flannel_common::layout::FastPath;
use ipnetwork::IpNetwork;
use tokio::{select, sync::watch};
use tracing::{error, info};

use crate::{
    backend::{AnyBackend, Backend, ExternalInterface},
    lease::{LeaseAttrs, wire::NodeAddress},
    node::xdp::XdpChoice,
    plan::{FlowRefresh, Local, LocalStack},
    values::Family,
};

pub mod interface;
pub mod underlay;
pub mod xdp;

/// Turns changes of the external interface into changes of what depends on it.
pub struct Node {
    /// How this node reaches others.
    pub backend: AnyBackend,
    /// `--public-ip`, `--public-ipv6`: what is published whatever the interface's addresses are.
    fixed: NodeAddress,
    /// What is asked of XDP, whichever interface it is.
    xdp: XdpChoice,
    locals: watch::Sender<Local>,
    published: watch::Sender<LeaseAttrs>,
    mtu: watch::Sender<u32>,
}

/// What follows from the node, whenever it changes.
#[derive(Clone, Debug)]
pub struct NodeViews {
    /// What is planned for.
    pub local: watch::Receiver<Local>,
    /// What our lease publishes.
    pub attrs: watch::Receiver<LeaseAttrs>,
    /// MTU of pods, bytes.
    pub pod_mtu: watch::Receiver<u32>,
}

impl Node {
    /// The node as it is at the start, and views of it.
    pub fn new(
        backend: AnyBackend,
        fixed: NodeAddress,
        xdp: XdpChoice,
        local: Local,
        attrs: LeaseAttrs,
        pod_mtu: u32,
    ) -> (Self, NodeViews) {
        let (locals, local) = watch::channel(local);
        let (published, attrs) = watch::channel(attrs);
        let (mtu, pod_mtu) = watch::channel(pod_mtu);
        (Self { backend, fixed, xdp, locals, published, mtu }, NodeViews { local, attrs, pod_mtu })
    }

    /// Brings everything into line with the external interface, with how far and how long packets may skip the stack, and
    /// with the range of source ports, whenever one changes. Runs as long as it is polled.
    pub async fn follow(
        self,
        mut externals: watch::Receiver<ExternalInterface>,
        mut fast_paths: watch::Receiver<FastPath>,
        mut refreshes: watch::Receiver<FlowRefresh>,
        mut ports: watch::Receiver<Range<u16>>,
    ) -> Infallible {
        loop {
            select! {
                Ok(()) = externals.changed() => {
                    let external = externals.borrow_and_update().clone();
                    self.become_of(&external);
                }
                Ok(()) = fast_paths.changed() => self.take(*fast_paths.borrow_and_update()),
                Ok(()) = refreshes.changed() => {
                    let flow_refresh = *refreshes.borrow_and_update();
                    set(&self.locals, |local| Local { flow_refresh, ..local.clone() });
                }
                Ok(()) = ports.changed() => {
                    let source_ports = ports.borrow_and_update().clone();
                    set(&self.locals, |local| Local { source_ports: source_ports.clone(), ..local.clone() });
                }
                else => pending().await,
            }
        }
    }

    fn take(&self, fast_path: FastPath) {
        set(&self.locals, |local| Local { fast_path, ..local.clone() });
    }

    fn become_of(&self, external: &ExternalInterface) {
        let public = published(self.fixed, external);
        if let Err(reason) = self.backend.check(external, public) {
            error!(%reason, "the external interface cannot be watched: everything stays as it is");
            return;
        }
        set(&self.locals, |local| {
            let networks = local.stacks.values().map(|stack| (stack.network, stack.subnet));
            let stacks = stacks(&*self.backend, external, public, networks);
            let xdp = match local.underlay_ifindex == external.index {
                true => local.xdp,
                false => self.xdp.on(&external.name),
            };
            let objects = self.backend.objects(external, &stacks);
            Local { stacks, objects, underlay_ifindex: external.index, xdp, ..local.clone() }
        });
        if set(&self.published, |_| self.backend.attrs(public)) {
            let [v4, v6] = Family::BOTH.map(|family| public.of(family).map(|address| address.to_string()));
            info!(
                public_ip = v4,
                public_ipv6 = v6,
                "publishing another address in our lease; pods keep theirs"
            );
        }
        set(&self.mtu, |_| self.backend.pod_mtu(external));
    }
}

/// The addresses a node publishes: `fixed`, and in a family where that names none, the one of its interface.
pub fn published(fixed: NodeAddress, external: &ExternalInterface) -> NodeAddress {
    let own = NodeAddress::from_iter(external.addresses().map(|(_, address)| address));
    NodeAddress {
        v4: own.v4.map(|own| fixed.v4.unwrap_or(own)),
        v6: own.v6.map(|own| fixed.v6.unwrap_or(own)),
    }
}

/// This node in each family of the cluster, for whose `networks` and our subnets of them the interface has an
/// address.
pub fn stacks(
    backend: &dyn Backend,
    external: &ExternalInterface,
    public: NodeAddress,
    networks: impl IntoIterator<Item = (IpNetwork, IpNetwork)>,
) -> BTreeMap<Family, LocalStack> {
    let stack = |(network, subnet)| {
        let family = Family::of_network(network);
        let (address, public_ip) = (external.address_of(family)?, public.of(family)?);
        let device = backend.device(family, external);
        Some((family, LocalStack { network, subnet, public_ip, address, device }))
    };
    networks.into_iter().filter_map(stack).collect()
}

/// Tells only what is new; whether it was.
fn set<T: PartialEq>(sender: &watch::Sender<T>, to: impl FnOnce(&T) -> T) -> bool {
    sender.send_if_modified(|value| {
        let new = to(value);
        let changed = *value != new;
        *value = new;
        changed
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        backend::{HostGw, Vxlan, VxlanOptions},
        plan::{Objects, Xdp},
        values::Mac,
    };

    const MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);
    const MAC_V6: Mac = Mac([0x0e, 0, 0, 0, 0, 6]);

    type Views = (watch::Receiver<Local>, watch::Receiver<LeaseAttrs>, watch::Receiver<u32>);

    fn node(backend: AnyBackend, fixed: NodeAddress) -> (Node, Views) {
        let start = ExternalInterface::eth0(2, 1500, 1);
        node_on(&start, backend, fixed)
    }

    fn node_on(start: &ExternalInterface, backend: AnyBackend, fixed: NodeAddress) -> (Node, Views) {
        let public = published(fixed, start);
        let networks = [("10.0.0.0/8", "10.1.0.0/24"), ("fd00:10::/32", "fd00:10:0:1::/64")];
        let networks = networks.map(|(network, subnet)| (network.parse().unwrap(), subnet.parse().unwrap()));
        let local = Local {
            stacks: stacks(&*backend, start, public, networks),
            underlay_ifindex: start.index,
            backend: backend.clone(),
            objects: Objects::new(),
            direct_routing: backend.direct_routing(),
            fast_path: FastPath::Off,
            xdp: Xdp::OFF,
            flow_refresh: FlowRefresh::of(std::time::Duration::from_secs(30)),
            source_ports: 32768..60999,
        };
        let (attrs, mtu) = (backend.attrs(public), backend.pod_mtu(start));
        let (node, views) = Node::new(backend, fixed, XdpChoice::OFF, local, attrs, mtu);
        (node, (views.local, views.attrs, views.pod_mtu))
    }

    fn vxlan() -> AnyBackend {
        let macs = BTreeMap::from([(Family::V4, MAC), (Family::V6, MAC_V6)]);
        AnyBackend::new(Vxlan { options: VxlanOptions::default(), macs })
    }

    fn v4(local: &Local) -> LocalStack {
        local.stack(Family::V4).unwrap().clone()
    }

    #[test]
    fn another_address_moves_the_device_and_the_lease_but_not_the_mac() {
        let (node, (mut locals, mut attrs, mtu)) = node(vxlan(), NodeAddress::default());
        node.become_of(&ExternalInterface::eth0(3, 1500, 7));
        let local = locals.borrow_and_update().clone();
        let stack = v4(&local);
        let device = stack.device.unwrap();
        assert_eq!((device.local, device.underlay_ifindex, device.mac), (stack.address, 3, MAC));
        assert_eq!((stack.public_ip.to_string().as_str(), local.underlay_ifindex), ("192.0.2.7", 3));
        assert_eq!(attrs.borrow_and_update().address(Family::V4), Some(stack.public_ip));
        assert!(!mtu.has_changed().unwrap());
        node.become_of(&ExternalInterface::eth0(3, 1500, 7));
        assert!(!locals.has_changed().unwrap() && !attrs.has_changed().unwrap());
    }

    #[test]
    fn each_family_moves_by_itself() {
        let with = |host, v6: &str| ExternalInterface {
            address_v6: Some(v6.parse().unwrap()),
            ..ExternalInterface::eth0(2, 1500, host)
        };
        let (node, (mut locals, mut attrs, mtu)) =
            node_on(&with(1, "2001:db8::1"), vxlan(), NodeAddress::default());
        let before = locals.borrow_and_update().clone();
        let device = before.stacks[&Family::V6].device.clone().unwrap();
        assert_eq!((device.name.as_str(), device.mac, device.mtu), ("flannel-v6.1", MAC_V6, 1430));
        assert_eq!(*mtu.borrow(), 1450, "that of IPv4");
        node.become_of(&with(1, "2001:db8::7"));
        let now = locals.borrow_and_update().clone();
        assert_eq!(now.stacks[&Family::V4], before.stacks[&Family::V4]);
        let stack = &now.stacks[&Family::V6];
        assert_eq!(stack.public_ip.to_string(), "2001:db8::7");
        assert_eq!(stack.device.as_ref().unwrap().local, stack.address);
        assert_eq!(attrs.borrow_and_update().public_ipv6.unwrap().to_string(), "2001:db8::7");
        // Too narrow for IPv6: the node stays what it is.
        node.become_of(&ExternalInterface { mtu: 1349, ..with(1, "2001:db8::7") });
        assert!(!locals.has_changed().unwrap());
    }

    #[tokio::test]
    async fn another_fast_path_or_range_of_ports_is_taken_and_nothing_else_changes() {
        let (node, (mut locals, attrs, _)) = node(vxlan(), NodeAddress::default());
        let before = locals.borrow_and_update().clone();
        let (_externals, external) = watch::channel(ExternalInterface::eth0(2, 1500, 1));
        let (fast_paths, fast_path) = watch::channel(FastPath::Off);
        let (_refreshes, refresh) = watch::channel(node.locals.borrow().flow_refresh);
        let (ports, source_ports) = watch::channel(32768..60999);
        let following = tokio::spawn(node.follow(external, fast_path, refresh, source_ports));
        fast_paths.send_replace(FastPath::Overlay);
        locals.changed().await.unwrap();
        let after = Local { fast_path: FastPath::Overlay, ..before };
        assert_eq!(*locals.borrow_and_update(), after);
        ports.send_replace(10_000..20_000);
        locals.changed().await.unwrap();
        assert_eq!(*locals.borrow(), Local { source_ports: 10_000..20_000, ..after });
        assert!(!attrs.has_changed().unwrap());
        following.abort();
    }

    #[test]
    fn another_mtu_is_no_news_for_the_lease() {
        let (node, (locals, attrs, mtu)) = node(vxlan(), NodeAddress::default());
        node.become_of(&ExternalInterface::eth0(2, 1400, 1));
        assert_eq!(*mtu.borrow(), 1350);
        assert_eq!(v4(&locals.borrow()).device.unwrap().mtu, 1350);
        assert!(!attrs.has_changed().unwrap());
    }

    #[test]
    fn a_fixed_public_address_stays() {
        let fixed = Ipv4Addr::new(203, 0, 113, 9);
        let (node, (locals, attrs, _)) = node(vxlan(), NodeAddress { v4: Some(fixed), v6: None });
        node.become_of(&ExternalInterface::eth0(2, 1500, 7));
        let stack = v4(&locals.borrow());
        assert_eq!((stack.public_ip, stack.address.to_string().as_str()), (fixed.into(), "192.0.2.7"));
        assert!(!attrs.has_changed().unwrap());
    }

    #[test]
    fn host_gw_does_not_follow_where_its_public_address_is_not() {
        let start = ExternalInterface::eth0(2, 1500, 1);
        let fixed = NodeAddress { v4: Some(start.address), v6: None };
        let (node, (locals, attrs, _)) = node(AnyBackend::new(HostGw), fixed);
        node.become_of(&ExternalInterface::eth0(2, 1500, 7));
        assert!(!locals.has_changed().unwrap() && !attrs.has_changed().unwrap());
        node.become_of(&ExternalInterface::eth0(9, 9000, 1));
        assert_eq!(locals.borrow().underlay_ifindex, 9);
    }
}
