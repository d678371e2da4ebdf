//! A pod that has the address, and gets and sends nothing.

use std::net::IpAddr;

use super::{At, ExplainError, Outcome, Step, walk::Walk};
use crate::{netlink::obstacle, values::Mac};

impl Walk {
    /// What keeps packets from the pod with this address of this node, which is at none of the places of pods. `None` where no
    /// pod has it, or only the straight way to it is missing and its `mac` is known by another.
    pub(super) async fn cut_off(
        &mut self,
        address: IpAddr,
        mac: Option<Mac>,
    ) -> Result<Option<Outcome>, ExplainError> {
        let found = self.netlink.cut_off(address, &self.links).await?;
        let Some(found) = found.filter(|found| found.is_shut || mac.is_none()) else { return Ok(None) };
        Ok(Some(self.dropped_at(address, found.interface, &found.why)))
    }

    /// What is down or closed on the way between the host and the pod with this address behind `ifindex`.
    pub(super) fn shut(&mut self, address: IpAddr, ifindex: u32) -> Option<Outcome> {
        let veth = self.link(ifindex)?;
        let bridge = veth.master.and_then(|master| self.link(master));
        let (why, name) = (obstacle(veth, bridge)?, veth.name.clone());
        Some(self.dropped_at(address, name, &why))
    }

    pub(super) fn dropped_at(&mut self, address: IpAddr, interface: String, why: &str) -> Outcome {
        let what = format!("{address} is behind {interface}: {why}");
        self.steps.push(Step::of_kernel(At::Bridge, Some(interface), what.clone()));
        Outcome::Dropped { by: what }
    }
}
