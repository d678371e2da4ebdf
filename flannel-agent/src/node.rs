//! This node as its external interface makes it: what is planned for, published, and told to pods.

use std::{convert::Infallible, future::pending, net::Ipv4Addr};

use tokio::sync::watch;
use tracing::{error, info};

use crate::{
    backend::Backend,
    lease::LeaseAttrs,
    netlink::ExternalInterface,
    plan::{Local, Underlay},
    xdp::XdpChoice,
};

/// Turns changes of the external interface into changes of what depends on it.
pub struct Node {
    /// How this node reaches others.
    pub backend: Backend,
    /// `--public-ip`: what is published whatever the interface's address is.
    public_ip: Option<Ipv4Addr>,
    /// What is asked of XDP, whichever interface it is.
    xdp: XdpChoice,
    locals: watch::Sender<Local>,
    published: watch::Sender<LeaseAttrs>,
    mtu: watch::Sender<u32>,
}

impl Node {
    /// The node as it is at the start, and views of what it plans for, publishes, and tells pods (their MTU in
    /// bytes).
    pub fn new(
        backend: Backend,
        public_ip: Option<Ipv4Addr>,
        xdp: XdpChoice,
        local: Local,
        attrs: LeaseAttrs,
        pod_mtu: u32,
    ) -> (Self, watch::Receiver<Local>, watch::Receiver<LeaseAttrs>, watch::Receiver<u32>) {
        let (locals, local) = watch::channel(local);
        let (published, attrs) = watch::channel(attrs);
        let (mtu, pod_mtu) = watch::channel(pod_mtu);
        (Self { backend, public_ip, xdp, locals, published, mtu }, local, attrs, pod_mtu)
    }

    /// Brings everything into line with the external interface, whenever that changes. Runs as long as it is
    /// polled.
    pub async fn follow(self, mut externals: watch::Receiver<ExternalInterface>) -> Infallible {
        while externals.changed().await.is_ok() {
            let external = externals.borrow_and_update().clone();
            self.become_of(&external);
        }
        pending().await
    }

    fn become_of(&self, external: &ExternalInterface) {
        let public_ip = self.public_ip.unwrap_or(external.address);
        if let Err(reason) = self.backend.check(external, public_ip) {
            error!(%reason, "the external interface cannot be followed: everything stays as it is");
            return;
        }
        let underlay = Underlay { ifindex: external.index, address: external.address };
        set(&self.locals, |local| Local {
            public_ip,
            underlay,
            xdp: match local.underlay.ifindex == underlay.ifindex {
                true => local.xdp,
                false => self.xdp.on(&external.name),
            },
            backend: self.backend.over(external),
            ..local.clone()
        });
        if set(&self.published, |_| self.backend.attrs(public_ip)) {
            info!(%public_ip, "publishing another address in our lease; pods keep theirs");
        }
        set(&self.mtu, |_| self.backend.pod_mtu(external));
    }
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
    use flannel_common::layout::FastPath;

    use super::*;
    use crate::{config::VxlanOptions, mac::Mac, plan, xdp::Xdp};

    const MAC: Mac = Mac([0x0e, 0, 0, 0, 0, 1]);

    type Views = (watch::Receiver<Local>, watch::Receiver<LeaseAttrs>, watch::Receiver<u32>);

    fn node(backend: Backend, public_ip: Option<Ipv4Addr>) -> (Node, Views) {
        let start = ExternalInterface::eth0(2, 1500, 1);
        let published = public_ip.unwrap_or(start.address);
        let local = Local {
            network: "10.0.0.0/8".parse().unwrap(),
            subnet: "10.1.0.0/24".parse().unwrap(),
            public_ip: published,
            underlay: Underlay { ifindex: start.index, address: start.address },
            backend: backend.over(&start),
            direct_routing: backend.direct_routing(),
            fast_path: FastPath::Off,
            xdp: Xdp::OFF,
            flow_refresh: std::time::Duration::from_secs(30),
            source_ports: 32768..60999,
        };
        let (attrs, mtu) = (backend.attrs(published), backend.pod_mtu(&start));
        let (node, locals, attrs, mtu) = Node::new(backend, public_ip, XdpChoice::OFF, local, attrs, mtu);
        (node, (locals, attrs, mtu))
    }

    fn vxlan() -> Backend {
        Backend::Vxlan { options: VxlanOptions::default(), mac: MAC }
    }

    #[test]
    fn another_address_moves_the_device_and_the_lease_but_not_the_mac() {
        let (node, (mut locals, mut attrs, mtu)) = node(vxlan(), None);
        node.become_of(&ExternalInterface::eth0(3, 1500, 7));
        let local = locals.borrow_and_update().clone();
        let plan::Backend::Vxlan(device) = &local.backend else { panic!("no device") };
        assert_eq!((device.local, device.underlay_ifindex, device.mac), (local.underlay.address, 3, MAC));
        assert_eq!(local.public_ip.to_string(), "192.0.2.7");
        assert_eq!(attrs.borrow_and_update().public_ip, local.public_ip);
        assert!(!mtu.has_changed().unwrap());
        node.become_of(&ExternalInterface::eth0(3, 1500, 7));
        assert!(!locals.has_changed().unwrap() && !attrs.has_changed().unwrap());
    }

    #[test]
    fn another_mtu_is_no_news_for_the_lease() {
        let (node, (locals, attrs, mtu)) = node(vxlan(), None);
        node.become_of(&ExternalInterface::eth0(2, 1400, 1));
        assert_eq!(*mtu.borrow(), 1350);
        assert_eq!(locals.borrow().device().unwrap().mtu, 1350);
        assert!(!attrs.has_changed().unwrap());
    }

    #[test]
    fn a_fixed_public_address_stays() {
        let fixed = Ipv4Addr::new(203, 0, 113, 9);
        let (node, (locals, attrs, _)) = node(vxlan(), Some(fixed));
        node.become_of(&ExternalInterface::eth0(2, 1500, 7));
        assert_eq!(locals.borrow().public_ip, fixed);
        assert_eq!(locals.borrow().underlay.address.to_string(), "192.0.2.7");
        assert!(!attrs.has_changed().unwrap());
    }

    #[test]
    fn host_gw_does_not_follow_where_its_public_address_is_not() {
        let start = ExternalInterface::eth0(2, 1500, 1);
        let (node, (locals, attrs, _)) = node(Backend::HostGw, Some(start.address));
        node.become_of(&ExternalInterface::eth0(2, 1500, 7));
        assert!(!locals.has_changed().unwrap() && !attrs.has_changed().unwrap());
        node.become_of(&ExternalInterface::eth0(9, 9000, 1));
        assert_eq!(locals.borrow().underlay.ifindex, 9);
    }
}
