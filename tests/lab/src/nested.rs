//! Pods that forward: routers, those with containers of their own.

use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::Lab;
use crate::traffic::Endpoint;

impl Lab {
    /// A namespace behind a bridge in the pod `pod` that has taken over the pod's address: the pod forwards all that
    /// comes for it, and what it answers.
    pub fn behind(&self, pod: &Endpoint) -> Result<Endpoint> {
        let nested = self.netns("nested")?;
        let (router, address) = (pod.netns(), pod.address());
        let own = IpNetwork::from(address);
        let [near, far, near_network, far_network] = match address {
            IpAddr::V4(_) => ["172.31.0.1", "172.31.0.2", "172.31.0.1/24", "172.31.0.2/24"],
            IpAddr::V6(_) => ["fd00:31::1", "fd00:31::2", "fd00:31::1/64 nodad", "fd00:31::2/64 nodad"],
        };
        let settings: &[&str] = match address {
            IpAddr::V4(_) => {
                &["ipv4/ip_forward", "ipv4/conf/eth0/proxy_arp", "ipv4/conf/inner0/accept_local"]
            }
            IpAddr::V6(_) => &["ipv6/conf/all/forwarding"],
        };
        router.ip_batch(&format!(
            "link add inner0 type bridge forward_delay 0 stp_state 0\n\
             addr add {near_network} dev inner0\n\
             link set inner0 up\n\
             link add port type veth peer name eth0 netns {}\n\
             link set port master inner0\n\
             link set port up\n",
            nested.name()
        ))?;
        // Before its address is proven a route cannot name it, and that is done whenever the kernel gets to it.
        let proof = if address.is_ipv6() { " nodad" } else { "" };
        nested.ip_batch(&format!(
            "addr add {far_network} dev eth0\n\
             addr add {own}{proof} dev lo\n\
             link set eth0 mtu 1450\n\
             link set eth0 up\n\
             route add default via {near} dev eth0 onlink src {address}\n"
        ))?;
        for setting in settings {
            router.sysctl(&format!("net/{setting}"), "1")?;
        }
        // The address stays on the pod's interface, for all to see; its packets do not.
        router.ip(&format!("route del local {address} dev eth0 table local"))?;
        router.ip(&format!("route add {own} via {far} dev inner0"))?;
        Ok(Endpoint::new(format!("{} (nested)", pod.name()), nested, address))
    }
}
