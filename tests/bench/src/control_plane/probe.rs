//! Whether a lease is usable, read past the agent.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_agent::bpf::{Pins, Tables};
use flannel_common::layout::SubnetV4;
use flannel_lab::Node;

use super::peers::{Change, Peers};

/// Between two looks at one entry.
const LOOK: Duration = Duration::from_micros(20);

/// The maps of the node's programs.
pub(super) struct Probe {
    tables: Tables,
}

impl Probe {
    /// Waits until they are pinned.
    pub(super) fn await_maps(
        node: &Node,
        patience: Duration,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let pins = Pins::under(&node.bpffs())?;
        let start = Instant::now();
        loop {
            match Tables::open(&pins) {
                Ok(tables) => return Ok(Self { tables }),
                Err(error) if start.elapsed() > patience => return Err(error).context("no maps"),
                Err(_) => check()?,
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Waits until every lease is usable; when that was.
    pub(super) fn await_all(
        &self,
        peers: &Peers,
        patience: Duration,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<Instant> {
        // Whichever order they come in: each is waited for in turn, and the moment of the last counts.
        let start = Instant::now();
        let mut looks = 0u32;
        for change in peers.all() {
            while !self.holds(change)? {
                if start.elapsed() > patience {
                    bail!("{} is not usable after {patience:?}", change.subnet());
                }
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(1024) {
                    check()?;
                }
                sleep(LOOK);
            }
        }
        Ok(Instant::now())
    }

    /// Waits until `change` is in force; when that was.
    pub(super) fn await_change(&self, change: Change, patience: Duration) -> Result<Instant> {
        let start = Instant::now();
        while !self.holds(change)? {
            ensure!(start.elapsed() < patience, "{change:?} is not in force after {patience:?}");
            sleep(LOOK);
        }
        Ok(Instant::now())
    }

    /// Whether `change` is in force.
    pub(super) fn holds(&self, change: Change) -> Result<bool> {
        let subnet = change.subnet();
        let key = SubnetV4::of(subnet.network().octets(), subnet.prefix().into());
        let peer = self.tables.v4.routes.get(&key)?;
        let vtep = self.tables.v4.vteps.get(&change.public_ip().octets())?;
        Ok(match change.mac {
            Some(mac) => peer.is_some_and(|peer| peer.vtep_mac == mac.0) && vtep.is_some(),
            None => peer.is_none() && vtep.is_none(),
        })
    }

    /// Fails unless kernel and maps hold `peers` and nothing else: figures of an agent that does half the work are none.
    pub(super) fn check_all(&self, node: &Node, peers: &Peers) -> Result<()> {
        for change in peers.all() {
            ensure!(self.holds(change)?, "{change:?} is not in the maps");
        }
        let lines = |text: String| text.lines().count();
        let counts = [
            ("entries of routes_v4", self.tables.v4.routes.entries()?.len()),
            ("entries of vteps", self.tables.v4.vteps.entries()?.len()),
            ("routes", lines(node.netns().ip("route show dev flannel.1")?)),
            ("neighbours", lines(node.netns().ip("-4 neigh show dev flannel.1 nud permanent")?)),
            ("forwarding entries", lines(node.netns().bridge("fdb show dev flannel.1")?)),
        ];
        for (what, found) in counts {
            ensure!(found == peers.len(), "{found} {what} for {} peers", peers.len());
        }
        Ok(())
    }
}
