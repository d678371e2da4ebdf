//! A pod that has the address, and gets and sends nothing.

use std::net::IpAddr;

use super::{At, ExplainError, Outcome, Step, walk::Walk};

impl Walk {
    /// What keeps packets from and to the pod with this address of this node; `None` where no pod has it.
    pub(super) async fn cut_off(&mut self, address: IpAddr) -> Result<Option<Outcome>, ExplainError> {
        let Some(found) = self.netlink.cut_off(address, &self.links).await? else { return Ok(None) };
        let what = format!("{address} is behind {}: {}", found.interface, found.why);
        self.steps.push(Step::of_kernel(At::Bridge, Some(found.interface), what.clone()));
        Ok(Some(Outcome::Dropped { by: what }))
    }
}
