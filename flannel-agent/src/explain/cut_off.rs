//! A pod that has the address, and gets and sends nothing.

use std::net::IpAddr;

use super::{At, ExplainError, Outcome, Step, walk::Walk};
use crate::netlink::obstacle;

impl Walk {
    /// What keeps packets from and to the pod with this address of this node; `None` where no pod has it.
    pub(super) async fn cut_off(&mut self, address: IpAddr) -> Result<Option<Outcome>, ExplainError> {
        let Some(found) = self.netlink.cut_off(address, &self.links).await? else { return Ok(None) };
        Ok(Some(self.dropped_at(address, found.interface, &found.why)))
    }

    /// What is down or closed on the way between the host and the pod with this address behind `ifindex`.
    pub(super) fn shut(&mut self, address: IpAddr, ifindex: u32) -> Option<Outcome> {
        let veth = self.link(ifindex)?;
        let bridge = veth.master.and_then(|master| self.link(master));
        let (why, name) = (obstacle(veth, bridge)?, veth.name.clone());
        Some(self.dropped_at(address, name, &why))
    }

    fn dropped_at(&mut self, address: IpAddr, interface: String, why: &str) -> Outcome {
        let what = format!("{address} is behind {interface}: {why}");
        self.steps.push(Step::of_kernel(At::Bridge, Some(interface), what.clone()));
        Outcome::Dropped { by: what }
    }
}
